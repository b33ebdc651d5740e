"""The templates in prompts.json."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from data import write_prompt
from plumbing.base.errors import InputError
from plumbing.base.files import write_json
from plumbing.corpus.languages import LANGUAGES, TEMPLATES, read_prompts

PTL = ["en", "it", "nl", "ro", "de", "zh", "cs", "ja", "ru", "uk", "fr", "ko"]


def test_every_template_names_both_languages_and_holds_the_text_once():
    assert set(TEMPLATES) == {"alpaca", "post-instruction", "alma", "chat", "ptl"}
    assert set(TEMPLATES["ptl"]) == set(PTL)
    for source in PTL:
        for target in set(PTL) - {source}:
            for template in TEMPLATES:
                prompt = write_prompt(template, (source, target), "{x} <text>")
                assert (
                    prompt.count("{x} <text>") == 1
                    and "{source}" not in prompt
                    and prompt == prompt.strip()
                )
                names = TEMPLATES["ptl"][target]["names"] if template == "ptl" else LANGUAGES
                assert names[source] in prompt and names[target] in prompt
    assert (
        write_prompt("alma", ("de", "en"), "Hallo")
        == "Translate this from German to English:\nGerman: Hallo\nEnglish:"
    )
    post = write_prompt("post-instruction", ("de", "en"), "Hallo")
    assert post.index("Hallo") < post.index("from German to English") and post.endswith(
        "### Response:"
    )
    assert write_prompt("ptl", ("it", "en"), "Ciao") == write_prompt("alpaca", ("it", "en"), "Ciao")
    german = write_prompt("ptl", ("it", "de"), "Ciao")
    assert (
        "Übersetze die folgenden Sätze aus dem Italienischen ins Deutsche." in german
        and german.endswith("### Antwort:")
    )
    with pytest.raises(InputError, match="--template ptl: no prompt for en-da; it has en it nl"):
        write_prompt("ptl", ("en", "da"), "x")
    with pytest.raises(
        InputError, match="--template mine: prompts.json has no such; it has alpaca"
    ):
        write_prompt("mine", ("en", "it"), "x")


GOOD = {"languages": {"en": "English"}, "templates": {"a": ["{source} {target}", "{input}"]}}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"languages": 3}, "expected an object of languages and templates"),
        ({"languages": {"en": 3}}, "languages: expected names by code"),
        ({"templates": {}}, "expected an object of languages"),
        ({"templates": {"a": ["no text"]}}, "template a: expected lines with {input}"),
        ({"templates": {"a": ["{input} {sauce}"]}}, "template a: expected lines with {input}"),
        ({"templates": {"a": ["{input} {"]}}, "template a: expected lines"),
        ({"templates": {"a": "{input}"}}, "template a: expected lines"),
        ({"templates": {"a": {"en": ["{input}"]}}}, "template a: expected names"),
        ({"templates": {"a": {"en": {"prompt": ["{input}"]}}}}, "template a: expected names"),
    ],
)
def test_a_template_that_would_fail_later_is_said_when_it_is_read(tmp_path, changes, said):
    path = tmp_path / "prompts.json"
    write_json(path, GOOD)
    assert read_prompts(path)[0] == {"en": "English"}
    write_json(path, GOOD | changes)
    with pytest.raises(InputError, match=f"prompts.json: {said}"):
        read_prompts(path)


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_broken_prompts_json_is_one_sentence_and_no_traceback(tmp_path, text):
    shutil.copytree(os.path.join(ROOT, "plumbing"), tmp_path / "plumbing")
    if text is not None:
        (tmp_path / "prompts.json").write_text(text)
    command = [sys.executable, "-c", "import plumbing.corpus.languages"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "prompts.json: " in done.stderr

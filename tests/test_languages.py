"""The templates in prompts.json."""

import pytest

from data import write_prompt
from plumbing.errors import InputError
from plumbing.languages import LANGUAGES, TEMPLATES

PTL = ["en", "it", "nl", "ro", "de", "zh", "cs", "ja", "ru", "uk", "fr", "ko"]


def test_every_template_names_both_languages_and_holds_the_text_once():
    assert set(TEMPLATES) == {"alpaca", "post-instruction", "alma", "ptl"}
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

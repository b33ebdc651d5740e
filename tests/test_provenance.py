"""What settings.json says of what made a run."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import BASE, ROOT

from plumbing.corpus.corpus import Sample
from plumbing.base.files import write_json
from plumbing.run.record import (
    describe_base,
    git_commit,
    merged_provenance,
    provenance,
    read_setting,
    tuned_directions,
)

SAMPLES = [Sample(("en", "it"), "open", "apri")]


def test_other_data_has_another_checksum_and_its_place_has_none():
    def record(samples):
        settings = {"data": ("a.tsv",), "init": "", "model": BASE}
        return provenance(settings, {("en", "it"): samples}, None, [])["data_crc32"]

    assert record(SAMPLES) == record(SAMPLES[:]) != record(SAMPLES * 2)
    assert record(SAMPLES) != record([SAMPLES[0]._replace(target="apre")])


def test_directions_and_settings_come_from_the_first_run_that_says_them(tmp_path):
    for name, said in [("a", {}), ("b", {"supervised": ["en-it"]}), ("c", {"supervised": 3})]:
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "settings.json", said)
    folders = [str(tmp_path / name) for name in "abc"]
    assert tuned_directions(folders) == [("en", "it")]
    assert read_setting(folders[2], "supervised", []) == [] == read_setting("", "supervised", [])


@pytest.mark.parametrize(
    "folder, said, name",
    [
        ("models--meta-llama--Llama-2-7b-hf/snapshots/0a1b", None, "meta-llama/Llama-2-7b-hf"),
        ("base", "TinyLlama/TinyLlama_v1.1", "TinyLlama/TinyLlama_v1.1"),
        ("base", "/home/somebody/base", None),
        ("base", "../runs/base", None),
        ("base", "runs/base", None),  # a folder that is there
        ("base", ["a/b"], None),
        ("base", None, None),
    ],
)
def test_a_base_has_the_hubs_name_or_none(tmp_path, monkeypatch, folder, said, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    place = tmp_path / folder
    place.mkdir(parents=True)
    write_json(place / "config.json", {"_name_or_path": said})
    (place / "README.md").write_text(
        "---\nlicense: other\nlicense_name: 'llama2'\nlicense_link: https://x.y/z\na: [b\n---\n"
        "license: mit\n"
    )
    found = describe_base(str(place), "")
    assert found.get("name") == name and found["folder"] == place.name
    assert found["license"] == {
        "license": "other",
        "license_name": "llama2",
        "license_link": "https://x.y/z",
    }


def test_what_a_model_was_made_from_goes_on_to_those_made_from_it(tmp_path):
    base = {"name": "a/b", "folder": "c"}
    write_json(tmp_path / "settings.json", {"base": base, "supervised": ["en-it"], "alpha": 0.5})
    assert describe_base(str(tmp_path), "") == base
    made = merged_provenance({"init": str(tmp_path), "model": ""})
    assert made["base"] == base and made["tuned"]["alpha"] == 0.5
    assert made["supervised"] == ["en-it"]


def test_no_name_of_a_folder_reaches_a_shell(tmp_path):
    """A quote in it once ran commands."""
    folder = tmp_path / "it's $(touch made) `touch made`; touch made"
    shutil.copytree(os.path.join(ROOT, "plumbing"), folder / "plumbing")
    shutil.copy(os.path.join(ROOT, "prompts.json"), folder)
    code = "from plumbing.run.record import git_commit; print(git_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not list(tmp_path.rglob("made")), done.stderr
    assert git_commit() == "unknown" or len(git_commit()) >= 40


def test_a_path_in_the_bases_card_stays_there(tmp_path):
    write_json(tmp_path / "config.json", {})
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_link: /home/b/LICENSE\n---\n")
    assert describe_base(str(tmp_path), "")["license"] == {"license": "other"}

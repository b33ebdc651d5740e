"""What settings.json says of what made a run."""

import os
import shutil
import subprocess
import sys

from conftest import BASE, ROOT

from plumbing.corpora import Sample
from plumbing.files import write_json
from plumbing.provenance import git_commit, provenance, read_setting, tuned_directions

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


def test_no_name_of_a_folder_reaches_a_shell(tmp_path):
    """A quote in it once ran commands."""
    folder = tmp_path / "it's $(touch made) `touch made`; touch made"
    shutil.copytree(os.path.join(ROOT, "plumbing"), folder / "plumbing")
    shutil.copy(os.path.join(ROOT, "prompts.json"), folder)
    code = "from plumbing.provenance import git_commit; print(git_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not list(tmp_path.rglob("made")), done.stderr
    assert git_commit() == "unknown" or len(git_commit()) >= 40

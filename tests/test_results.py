"""The files of an evaluation: whole or not there, aligned, never beside another run's."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from plumbing.corpus.corpus import Sample
from plumbing.base.errors import InputError
from plumbing.base.files import read_json, read_lines
from plumbing.corpus.general import GENERAL, GeneralSample
from plumbing.score.files import Results

PAIR = ("en", "it")
CORPUS = {
    PAIR: [Sample(PAIR, "one\ntwo", "uno", ("1",)), Sample(PAIR, "", "x"), Sample(PAIR, "b", "c")]
}
HYPOTHESES = {"en-it": ["uno due", "", "c"]}


@pytest.fixture
def ckpt(tmp_path):
    (tmp_path / "run.partial" / "step-000002").mkdir(parents=True)
    return tmp_path / "run.partial" / "step-000002"


def write(ckpt, crc=1, hypotheses=HYPOTHESES, split="test"):
    return Results(str(ckpt), split, crc).write(CORPUS, hypotheses, {"bleu": 1})


def test_line_n_of_every_file_is_row_n_of_the_test_set(ckpt):
    folder = write(ckpt)
    found = {name: read_lines(os.path.join(folder, name)) for name in os.listdir(folder)}
    assert found.pop("scores.json") and found == {
        "en-it.txt": ["uno due", "", "c"],
        "en-it.src.txt": ["one two", "", "b"],
        "en-it.ref.txt": ["uno", "x", "c"],
        "en-it.ref2.txt": ["1", "", ""],
    }


def test_another_test_set_of_the_same_name_has_a_folder_of_its_own(ckpt):
    first, second = write(ckpt, crc=1), write(ckpt, crc=2)
    assert [os.path.basename(p) for p in (first, second)] == ["eval-test", "eval-test-2"]
    assert write(ckpt, crc=1) == first and write(ckpt, crc=2) == second
    assert read_json(f"{second}/scores.json")["data_crc32"] == 2


def test_a_named_system_and_a_test_set_of_that_name_do_not_meet(tmp_path):
    first = Results(str(tmp_path), "test", 1, "a").write({}, {}, {})
    second = Results(str(tmp_path), "test.a", 1).write({}, {}, {})
    assert os.path.basename(first) == "eval-test.a" and os.path.basename(second) == "eval-test.a-2"
    assert Results(str(tmp_path), "test", 1, "a").write({}, {}, {}) == first


def test_everything_that_is_written_is_replaced_by_the_next_evaluation(tmp_path):
    general = {GENERAL: [GeneralSample("", "Say hello.", "Hello")]}
    for text in ("old", "new"):
        place = Results(str(tmp_path), "test", 1)
        place.write({}, {}, {"name": "a"}, {"repaired.md": text})
        Results(str(tmp_path), "other", 2).write(general, {"general": [text]}, {"name": "a"})
    assert sorted(os.listdir(tmp_path)) == ["eval-other", "eval-test"]
    assert sorted(os.listdir(tmp_path / "eval-test")) == ["repaired.md", "scores.json"]
    assert (tmp_path / "eval-test" / "repaired.md").read_text() == "new"
    (answer,) = json.loads((tmp_path / "eval-other" / "model_outputs.json").read_text())
    assert answer["output"] == "new"


def test_an_evaluation_leaves_nothing_of_the_one_before_it(ckpt):
    folder = write(ckpt)
    with open(os.path.join(folder, "nl-it.txt"), "w") as f:
        f.write("old\n")
    write(ckpt)
    assert "nl-it.txt" not in os.listdir(folder)


def test_files_follow_a_run_that_finishes_meanwhile(ckpt, tmp_path):
    results = Results(str(ckpt), "test", 1)
    os.rename(tmp_path / "run.partial", tmp_path / "run")
    assert results.write(CORPUS, HYPOTHESES, {}) == str(tmp_path / "run/step-000002/eval-test")
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_what_was_deleted_or_replaced_meanwhile_gets_no_files(ckpt, tmp_path, replaced):
    results = Results(str(ckpt), "test", 1)
    shutil.rmtree(tmp_path / "run.partial")
    if replaced:
        (tmp_path / "a" / "b").mkdir(parents=True)  # so that the same inode is not given again
        ckpt.mkdir(parents=True)
    with pytest.raises(InputError, match="was deleted or replaced while it was evaluated"):
        results.write(CORPUS, HYPOTHESES, {})
    assert not replaced or os.listdir(ckpt) == []


def test_a_full_disk_leaves_the_scores_of_before(ckpt, monkeypatch):
    folder = write(ckpt)
    before = {name: read_lines(os.path.join(folder, name)) for name in os.listdir(folder)}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plumbing.results.write_json", full)
    with pytest.raises(OSError):
        write(ckpt, hypotheses={"en-it": ["other"] * 3})
    assert {name: read_lines(os.path.join(folder, name)) for name in os.listdir(folder)} == before
    assert os.listdir(ckpt) == ["eval-test"]


WRITER = """
import itertools, sys
from plumbing.corpus.corpus import Sample
from plumbing.score.files import Results

name, ckpt = sys.argv[1:]
corpus = {("en", "it"): [Sample(("en", "it"), name, "b")]}
print("begun", flush=True)
for n in range(60) if name != "for ever" else itertools.count():
    text = f"{name} {n}"
    Results(ckpt, "test", 1).write(corpus, {"en-it": [text]}, {"t": text}, {"repaired.md": text})
"""


def start_writer(name, ckpt):
    command = [sys.executable, "-c", WRITER, name, str(ckpt)]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "begun\n"
    return writer


def require_one_evaluation(folder):
    """Every file there is of the same evaluation, and no file is missing."""
    texts = read_json(f"{folder}/scores.json")["t"], *read_lines(f"{folder}/repaired.md")
    assert {*texts, *read_lines(f"{folder}/en-it.txt")} == {texts[0]}
    assert read_lines(f"{folder}/en-it.src.txt")[0] == texts[0].rsplit(" ", 1)[0]


def test_two_evaluations_that_end_at_once_are_both_written_one_after_the_other(tmp_path):
    writers = [start_writer(name, tmp_path) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    require_one_evaluation(tmp_path / "eval-test")
    assert os.listdir(tmp_path) == ["eval-test"]


def test_a_kill_while_writing_leaves_one_whole_evaluation_and_the_next_cleans_up(tmp_path):
    for wait in (0.02, 0.05, 0.03, 0.1, 0.07):
        writer = start_writer("for ever", tmp_path)
        time.sleep(wait)
        writer.kill()
        writer.wait()
    Results(str(tmp_path), "test", 1).choose(str(tmp_path))  # what the next one does first
    require_one_evaluation(tmp_path / "eval-test")
    Results(str(tmp_path), "test", 1).write(CORPUS, HYPOTHESES, {})
    assert os.listdir(tmp_path) == ["eval-test"] and "repaired.md" not in os.listdir(
        tmp_path / "eval-test"
    )

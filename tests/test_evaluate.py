"""Decoded outputs: scored, and named where they are off target."""

import os
import shutil
import subprocess
import sys

import pytest
import sacrebleu
from conftest import ROOT, TEXT, TSV, script

from evaluate import off_target, score
from plumbing.corpus.corpus import Sample
from plumbing.base.files import read_json, read_lines
from plumbing.score.identify import make_identifier
from plumbing.score.testset import TestSet

IDENTIFY = make_identifier("langid", ["de", "en", "fr", "it", "nl", "ro", "zh"])


def test_every_wrong_output_is_off_target_and_named():
    texts = [TEXT["nl"], TEXT["en"], TEXT["it"], TEXT["fr"], "", "  ", TEXT["en"], TEXT["nl"]]
    kinds = off_target(texts, [("it", "nl")] * 8, IDENTIFY)
    assert kinds == ["", "english", "source", "other", "empty", "empty", "english", ""]
    # an untranslated English source counts as English
    assert off_target([TEXT["en"], TEXT["ro"]], [("en", "ro")] * 2, IDENTIFY) == ["english", ""]
    assert off_target([TEXT["en"], TEXT["ro"]], [("ro", "en")] * 2, IDENTIFY) == ["", "source"]


def test_scores_are_sacrebleus_with_the_floor_of_the_references():
    samples = [
        Sample(("it", "nl"), TEXT["it"], TEXT["nl"]),
        Sample(("it", "nl"), TEXT["it"], TEXT["en"]),
    ]
    hypotheses = [TEXT["nl"].replace("beschadigd", "kapot"), TEXT["en"]]
    test = TestSet("test", {("it", "nl"): samples}, identifiers=[IDENTIFY])
    r = score(hypotheses, samples, test)
    assert r["bleu"] == sacrebleu.corpus_bleu(hypotheses, [[s.target for s in samples]]).score > 50
    assert r["otr"] == r["floor"] == 50.0 and "tok:13a" in r["signature"]
    chinese = [Sample(("en", "zh"), "hi", "无法打开文件")]
    r = score(["无法打开该文件"], chinese, test)
    assert "tok:zh" in r["signature"] and r["bleu"] > 20


@pytest.mark.parametrize(
    "args, said",
    [
        (["--ckpt", "nowhere"], "nowhere: no such folder"),
        (["--candidates", "en,it,nl,ro"], "and at least one more"),
        (["--candidates", "en,it,nl,ro,qq"], "langid has no qq"),
        (["--max-new-tokens", "600"], "leaves no room for the prompt"),
    ],
)
def test_bad_input_to_evaluate(folder, args, said):
    args = args if "--ckpt" in args else ["--ckpt", folder / "model", *args]
    result = script("evaluate.py", "--data", folder / "train.tsv", *args, cwd=folder)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )


def evaluated(folder, *args):
    few = ["--ckpt", "model", "--device", "cpu", "--max-new-tokens", 3]
    result = script("evaluate.py", *few, *args, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_hypotheses_have_the_lines_of_the_input(folder):
    rows = ["en\tit", "one\tuno", "\tdue", "three\t", "four\tquattro", "\t"]
    (folder / "a.tsv").write_text("\n".join(rows) + "\n")
    said = evaluated(folder, "--data", "a.tsv")
    out = folder / "model" / "eval-a"
    assert f"scores.json: {os.path.join('model', 'eval-a')}" in said
    assert read_lines(out / "en-it.src.txt") == ["one", "", "three", "four", ""]
    assert read_lines(out / "en-it.ref.txt") == ["uno", "due", "", "quattro", ""]
    found = read_lines(out / "en-it.txt")
    assert len(found) == 5 and found[1] == found[2] == found[4] == ""
    assert read_json(out / "scores.json")["directions"]["en-it"]["sentences"] == 2
    # other rows are another test set: what was measured before stays
    evaluated(folder, "--data", "a.tsv", "--rows", 1, "--directions", "it-en")
    assert len(os.listdir(out)) == 7
    out = folder / "model" / "eval-a-2"
    assert sorted(os.listdir(out)) == ["it-en.ref.txt", "it-en.src.txt", "it-en.txt", "scores.json"]
    assert len(read_lines(out / "it-en.txt")) == 1


def test_two_test_sets_of_one_name_and_two_references(folder):
    for place, text in [("x", "one"), ("y", "two")]:
        (folder / place).mkdir()
        (folder / place / "test.en-cs.src.en").write_text(f"{text}\n")
        for ref in "AB":
            (folder / place / f"test.en-cs.ref.{ref}.cs").write_text(f"{ref} {text}\n")
        refs = [f"{place}/test.en-cs.ref.{ref}.cs" for ref in "AB"]
        said = evaluated(folder, "--data", *refs)
        assert "  en-cs: 1 pairs" in said and "nrefs:2" in said
    found = [
        folder / "model" / name for name in ("eval-test.en-cs.ref.A", "eval-test.en-cs.ref.A-2")
    ]
    for out, text in zip(found, ("one", "two"), strict=True):
        assert read_lines(out / "en-cs.src.txt") == [text]
        assert read_lines(out / "en-cs.ref2.txt") == [f"B {text}"]
        assert read_json(out / "scores.json")["directions"]["en-cs"]["sentences"] == 1


def test_what_is_wrong_with_the_last_checkpoint_is_said_before_the_first_is_decoded(folder):
    shutil.copytree(folder / "model", folder / "broken")
    (folder / "broken" / "tokenizer.model").unlink()
    args = ["--ckpt", "model", "broken", "--data", "train.tsv", "--device", "cpu"]
    result = script("evaluate.py", *args, cwd=folder)
    assert result.returncode == 2 and "broken: no tokenizer.model" in result.stderr
    assert "sentence/s" not in result.stderr and not (folder / "model" / "eval-train").exists()


def test_both_references_count_for_bleu():
    pair = ("en", "it")
    samples = [Sample(pair, "a", "uno due tre quattro", ("1 2 3 4",)), Sample(pair, "b", "x y z w")]
    test = TestSet("test", {pair: samples}, identifiers=[IDENTIFY])
    assert score(["1 2 3 4", "x y z w"], samples, test)["bleu"] == pytest.approx(100)


def test_a_language_that_is_no_default_candidate_is_one_when_the_data_has_it(folder):
    (folder / "a.tsv").write_text("en\tda\nopen\tåben\n", encoding="utf-8")
    assert "langid 1.1.6 among cs,da,de,en," in evaluated(folder, "--data", "a.tsv")


def test_a_run_that_finishes_while_its_checkpoint_is_evaluated_is_not_in_the_way(folder):
    shutil.copytree(folder / "model", folder / "run.partial" / "step-000002")
    code = (
        "import os, evaluate; from plumbing import cli\n"
        "def translate(*args, old=evaluate.translate):\n"
        "    os.path.isdir('run') or os.rename('run.partial', 'run')\n"
        "    return old(*args)\n"
        "evaluate.translate = translate\n"
        "cli.run_script(evaluate.evaluate, evaluate.Settings)"
    )
    args = ["--ckpt", "run.partial/step-000002", "--data", "train.tsv", "--rows", "1"]
    args += ["--device", "cpu", "--max-new-tokens", "2"]
    env = os.environ | {"PYTHONPATH": ROOT}
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not (folder / "run.partial").exists(), done.stderr
    assert (folder / "run" / "step-000002" / "eval-train" / "scores.json").exists()


ROWS = ["plain=model", "beam=model,beam=3", "ptl=model,template=ptl", "shot=model,shots=1"]
ROWS += ["contrast=model,contrast-language=0.5,contrast-source=0.2", "all=model,shots=1,beam=2"]
ROWS[-1] += ",contrast-source=0.5"


def test_systems_are_columns_whatever_the_batch_size(folder):
    (folder / "test.tsv").write_text("".join(TSV.splitlines(True)[:6]), encoding="utf-8")
    (folder / "shots.tsv").write_text(TSV.splitlines(True)[0] + "un\tuna\teen\to\n")
    args = ["--data", "test.tsv", "--directions", "it-nl,en-ro,nl-en", "--shots-from", "shots.tsv"]
    found = {}
    for size in (1, 7):
        said = evaluated_systems(folder, *args, "--batch-size", size)
        folders = {
            name.partition("=")[0]: folder / "model" / f"eval-test.{name.partition('=')[0]}"
            for name in ROWS
        }
        found[size] = {
            name: [read_lines(place / f"{d}.txt") for d in ("it-nl", "en-ro", "nl-en")]
            for name, place in folders.items()
        }
        assert all(f"{name} OTR" in said for name in folders)
        assert "- all: beam 2, template alpaca, 1 shot, contrast-source 0.5, " in said
    assert found[1] == found[7] and len({str(texts) for texts in found[1].values()}) == len(ROWS)
    scores = read_json(folder / "model" / "eval-test.all" / "scores.json")
    assert scores["settings"]["beam"] == 2 and scores["tokens"] > 100
    assert scores["settings"]["shots"] == 1 and scores["settings"]["rows"] == 0
    (described,) = scores["identifiers"]
    assert f"OTR in %, by {described}." in said and described.startswith("langid 1.1.6 among ")
    two = evaluated_systems(folder, *args, processes=2)
    assert [line for line in two.splitlines() if "→" in line] == [
        line for line in said.splitlines() if "→" in line
    ]


def evaluated_systems(folder, *args, processes=1):
    few = ["--systems", *ROWS, "--device", "cpu", "--max-new-tokens", 6]
    result = script("evaluate.py", *few, *args, cwd=folder, processes=processes)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "row, said",
    [
        ("a=model,shots=1", "it-nl 'apri il file 0 adesso' is in the test set too"),
        ("a=model,shots=30", "leaves no room for the prompt"),
        ("a=model,contrast-source=0.5", "needs a second source in it-nl"),
        ("a=model,beam=0", "--beam 0"),
    ],
)
def test_systems_that_cannot_work_are_refused_before_anything_is_decoded(folder, row, said):
    lines = TSV.splitlines(True)
    (folder / "test.tsv").write_text("".join(lines[:2]), encoding="utf-8")
    shots = lines[:2] if "shots=1" in row else [lines[0], *lines[5:]]
    (folder / "shots.tsv").write_text("".join(shots), encoding="utf-8")
    args = ["--data", "test.tsv", "--directions", "it-nl", "--shots-from", "shots.tsv"]
    few = ["--systems", "ok=model", row, "--device", "cpu", "--max-new-tokens", 6]
    result = script("evaluate.py", *few, *args, cwd=folder)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert "sentence/s" not in result.stderr

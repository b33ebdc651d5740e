"""Files for other tools: their figures are ours."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import BASE, TSV, script, tiny

from model import save_model
from plumbing.corpus.corpus import Sample
from plumbing.base.errors import InputError
from plumbing.score.exports import export
from plumbing.base.files import read_json, read_lines

PAIR = ("it", "nl")


def test_lines_are_the_scored_rows_and_a_second_reference_has_a_file(tmp_path):
    samples = [
        Sample(PAIR, "uno", "een", ("ein",)),
        Sample(PAIR, "", "x"),
        Sample(PAIR, "due", "b"),
    ]
    outputs = {"a/b": {"it-nl": ["1\u2028x", "", "2"]}, "c": {"it-nl": ["3", "", "4"]}}
    outputs |= {"a_b": {"it-nl": ["5", "", "6"]}, "d\ne": {"it-nl": ["7", "", "8"]}}
    folder = tmp_path / "out"
    commands = export(str(folder), {PAIR: samples}, outputs)
    found = {str(p.relative_to(folder)): read_lines(p) for p in folder.rglob("*.txt")}
    assert found == {
        "sources/it-nl.txt": ["uno", "due"],
        "references/it-nl.refA.txt": ["een", "b"],
        "references/it-nl.refB.txt": ["ein", ""],
        "system-outputs/it-nl/a_b.txt": ["1 x", "2"],
        "system-outputs/it-nl/c.txt": ["3", "4"],
        "system-outputs/it-nl/a_b_.txt": ["5", "6"],
        "system-outputs/it-nl/d_e.txt": ["7", "8"],
    }
    assert [command.split()[0] for command in commands] == ["sacrebleu", "comet-score"]
    with pytest.raises(InputError, match="out: it exists; choose a folder that does not"):
        export(str(folder), {PAIR: samples}, outputs)


def test_sacrebleus_command_line_gives_our_figures(tmp_path):
    for seed, name in enumerate(("one", "two")):
        save_model(tiny(seed=seed), tmp_path / name, BASE)
    (tmp_path / "test.tsv").write_text(TSV, encoding="utf-8")
    args = [
        "--ckpt",
        "one",
        "two",
        "--data",
        "test.tsv",
        "--rows",
        9,
        "--directions",
        "it-nl,en-ro",
    ]
    args += ["--device", "cpu", "--max-new-tokens", 4, "--export", "my files"]
    done = script("evaluate.py", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands = [x for x in done.stdout.splitlines() if x.startswith("sacrebleu ")]
    assert len(commands) == 2
    for command in commands:
        argv = [sys.executable, "-m", *shlex.split(command), "-w", "6"]
        run = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        name = "it-nl" if "it-nl" in command else "en-ro"
        figures = re.findall(r"([0-9.]+) \([0-9.]+ ± ([0-9.]+)\)", run.stdout)
        p_values = re.findall(r"\(p = ([0-9.]+)\)", run.stdout)
        for n, ckpt in enumerate(("one", "two")):
            scores = read_json(tmp_path / ckpt / "eval-test" / "scores.json")["directions"][name]
            for (score, interval), key in zip(figures[2 * n :], ("bleu", "chrf"), strict=False):
                assert float(score) == pytest.approx(scores[key], abs=1e-4)
                assert float(interval) == pytest.approx(scores["intervals"][key], abs=1e-4)
        ours = [f"{scores['p'][key]:.4f}" for key in ("bleu", "chrf")]  # of the second
        assert p_values == ours and len(figures) == 4
    again = script("evaluate.py", *args, cwd=tmp_path)
    assert again.returncode == 2 and "my files: it exists" in again.stderr
    assert os.listdir(tmp_path).count("my files") == 1

"""One global batch, shared out over processes of torchrun; evaluation too; two nodes."""

import json
import os
import re
import shutil
import subprocess
import sys

import forked
import pytest
import torch
from conftest import BASE, ROOT, RUN, TSV, log, nodes, one_sentence, same, script, tiny, torchrun
from safetensors.torch import load_file

from model import save_model
from plumbing.base.errors import InputError
from plumbing.base.processes import LAUNCHED as NAMES
from plumbing.base.processes import read_launcher

LAUNCHED = dict(zip(NAMES, ["1", "2", "1", "127.0.0.1", "29500"], strict=True))

RAGGED = "\n".join(
    line.replace(" adesso", " adesso il file" * (i % 9)).replace(" acum", " acum" * (i % 7))
    for i, line in enumerate(TSV.split("\n"))
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    save_model(tiny(), folder / "model", BASE)
    save_model(tiny(tied=False), folder / "untied", BASE)
    (folder / "train.tsv").write_text(RAGGED, encoding="utf-8")
    return folder


def first_gradient(run):
    """AdamW's first moment after its first step is a tenth of the gradient: read it from the run's
    own checkpoint."""
    return {
        n: 10 * t
        for n, t in load_file(run / "step-000001" / "optimizer.safetensors").items()
        if n.endswith("exp_avg")
    }


SHORT = ["--data", "train.tsv", "--pairs", 6, "--batch-size", 14, "--steps", 3, "--save-every", 1]
SHORT += ["--lr", 0.001, "--device", "cpu", "--micro-batch-tokens", 700]
TWO = ["--stage", 2, "--init", "model", "--alpha", 0.3]
LORA = ["--lora-rank", 4, "--lora-alpha", 8]
SENTENCE = ["--loss-reduction", "sentence"]
CASES = {
    "stage 1, LoRA": LORA,
    "stage 1, full, sentence": ["--full", *SENTENCE],
    "stage 2, full, untied": [*TWO, "--full", "--init", "untied", "--recompute"],
    "stage 2, LoRA, sentence": [*TWO, *LORA, *SENTENCE],
}


@pytest.mark.parametrize("case", CASES)
def test_several_processes_take_the_same_steps_as_one(place, case):
    """The gradient, the log and the trained weights of train.py, with one process and with several
    that share out each batch."""
    args = [] if "--init" in CASES[case] else ["--model", "model"]
    args += [*SHORT, *CASES[case]]
    found, counts = {}, (1, 4) if "untied" in case else (1, 2)
    for processes in counts:
        run = place / f"{case} {processes}"
        result = script("train.py", *args, "--out", run, cwd=place, processes=processes)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("saved") == 1  # the first process speaks for all
        name = "adapter_model" if "LoRA" in case else "model"
        found[processes] = first_gradient(run), log(run), load_file(run / f"{name}.safetensors")
    for processes in counts[1:]:
        assert_same_steps(found[1], found[processes])


def assert_same_steps(one, other):
    """Two runs, each its first gradient, log and weights, are one but for rounding."""
    gradients, rows, weights = one
    assert max(g.abs().max() for g in gradients.values()) > 1e-3
    assert gradients.keys() == other[0].keys() and weights.keys() == other[2].keys()
    assert max((gradients[n] - other[0][n]).abs().max() for n in gradients) < 1e-6
    for mine, theirs in zip(rows, other[1], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[k] == (theirs[k] and pytest.approx(theirs[k], rel=1e-4)) for k in mine), (
            mine,
            theirs,
        )
    assert all(torch.allclose(weights[n], other[2][n], atol=1e-3) for n in weights)


def node_run(out, *args):
    return [*SHORT, *LORA, "--model", "model", "--out", out, *args]


def outcome(run):
    return first_gradient(run), log(run), load_file(run / "adapter_model.safetensors")


def folder_of(place, *names):
    return {str(path.relative_to(place)) for name in names for path in (place / name).rglob("*")}


def agents(place, *args):
    """What two agents of torchrun say, which know of each other by an address and a port, and have
    one process of train.py each."""
    meet = ["--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1"]
    meet += ["--rdzv-backend", "static", "--master-port", forked.free_port()]
    pipes, started = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}, []
    for rank in (0, 1):
        command = [sys.executable, "-m", "torch.distributed.run", *meet, "--node-rank", rank]
        command = [*map(str, [*command, f"{ROOT}/train.py", *args])]
        started.append(subprocess.Popen(command, cwd=place, **pipes))
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    return "".join(said)


def test_two_nodes_with_a_shared_folder_are_as_one_process(place):
    """The first node's process writes, and both go on from what it wrote."""
    result = script("train.py", *node_run("alone"), cwd=place)
    assert result.returncode == 0, result.stderr
    assert agents(place, *node_run("two")).count("saved two") == 1
    assert {path.replace("two", "alone") for path in folder_of(place, "two")} == folder_of(
        place, "alone"
    )
    assert_same_steps(outcome(place / "alone"), outcome(place / "two"))
    os.rename(place / "two", place / "again.partial")
    shutil.rmtree(place / "again.partial" / "step-000002")
    results = nodes("train.py", *node_run("again", "--resume"), places=[place, place])
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    assert "resuming from again.partial/step-000001" in results[0].stdout
    assert_same_steps(outcome(place / "alone"), outcome(place / "again"))


def test_a_node_with_a_disk_of_its_own_writes_nothing_and_cannot_resume_alone(place, tmp_path):
    """Model and data may be copies; a run folder that one node does not see must not end in nodes
    that wait for each other, nor other data in one run of both."""
    first, second = tmp_path / "first", tmp_path / "second"
    for node in (first, second):
        shutil.copytree(place / "model", node / "model")
        shutil.copy(place / "train.tsv", node)
    before = sorted(path.name for path in second.rglob("*"))
    results = nodes("train.py", *node_run("run"), places=[first, second])
    assert [result.returncode for result in results] == [0, 0], results[0].stderr
    assert (first / "run" / "step-000002").is_dir()
    assert sorted(path.name for path in second.rglob("*")) == before
    os.rename(first / "run", first / "run.partial")
    shutil.rmtree(first / "run.partial" / "step-000002")
    results = nodes("train.py", *node_run("run", "--resume"), places=[first, second])
    said = "error: --resume: run: process 1 has [False, False], process 0 has [False, True, "
    assert (
        said in results[0].stderr and "expected the same files on every node" in results[0].stderr
    )
    assert 0 not in [result.returncode for result in results]
    (second / "train.tsv").write_text(RAGGED.replace("open file", "open the file"))
    results = nodes("train.py", *node_run("other"), places=[first, second])
    assert "error: data_crc32: process 1 has " in results[0].stderr
    assert 0 not in [result.returncode for result in results]
    few = ["--ckpt", "model", "--data", "train.tsv", "--device", "cpu"]
    results = nodes("evaluate.py", *few, places=[first, second])
    assert "error: data_crc32: process 1 has " in results[0].stderr
    assert 0 not in [result.returncode for result in results]


def evaluated(place, data, processes, directions):
    """(the table on stdout, scores.json, {file: bytes of it}, stdout) of so many processes."""
    few = ["--data", data, "--max-new-tokens", 5, "--directions", directions, "--device", "cpu"]
    how = {"cwd": place, "processes": processes}
    start = torchrun if processes == 2 else script
    result = start("evaluate.py", "--ckpt", "untied", *few, **how)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| direction") == result.stdout.count("scores.json:") == 1
    out = place / "untied" / f"eval-{data.removesuffix('.tsv')}"
    texts = {path.name: path.read_bytes() for path in out.glob("*.txt")}
    report = json.loads((out / "scores.json").read_text())
    table = result.stdout[result.stdout.index("| direction") :]
    table = re.sub(r"[\d,]+ tokens, [\d.]+ s\n", "", table)  # other batches share other tokens
    table = re.sub(r"\[Gloo\] .*\n", "", table)  # torch 2.8 says who meets
    return table, (report["directions"], report["average"]), texts, result.stdout


def test_evaluation_shares_the_sentences_out_and_reports_as_one(place):
    (place / "long.tsv").write_text(
        "en\tit\tro\n"
        + f"open{' the file' * 300}\tapri\tdeschide\nfile\tfile\tfișier\n\tvuoto\t\n"
        + "".join(f"open {'it ' * (i % 4)}{i}\tapri {i}\tdeschide {i}\n" for i in range(7))
        + "last\t\tultim\n"
    )
    found = [evaluated(place, "long.tsv", n, "en-it,it-en,en-ro") for n in (1, 4)]
    assert found[0][:3] == found[1][:3]
    assert list(found[0][1][0]) == ["en-it", "it-en", "en-ro"]
    hypotheses = found[0][2]["en-it.txt"].decode().split("\n")
    assert len(hypotheses) == 12 and hypotheses[2] == hypotheses[10] == ""
    assert len(set(hypotheses)) > 5  # so that an exchanged line would show
    for *_, said in found:  # whoever cut it
        assert "en-it: 1 over-long sources cut" in said and "en-ro: 1 over-long" in said


def test_evaluation_of_fewer_sentences_than_processes(place):
    (place / "one.tsv").write_text("en\tit\n\tvuoto\nopen the file\tapri il file\n")
    one, two = (evaluated(place, "one.tsv", n, "en-it") for n in (1, 2))
    assert one[:3] == two[:3] and one[1][0]["en-it"]["sentences"] == 1


def test_bad_input_is_said_once_by_several_processes(place):
    args = ["--data", "none.tsv", "--out", "x", "--device", "cpu"]
    result = torchrun("train.py", *args, cwd=place, processes=2)
    assert result.returncode != 0 and result.stderr.count("error: none.tsv: no such file") == 1


ENDING = """
import atexit, glob, sys
import torch
from pathlib import Path
sys.path.insert(0, {root!r})
from plumbing.base.flags import run_script
from model import build_model
from plumbing.base.processes import shard
from plumbing.base.errors import InputError
from train import Settings
def threads():
    names = [Path(f).read_text() for f in glob.glob("/proc/self/task/*/comm")]
    print(*names, file=sys.stderr)
atexit.register(threads)
def main(s):
    model, files = build_model({model!r})
    shard([*model.model.layers, model], "cpu")
    files.fill(model, None, "cpu")
    model(torch.arange(9), [9]).sum().backward()
    print("as far as here")
    if {fails}:
        raise InputError("and no further")
run_script(main, Settings, "")
"""


@pytest.mark.parametrize(
    "variables, rank",
    [
        ({}, (0, 1)),
        ({"RANK": "0"}, (0, 1)),
        ({"RANK": "1"}, None),
        ({"RANK": ""}, None),
        ({"WORLD_SIZE": "2"}, None),
        ({"RANK": "1", "WORLD_SIZE": "4"}, None),
        (LAUNCHED, (1, 2)),
        (LAUNCHED | {"RANK": "2"}, None),
        (LAUNCHED | {"RANK": "-1"}, None),
        (LAUNCHED | {"MASTER_ADDR": ""}, None),
    ],
)
def test_what_a_launcher_left_over_is_said(variables, rank):
    if rank:
        assert read_launcher(variables) == rank
    else:
        with pytest.raises(InputError, match="left over from a launcher.*torchrun"):
            read_launcher(variables)


def test_a_script_with_half_a_launcher_around_it_is_one_sentence(tmp_path):
    result = script("train.py", "--out", tmp_path / "run", env=os.environ | {"RANK": "1"})
    one_sentence(result, "RANK=1: torchrun", "left over")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_python_does_not_end_while_threads_of_gloo_live(place, fails):
    """Such a thread may let go of a tensor late; in a Python that is ending this aborts the process
    (seen once in CI)."""
    (place / "script.py").write_text(
        ENDING.format(root=ROOT, model=str(place / "model"), fails=fails)
    )
    result = torchrun(place / "script.py", "--device", "cpu", processes=2)
    assert (result.returncode != 0) == fails, result.stderr
    # Older versions of gloo speak there too.
    said = [line for line in result.stdout.splitlines() if "peer ranks" not in line]
    assert said == ["as far as here"], result.stdout
    assert "gloo" not in result.stderr and ("error: and no further" in result.stderr) == fails


def test_several_processes_resume_each_others_checkpoints(stopped):
    """A checkpoint holds whole tensors, so the number of processes may change on the way; dropout
    masks then do too."""
    still = ["--lora-dropout", 0, "--steps", 6]
    for run, processes in (("whole2", 2), ("part", 1)):
        result = script("train.py", *RUN, *still, "--out", run, cwd=stopped, processes=processes)
        assert result.returncode == 0, result.stderr
    for run, processes in (("again", 2), ("other", 1)):
        shutil.copytree(stopped / "whole2", stopped / f"{run}.partial")
        shutil.rmtree(stopped / f"{run}.partial" / "step-000004")
        result = script(
            "train.py", *RUN, *still, "--out", run, "--resume", cwd=stopped, processes=processes
        )
        assert result.returncode == 0 and "step-000002" in result.stdout, result.stderr
    assert same(stopped, "whole2", "again")
    a, b = (load_file(stopped / run / "adapter_model.safetensors") for run in ("part", "other"))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)

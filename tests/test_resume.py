"""A stopped run: what --resume finds, what it refuses, and that it ends as if nothing had happened."""

import json
import os
import random
import re
import resource
import shutil

import pytest
import stress
import torch
from conftest import BASE, TSV, log, script, tiny, tuning_set
from safetensors.torch import load_file

from data import micro_batches
from model import load_model, save_model
from plumbing.corpora import read_corpus
from plumbing.tokenizer import Tokenizer
from train import forward

ARGS = [
    "--data",
    "train.tsv",
    "--model",
    "model",
    "--pairs",
    20,
    "--batch-size",
    8,
    "--steps",
    8,
    "--lora-rank",
    4,
    "--device",
    "cpu",
    "--save-every",
    2,
    "--keep",
    9,
    "--lora-dropout",
    0.1,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, `whole`, with its checkpoints."""
    folder = tmp_path_factory.mktemp("resume")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    (folder / "dev.tsv").write_text("\n".join(TSV.split("\n")[:3]) + "\n", encoding="utf-8")
    result = script("train.py", *ARGS, "--out", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run, stopped after its fifth step, with checkpoints after the second and the fourth."""
    for name in ("model", "train.tsv", "dev.tsv", "whole"):
        os.symlink(finished / name, tmp_path / name)
    shutil.copytree(finished / "whole", tmp_path / "run.partial")
    for name in ("step-000006", "adapter_model.safetensors", "adapter_config.json"):
        path = tmp_path / "run.partial" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = (finished / "whole" / "log.jsonl").read_text().split("\n")
    (tmp_path / "run.partial" / "log.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])
    return tmp_path


def resume(folder, *args):
    return script("train.py", *ARGS, "--out", "run", "--resume", *args, cwd=folder)


def same(folder, a="whole", b="run"):
    x, y = (load_file(folder / run / "adapter_model.safetensors") for run in (a, b))
    return (
        x.keys() == y.keys()
        and all(torch.equal(x[k], y[k]) for k in x)
        and ((folder / a / "log.jsonl").read_bytes() == (folder / b / "log.jsonl").read_bytes())
    )


@pytest.mark.parametrize("name", ["stage 1, LoRA with dropout", "stage 2, full, fp16"])
def test_killed_runs_end_as_the_uninterrupted_one_bit_for_bit(tmp_path, name):
    """Three of the kills of tests/stress.py, one of them while a checkpoint is being written."""
    stress.make(tmp_path)
    done, _ = stress.torture(tmp_path, name, stress.SETTINGS[name], 3, random.Random(1), steps=120)
    assert done == 3


def test_a_run_goes_on_from_its_newest_whole_checkpoint(stopped):
    shutil.copytree(
        stopped / "run.partial" / "step-000004", stopped / "run.partial" / "step-000006.partial"
    )
    result = resume(stopped)
    assert (
        result.returncode == 0
        and "step-000006.partial: an incomplete checkpoint, ignored" in result.stdout
    ), result.stderr
    assert "resuming from run.partial/step-000004" in result.stdout and same(stopped)
    assert (
        not (stopped / "run" / "step-000006.partial").exists()
        and not (stopped / "run.partial").exists()
    )
    again = resume(stopped)
    assert again.returncode == 0 and "run is finished" in again.stdout and same(stopped)


def test_deleting_checkpoints_goes_further_back(stopped):
    shutil.rmtree(stopped / "run.partial" / "step-000004")
    result = resume(stopped)
    assert (
        result.returncode == 0
        and "resuming from run.partial/step-000002" in result.stdout
        and same(stopped)
    )
    shutil.rmtree(stopped / "run")
    result = resume(stopped)
    assert (
        result.returncode == 0 and "resuming" not in result.stdout and same(stopped)
    )  # nothing there: from the first step


def test_a_stopped_run_is_not_overwritten(stopped):
    result = script("train.py", *ARGS, "--out", "run", cwd=stopped)
    assert (
        result.returncode == 2
        and "run.partial: a stopped run; --resume goes on with it" in result.stderr
    )
    assert resume(stopped).returncode == 0 and same(stopped)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_dtype_and_the_rate_may_change_on_the_way(stopped, dtype):
    result = resume(stopped, "--dtype", dtype, "--lr", 0.001)
    assert result.returncode == 0, result.stderr
    rates = [row["lr"] for row in log(stopped / "run")]
    assert rates[:4] == [row["lr"] for row in log(stopped / "whole")][:4] and rates[4] < 0.001


def test_merging_does_not_delete_a_stopped_run(stopped):
    result = script("train.py", "--merge", "--init", "whole", "--out", "run", cwd=stopped)
    assert result.returncode == 2 and "run.partial: a stopped run" in result.stderr, result.stderr
    assert resume(stopped).returncode == 0 and same(stopped)


@pytest.mark.parametrize(
    "args, said",
    [
        (["--batch-size", 4], "batch_size is 4, was 8"),
        (["--seed", 2], "seed is 2, was 1"),
        (["--full"], "full is True, was False"),
        (["--directions", "en-it,it-en,en-nl"], "directions is en-it,it-en,en-nl, was supervised"),
        (["--lora-rank", 2], "lora_rank is 2"),
        (["--steps", 9], "steps is 9, was 8"),
    ],
)
def test_another_run_under_the_same_name_is_refused(stopped, args, said):
    before = sorted(os.listdir(stopped / "run.partial"))
    result = resume(stopped, *args)
    assert (
        result.returncode == 2 and said in result.stderr and "choose another --out" in result.stderr
    )
    assert sorted(os.listdir(stopped / "run.partial")) == before


def test_changed_data_is_refused_and_a_changed_split_is_not(stopped):
    os.unlink(stopped / "train.tsv")
    (stopped / "train.tsv").write_text(
        TSV.replace("apri il file 3 ", "apri il file tre "), encoding="utf-8"
    )
    result = resume(stopped)
    assert result.returncode == 2 and "data_crc32 is" in result.stderr
    (stopped / "train.tsv").write_text(TSV, encoding="utf-8")
    result = resume(stopped, "--micro-batch-tokens", 300, "--keep", 1)  # out of memory at 4096, say
    assert result.returncode == 0, result.stderr
    kept = [name for name in os.listdir(stopped / "run") if name.startswith("step-")]
    assert kept == ["step-000006"] and log(stopped / "run")[-1]["mle"] == pytest.approx(
        log(stopped / "whole")[-1]["mle"], rel=0.02
    )


@pytest.mark.parametrize(
    "file, damage, said",
    [
        ("optimizer.safetensors", "flip", "optimizer.safetensors: tensor .* is damaged"),
        ("adapter_model.safetensors", "flip", "adapter_model.safetensors: tensor .* is damaged"),
        (
            "optimizer.safetensors",
            "cut",
            "optimizer.safetensors: .* bytes; expected a whole safetensors file",
        ),
        ("optimizer.safetensors", "delete", "optimizer.safetensors: no such file"),
        ("adapter_model.safetensors", "delete", "adapter_model.safetensors: no such file"),
        ("adapter_config.json", "delete", "config.json: no such file"),
        ("adapter_config.json", "cut", "adapter_config.json: "),
        ("adapter_config.json", "alpha", "adapter_config.json: .*step-000004"),
        ("state.json", "cut", "state.json: "),
        ("state.json", "delete", "state.json: no such file"),
        ("state.json", "step", "state.json: damaged"),
        ("settings.json", "delete", "settings.json: no such file"),
        ("log.jsonl", "delete", "log.jsonl"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(stopped, file, damage, said):
    path = stopped / "run.partial" / "step-000004" / file
    blob = bytearray(path.read_bytes())
    if damage == "flip":
        blob[-9] ^= 4
    elif damage == "cut":
        blob = blob[:-40]
    elif damage == "alpha":
        blob = blob.replace(b'"lora_alpha": 128.0', b'"lora_alpha": 120.0')
    elif damage == "step":
        blob = blob.replace(b'"step": 4', b'"step": 3')
    path.write_bytes(blob) if damage != "delete" else path.unlink()
    result = resume(stopped)
    assert (
        result.returncode == 2
        and "Traceback" not in result.stderr
        and result.stderr.count("\n") == 1
    ), result.stderr
    assert re.search(said, result.stderr), result.stderr
    shutil.rmtree(path.parent)  # what the sentence advises
    assert resume(stopped).returncode == 0 and same(stopped)


def limited(bytes):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))


@pytest.mark.parametrize(
    "room, said", [(20_000, "step-000002 was not written"), (300, "File too large")]
)
def test_a_full_disk_is_one_sentence_and_older_checkpoints_are_untouched(
    finished, tmp_path, room, said
):
    """Files may grow to so many bytes: then a checkpoint, or a log, cannot be written."""
    args = ["--out", tmp_path / "run", "--full", "--lora-dropout", 0]
    result = script("train.py", *ARGS, *args, cwd=finished, preexec_fn=limited(room))
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert not (tmp_path / "run").exists() and not list((tmp_path / "run.partial").glob("step-*"))
    result = script("train.py", *ARGS, *args, "--resume", cwd=finished)
    assert result.returncode == 0 and (tmp_path / "run" / "model.safetensors").exists(), (
        result.stderr
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: needs another user")
def test_a_read_only_folder_is_one_sentence(finished, tmp_path):
    tmp_path.chmod(0o500)
    result = script("train.py", *ARGS, "--out", tmp_path / "run", cwd=finished)
    tmp_path.chmod(0o700)
    assert (
        result.returncode == 2
        and "Permission denied" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_a_place_that_cannot_be_written_is_one_sentence(finished):
    result = script("train.py", *ARGS, "--out", "train.tsv/run", cwd=finished)
    assert (
        result.returncode == 2
        and "Not a directory" in result.stderr
        and "Traceback" not in result.stderr
    ), result.stderr


def test_a_loss_that_is_not_finite_stops_the_run_before_it_can_spoil_the_weights(
    finished, tmp_path
):
    args = [*ARGS, "--save-every", 0, "--clip", 0, "--out", tmp_path / "run"]
    result = script("train.py", *args, "--lr", 1e30, cwd=finished)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    said = result.stderr[result.stderr.index("error: ") :]
    assert (
        "step 2: loss nan" in said
        and "step-000001 holds the state before it; lower --lr 1e+30" in said
    )
    assert "samples: " in said and "open file" in said
    assert [row["step"] for row in log(tmp_path / "run.partial")] == [1]
    load_model(tmp_path / "run.partial" / "step-000001")  # no damaged tensor in it
    result = script(
        "train.py", *args, "--lr", 1e-3, "--resume", cwd=finished
    )  # what the sentence advises is possible
    assert (
        result.returncode == 2 and "step 2" in result.stderr
    )  # though 1e30 in one step is beyond repair


def test_fp16_skips_steps_without_advancing_the_schedule(finished, tmp_path):
    """The first scale, 65,536, is too large for these gradients: the scaler halves it until one fits."""
    result = script(
        "train.py",
        *ARGS,
        "--dtype",
        "fp16",
        "--lora-alpha",
        256,
        "--out",
        tmp_path / "run",
        cwd=finished,
    )
    assert result.returncode == 0, result.stderr
    rows = log(tmp_path / "run")
    skipped = [row["step"] for row in rows if row["grad_norm"] is None]
    assert skipped and skipped == list(range(1, len(skipped) + 1)) and len(skipped) < 8
    assert (
        len({row["lr"] for row in rows[: len(skipped) + 1]}) == 1
        and len({row["mle"] for row in rows}) == 8
    )
    state = json.load(open(tmp_path / "run" / "step-000006" / "state.json"))
    assert state["updates"] == 6 - len(skipped) and state["scaler"]["scale"] == 65536 / 2 ** len(
        skipped
    )


# The story that a run tells


def test_the_figures_of_dev_are_those_of_evaluate_and_the_best_checkpoint_is_the_run(
    finished, tmp_path
):
    args = [
        "--out",
        tmp_path / "run",
        "--dev",
        "dev.tsv",
        "--best",
        "mle",
        "--lr",
        0.3,
        "--save-every",
        3,
    ]
    result = script("train.py", *ARGS, *args, cwd=finished)
    assert result.returncode == 0, result.stderr
    rows = [row for row in log(tmp_path / "run") if "dev_mle" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]  # and at the end
    best = min(rows, key=lambda row: row["dev_mle"])["step"]
    assert f"which is step {best}, the best by mle of --dev" in result.stdout
    steps = [tmp_path / "run" / f"step-{row['step']:06}" for row in rows]
    result = script(
        "evaluate.py", "--ckpt", *steps, "--data", "dev.tsv", "--device", "cpu", cwd=finished
    )
    assert result.returncode == 0, result.stderr
    for row, run in zip(rows, steps):
        found = json.load(open(run / "eval-dev" / "scores.json"))["directions"].values()
        assert row["dev_otr"] == pytest.approx(sum(r["otr"] for r in found) / len(found))
        model = load_model(run).eval()
        corpus, _ = read_corpus([finished / "dev.tsv"])
        dev = tuning_set(corpus, Tokenizer([run], model.config), 512)
        with torch.no_grad():
            (batches,) = micro_batches(dev.with_twins(dev.samples), 500)
            nats = sum(forward(model, b, "cpu", "fp32")[0].item() for b in batches)
        assert row["dev_mle"] == pytest.approx(nats / sum(len(b.y) for b in batches), rel=1e-5)
    a, b = (
        load_file(tmp_path / "run" / place / "adapter_model.safetensors")
        for place in ("", f"step-{best:06}")
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and len(log(tmp_path / "run")) == 8


def test_a_run_folder_tells_its_story(finished):
    settings = json.load(open(finished / "whole" / "settings.json"))
    assert (
        settings["seed"] == 1
        and settings["versions"]["torch"] == torch.__version__
        and settings["versions"]["git"]
    )
    speed = log(finished / "whole", "speed.jsonl")
    assert [row["step"] for row in speed] == list(range(1, 9))
    assert all(
        row["tokens_per_s"] > 0 and row["peak_memory_gib"] > 0.01 and row["mfu"] is None
        for row in speed
    )
    assert {*log(finished / "whole")[0]} == {
        "step",
        "loss",
        "mle",
        "ul",
        "grad_norm",
        "lr",
        "response_tokens",
        "tokens",
    }


def test_tensorboard_shows_what_the_logs_say(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):  # a second call shows the same points again, not others
        result = script("experiments/to_tensorboard.py", finished / "whole")
        assert result.returncode == 0 and "whole: 8 steps" in result.stdout, result.stderr
    events = accumulator.EventAccumulator(str(finished / "whole"))
    events.Reload()
    shown = {e.step: e.value for e in events.Scalars("mle")}
    assert shown == {row["step"]: pytest.approx(row["mle"]) for row in log(finished / "whole")}
    assert {"tokens_per_s", "lr", "grad_norm"} <= {*events.Tags()["scalars"]}
    result = script("experiments/to_tensorboard.py", finished)
    assert result.returncode == 1 and "log.jsonl: no such file" in result.stderr


def test_several_processes_resume_each_others_checkpoints(stopped):
    """A checkpoint holds whole tensors, so the number of processes may change on the way; dropout masks then do too."""
    still = ["--lora-dropout", 0, "--steps", 6]
    for run, processes in (("whole2", 2), ("part", 1)):
        result = script("train.py", *ARGS, *still, "--out", run, cwd=stopped, processes=processes)
        assert result.returncode == 0, result.stderr
    for run, processes in (("again", 2), ("other", 1)):
        shutil.copytree(stopped / "whole2", stopped / f"{run}.partial")
        shutil.rmtree(stopped / f"{run}.partial" / "step-000004")
        result = script(
            "train.py", *ARGS, *still, "--out", run, "--resume", cwd=stopped, processes=processes
        )
        assert result.returncode == 0 and "step-000002" in result.stdout, result.stderr
    assert same(stopped, "whole2", "again")
    a, b = (load_file(stopped / run / "adapter_model.safetensors") for run in ("part", "other"))
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)

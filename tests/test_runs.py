"""A stopped run: what --resume finds, what it refuses, and that it ends as if never stopped."""

import os
import random
import re
import resource
import shutil

import pytest
import stress
import torch
from conftest import RUN, TSV, log, same, script

from plumbing.files import write_json
from plumbing.progress import Progress
from plumbing.provenance import read_setting
from plumbing.runs import Run
from train import Settings


def resume(folder, *args):
    return script("train.py", *RUN, "--out", "run", "--resume", *args, cwd=folder)


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
    # nothing there: from the first step
    assert result.returncode == 0 and "resuming" not in result.stdout and same(stopped)


def test_a_stopped_run_is_not_overwritten(stopped):
    result = script("train.py", *RUN, "--out", "run", cwd=stopped)
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
    result = script("train.py", *RUN, *args, cwd=finished, preexec_fn=limited(room))
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert not (tmp_path / "run").exists() and not list((tmp_path / "run.partial").glob("step-*"))
    result = script("train.py", *RUN, *args, "--resume", cwd=finished)
    assert result.returncode == 0 and (tmp_path / "run" / "model.safetensors").exists(), (
        result.stderr
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: needs another user")
def test_a_read_only_folder_is_one_sentence(finished, tmp_path):
    tmp_path.chmod(0o500)
    result = script("train.py", *RUN, "--out", tmp_path / "run", cwd=finished)
    tmp_path.chmod(0o700)
    assert (
        result.returncode == 2
        and "Permission denied" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_a_place_that_cannot_be_written_is_one_sentence(finished):
    result = script("train.py", *RUN, "--out", "train.tsv/run", cwd=finished)
    assert (
        result.returncode == 2
        and "Not a directory" in result.stderr
        and "Traceback" not in result.stderr
    ), result.stderr


def test_bad_input_leaves_a_stopped_run_as_it_was(folder):
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "log.jsonl").write_text("the log of a stopped run")
    result = script(
        "train.py",
        "--data",
        folder / "none.tsv",
        "--model",
        folder / "model",
        "--out",
        folder / "out",
        cwd=folder,
    )
    assert (
        result.returncode == 2
        and (folder / "out.partial" / "log.jsonl").read_text() == "the log of a stopped run"
    )


def test_a_model_without_a_run_takes_no_settings_from_the_current_folder(folder, monkeypatch):
    write_json(folder / "settings.json", {"template": "alma"})
    monkeypatch.chdir(folder)
    assert read_setting(Settings(stage=1).init, "template", "alpaca") == "alpaca"
    assert read_setting(Settings(stage=1, init=str(folder)).init, "template", "alpaca") == "alma"


class Unmoved:
    """Stands in for an optimizer."""

    moments = {"a": torch.zeros(2)}
    scaler = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("best_by, kept", [("", [3]), ("mle", [1, 3]), ("otr", [2, 3])])
def test_only_the_newest_checkpoints_stay_and_the_best_where_one_is_asked_for(
    tmp_path, best_by, kept
):
    """--dev without --best once kept one more than --keep says."""
    run = Run(str(tmp_path / "run"), keep=1)
    run.begin({"seed": 1}, None, lambda folder: os.makedirs(folder, exist_ok=True), Unmoved)
    progress = Progress(None)
    for otr, mle in [(50.0, 1.0), (10.0, 2.0), (20.0, 3.0)]:
        progress.advance(1, True)
        progress.compare({"dev_otr": otr, "dev_mle": mle}, best_by)
        run.logs.write({"step": progress.step}, {"step": progress.step})
        run.save(progress)
    assert run.checkpoints() == [run.step_folder(step) for step in kept]
    assert log(tmp_path / "run.partial" / "step-000003") == [{"step": n} for n in (1, 2, 3)]

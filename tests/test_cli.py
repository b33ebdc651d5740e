"""Flags from a dataclass: defaults, types, bounds, help."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest
import torch
from conftest import ROOT, script

import evaluate
import train
from plumbing.base.flags import DTYPES, DeviceSettings, autocast, option, parse, users_sentence
from plumbing.base.errors import InputError
from plumbing.run.settings import by_stage, resolve_stage


@dataclass
class Settings(DeviceSettings):
    stage: int = option(1, "which stage", choices=[1, 2])
    rate: float = option(by_stage(0.5, 0.25), "a rate", least=0)
    names: list = option(("a", "b"), "some names")
    dry: bool = option(False, "a switch")

    def __post_init__(self):
        resolve_stage(self)


def test_every_field_is_a_flag_and_what_is_left_out_has_its_default():
    s = parse(Settings, [])
    assert (s.stage, s.rate, s.names, s.dry) == (1, 0.5, ("a", "b"), False)
    s = parse(Settings, ["--stage", "2", "--names", "x", "y", "z", "--dry"])
    assert (s.stage, s.rate, s.names, s.dry) == (2, 0.25, ["x", "y", "z"], True)
    assert parse(Settings, ["--stage", "2", "--rate", "3"]).rate == 3.0


@pytest.mark.parametrize(
    "argv", [["--rats", "1"], ["--stage", "3"], ["--rate", "x"], ["--names"], ["--dry", "yes"]]
)
def test_an_unknown_flag_a_wrong_type_and_a_wrong_choice_end_the_script(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Settings, argv)
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_value_below_the_least_is_named_as_it_was_typed():
    with pytest.raises(InputError, match="^--rate -1.0: expected at least 0$"):
        parse(Settings, ["--rate", "-1"])


def test_help_shows_defaults_of_both_stages_and_the_scripts_own_flags_first(capsys):
    with pytest.raises(SystemExit):
        parse(Settings, ["-h"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: 0.5 in stage 1, 0.25 in stage 2)" in said and "(default: a b)" in said
    assert said.index("--rate") < said.index("--dtype") and "(default: False)" not in said


@pytest.mark.parametrize("script", [train, evaluate])
def test_every_flag_of_a_script_has_a_line_of_help(script):
    assert all(f.metadata["help"] for f in fields(script.Settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_auto_is_fp32_on_a_cpu_and_what_is_not_there_is_refused():
    s = parse(Settings, [])
    assert (s.device, s.dtype) == ("cpu", "fp32")
    for device in ("cuda", "cuda:1", "tpu"):
        with pytest.raises(InputError, match=f"^--device {device}: not possible here"):
            parse(Settings, ["--device", device])


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_computes_in_the_dtype(dtype):
    with autocast("cpu", dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == DTYPES[dtype]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--warmup", "nan"], "--warmup nan: expected 0 to 1"),
        (["--warmup", "-0.1"], "--warmup -0.1: expected 0 to 1"),
        (["--warmup", "1.5"], "--warmup 1.5: expected 0 to 1"),
        (["--weight-decay", "nan"], "--weight-decay nan: expected at least 0"),
        (["--weight-decay", "inf"], "--weight-decay inf: expected 0 to 1e"),
        (["--weight-decay", "-1"], "--weight-decay -1.0: expected at least 0"),
        (["--epochs", "inf"], "--epochs inf: expected 0 to 1e"),
        (["--epochs", "-1"], "--epochs -1.0: expected 0 to"),
        (["--epochs", "0"], "--epochs 0 without --steps: no training"),
        (["--epochs", "2", "--steps", "9"], "--steps and --epochs: choose one"),
        (["--plan", "--resume"], "--plan is of a whole run"),
        (["--lr", "nan"], "--lr nan: expected"),
        (["--alpha", "inf"], "--alpha inf: expected"),
        (["--lora-alpha", "nan"], "--lora-alpha nan: expected"),
        (["--clip", "nan"], "--clip nan: expected"),
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--seed", "9" * 40], "--seed 9{40}: expected 0 to"),
        (["--seed", "9" * 4000], "--seed 9+ ... 9+: expected 0 to"),
        (["--steps", "9" * 400], "--steps 9+: expected"),
    ],
)
def test_a_number_out_of_bounds_is_said_before_any_work(argv, said):
    with pytest.raises(InputError, match=f"^{said}") as error:
        parse(train.Settings, argv)
    assert len(str(error.value)) < 1100


def test_argparses_sentences_are_bounded(capsys):
    with pytest.raises(SystemExit):
        parse(Settings, ["--stage", "9" * 5000])
    assert len(capsys.readouterr().err) < 2000


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_without_docstrings_the_scripts_run_too(name):
    command = [sys.executable, "-OO", os.path.join(ROOT, name), "-h"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--data" in done.stdout, done.stderr


def test_memory_that_is_not_there_is_one_sentence():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    for kind, flag in [
        (train.Settings, "--micro-batch-tokens"),
        (evaluate.Settings, "--batch-size"),
    ]:
        said = users_sentence(error.value, kind)
        assert said.startswith("out of memory: ") and flag in said and "\n" not in said
    assert users_sentence(RuntimeError("shapes do not fit"), train.Settings) == ""
    assert users_sentence(MemoryError(), train.Settings).startswith("out of memory")


def test_memory_is_said_by_the_script_too(folder):
    def limit():  # of address space, so that a machine with more memory says the same
        resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))

    paths = ["--data", "train.tsv", "--model", "model", "--out", "run", "--device", "cpu"]
    huge = ["--lora-rank", 2**31 - 1]
    result = script("train.py", *paths, *huge, cwd=folder, preexec_fn=limit)
    assert result.returncode == 2 and "error: out of memory: " in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and not (folder / "run.partial").exists()

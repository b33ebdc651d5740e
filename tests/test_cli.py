"""Flags from a dataclass: defaults, types, bounds, help."""

from dataclasses import dataclass, fields

import pytest
import torch

import evaluate
import train
from plumbing.cli import DTYPES, DeviceSettings, autocast, by_stage, option, parse, resolve_stage
from plumbing.errors import InputError


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


def test_a_default_of_the_stage_holds_only_where_nothing_was_said():
    for settings in (train.Settings(stage=1), train.Settings(stage=2)):
        assert not any(isinstance(getattr(settings, f.name), by_stage) for f in fields(settings))
    assert train.Settings(stage=2, batch_size=7).batch_size == 7
    assert train.Settings(stage=1).batch_size != train.Settings(stage=2).batch_size


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

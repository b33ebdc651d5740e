"""Defaults by stage, the paper's preset, and what a run may start from."""

from dataclasses import fields

import pytest
from conftest import script

import train
from plumbing.base.flags import option, parse
from plumbing.base.errors import InputError
from plumbing.run.settings import PAPER, by_stage, of_stage


def test_a_default_of_the_stage_holds_only_where_nothing_was_said():
    for settings in (train.Settings(stage=1), train.Settings(stage=2)):
        assert not any(isinstance(getattr(settings, f.name), by_stage) for f in fields(settings))
    assert train.Settings(stage=2, batch_size=7).batch_size == 7
    assert train.Settings(stage=2).steps == 100 and train.Settings(stage=2, steps=7).steps == 7
    assert train.Settings(stage=2, epochs=3).steps == train.Settings(stage=1).steps == 0
    assert [train.Settings(stage=stage).alpha > 0 for stage in (1, 2)] == [False, True]
    assert train.Settings(stage=1).batch_size != train.Settings(stage=2).batch_size
    assert of_stage(by_stage(1, 2), 2) == 2 and of_stage(3, 2) == 3
    assert option(by_stage(1, 2), "help").default == by_stage(1, 2)


def test_visits_and_steps_of_epochs_and_of_steps():
    s = train.Settings(epochs=1.5, batch_size=4)
    assert s.visits(9) == (14, 4)
    s = train.Settings(stage=2, steps=3, batch_size=4)
    assert s.visits(9) == (12, 3)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_preset_is_the_papers_settings_of_the_stage(stage):
    s = parse(train.Settings, ["--preset", "paper", "--stage", str(stage)])
    expected = {
        1: {"lr": 2e-5, "batch_size": 128, "epochs": 3.0, "steps": 0, "alpha": 0.0},
        2: {"lr": 2e-6, "batch_size": 8, "epochs": 0.0, "steps": 100, "alpha": 0.05},
    }[stage]
    expected |= {"full": True, "conflict": "any", "loss_reduction": "sentence", "pairs": 2000}
    expected |= {"warmup": 0.03, "weight_decay": 0.0, "max_length": 512}
    assert {name: getattr(s, name) for name in PAPER} == expected
    said = s.describe_preset()
    void = "steps" if stage == 1 else "epochs"
    for name, value in expected.items():
        flag = f"--{name.replace('_', '-')}"
        assert (f"{flag} {value}" in said or (value is True and flag in said)) == (name != void)
    assert "; but" not in said and train.Settings().describe_preset() == ""
    assert parse(train.Settings, []).full is False and parse(train.Settings, ["--full"]).full


def test_each_value_of_a_preset_gives_way_to_a_flag_its_own_default_too():
    argv = ["--preset", "paper", "--stage", "2", "--lr", "1e-5", "--conflict", "target"]
    s = parse(train.Settings, [*argv, "--no-full", "--loss-reduction", "token", "--pairs", "0"])
    assert (s.lr, s.conflict, s.full, s.loss_reduction, s.pairs) == (
        1e-5,
        "target",
        False,
        "token",
        0,
    )
    assert s.batch_size == 8
    said = s.describe_preset()
    assert "; but --no-full, --lr 1e-05, --pairs 0, --conflict target" in said
    s = parse(train.Settings, ["--preset", "paper", "--stage", "2", "--epochs", "1"])
    assert (s.epochs, s.steps) == (1.0, 0)
    s = parse(train.Settings, ["--preset", "paper", "--steps", "7"])
    assert s.visits(10**6) == (7 * 128, 7)


def test_a_preset_that_tunes_in_full_refuses_an_adapter(finished):
    args = ["--stage", 2, "--init", "whole", "--data", "train.tsv", "--device", "cpu"]
    done = script("train.py", *args, "--preset", "paper", "--out", "no", cwd=finished)
    assert done.returncode == 2 and not (finished / "no").exists()
    said = "whole is a LoRA run; expected a full model for --preset paper (--merge makes one)"
    assert said in done.stderr


def test_a_run_with_the_preset_says_all_of_it_and_keeps_it(folder):
    args = ["--model", "model", "--data", "train.tsv", "--device", "cpu", "--preset", "paper"]
    done = script("train.py", *args, "--steps", 1, "--batch-size", 4, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if line.startswith("--preset paper: "))
    assert "--lr 2e-05" in first and "; but --batch-size 4" in first and "--epochs" not in first
    assert (folder / "run" / "model.safetensors").exists()


def test_more_positions_than_the_model_has_are_refused():
    class Found:
        class config:
            max_position_embeddings = 100

        lora = None

    with pytest.raises(InputError, match="--max-length 512: the model has 100 positions"):
        train.Settings().refuse_misfit("x", Found)
    assert train.Settings(lora_targets="q_proj,k_proj").adapter().target_modules == [
        "q_proj",
        "k_proj",
    ]

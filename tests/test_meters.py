"""What a run says of itself."""

import json

import pytest
import torch
from conftest import log, script


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

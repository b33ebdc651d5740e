"""What a run says of itself."""

import json

import pytest
import torch
from conftest import log, script

from plumbing.run.log import LOGS, Logs, SpeedMeter, brief, logged_steps


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


def test_a_number_that_is_not_finite_is_null_in_the_logs(tmp_path):
    logs = Logs(str(tmp_path))
    logs.write({"step": 1, "grad_norm": float("inf"), "ul": None, "mle": 0.5}, {"step": 1})
    assert log(tmp_path) == [{"step": 1, "grad_norm": None, "ul": None, "mle": 0.5}]


def test_logs_go_on_from_those_of_a_checkpoint(tmp_path):
    for name in LOGS:
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2}\n')  # of the run that was stopped
        (tmp_path / "step-000001").mkdir(exist_ok=True)
        (tmp_path / "step-000001" / name).write_text('{"step": 1}\n')
    Logs(str(tmp_path), str(tmp_path / "step-000001")).write({"step": 2, "mle": 1}, {"step": 2})
    assert log(tmp_path) == [{"step": 1}, {"step": 2, "mle": 1}]


def test_flops_are_four_a_token_and_parameter_with_lora_six_without_and_the_head_apart():
    body, head = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 30, bias=False)
    for full, flops in [(False, 4), (True, 6)]:
        meter = SpeedMeter(body, head, full, "cpu")
        row = meter.stop(1, tokens=80, responses=20, computed=50)
        assert row["mfu"] is None  # no GPU of a known peak
        meter.peak = 1e9
        row = meter.stop(1, tokens=80, responses=20, computed=50)
        work = flops * (100 * 50 + 300 * 20)
        assert row["mfu"] == pytest.approx(work / row["seconds"] / 1e9)
        assert row["tokens_per_s"] == pytest.approx(80 / row["seconds"])
        assert row["computed"] == 50 / 80


def test_the_bar_shows_the_unlikelihood_only_where_there_is_one():
    assert (
        brief({"mle": 1.23456, "ul": None}, {"tokens_per_s": 1234.5}) == "mle 1.235, 1,234 tokens/s"
    )
    said = brief({"mle": 1.0, "ul": 0.25}, {"tokens_per_s": 10})
    assert said == "mle 1.000, ul 0.250, 10 tokens/s"


def test_figures_are_added_to_the_last_line_and_what_json_lacks_is_null(tmp_path):
    """The same whether the run was stopped in between or not."""
    (tmp_path / "step").mkdir()
    logs = Logs(str(tmp_path))
    logs.write({"step": 1, "loss": 2.0}, {"step": 1})
    logs.write({"step": 2, "loss": float("nan")}, {"step": 2})
    for name in LOGS:
        (tmp_path / "step" / name).write_bytes((tmp_path / name).read_bytes())
    expected = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "dev_mle": None, "dev_otr": 5}]
    figures = {"dev_mle": float("inf"), "dev_otr": 5}
    assert logs.extend(figures) == figures and log(tmp_path) == expected
    Logs(str(tmp_path), str(tmp_path / "step")).extend(figures)
    assert log(tmp_path) == expected and len(log(tmp_path, "speed.jsonl")) == 2
    assert logged_steps(str(tmp_path)) == 2

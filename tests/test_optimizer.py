"""The learning rate, and fp16's loss scale."""

import json

import pytest
from conftest import RUN, log, script

from plumbing.compute.optimizer import learning_rate


def test_the_schedule_rises_then_falls_to_zero():
    rates = [learning_rate(i, 100, peak=1.0, warmup=0.1) for i in range(101)]
    assert (
        rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
        and max(rates) == rates[10] == 1.0
    )
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[
        100
    ] == pytest.approx(0)
    assert rates[55] == pytest.approx(0.5, abs=1e-6)


def test_fp16_skips_steps_without_advancing_the_schedule(finished, tmp_path):
    """The first scale, 65,536, is too large for these gradients: the scaler halves it until one
    fits."""
    result = script(
        "train.py",
        *RUN,
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

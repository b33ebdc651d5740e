"""How far a run is, as state.json tells it."""

import json

import pytest

from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.errors import InputError
from plumbing.run.progress import Best, Checkpoint, Progress

LORA = LoraSettings(4, 8.0, ["q_proj"])


def begun(best_by="mle"):
    progress = Progress.resume(None, LORA, 11, 22, best_by)
    for updated in (True, False, True):
        progress.advance(tokens=10, updated=updated)
    progress.compare({"dev_mle": 2.0, "dev_otr": 50.0}, best_by)
    return progress


def test_a_skipped_update_is_a_step_but_no_update():
    progress = begun()
    assert (progress.step, progress.updates, progress.seen) == (3, 2, 30)


def test_progress_comes_back_from_its_state():
    state = json.loads(json.dumps(begun().to_state()))
    assert Progress.resume(Checkpoint("run", state), LORA, 11, 22, "mle") == begun()


@pytest.mark.parametrize(
    "crcs, said", [((12, 22), "base model's weights"), ((11, 23), "tokenizer")]
)
def test_another_base_or_tokenizer_than_the_run_had_is_said(crcs, said):
    with pytest.raises(InputError, match=f"^run: .*{said}.*choose another --out$"):
        Progress.resume(Checkpoint("run", begun().to_state()), LORA, *crcs, "mle")


def test_an_adapter_with_other_settings_than_the_run_had_is_damaged():
    state = begun().to_state()
    with pytest.raises(InputError, match="^run/adapter_config.json: damaged; delete run$"):
        Progress.resume(Checkpoint("run", state), LoraSettings(4, 9.0, ["q_proj"]), 11, 22)


def test_the_best_is_the_lowest_figure_and_of_equal_ones_the_lower_loss():
    progress = Progress(None)
    for otr, mle in [(50, 2.0), (10, 3.0), (10, 2.5), (10, 2.7)]:
        progress.advance(1, True)
        progress.compare({"dev_otr": otr, "dev_mle": mle}, "otr")
    assert progress.best == Best(10, 2.5, 3)
    progress = Progress(None)
    for otr, mle in [(50, 2.0), (10, 3.0)]:
        progress.advance(1, True)
        progress.compare({"dev_otr": otr, "dev_mle": mle}, "mle")
    assert progress.best.step == 1


def test_without_a_figure_to_choose_by_there_is_no_best():
    assert begun(best_by="").best == Best() and Best().step == 0

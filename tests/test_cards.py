"""The model card of a run or a merged model, read by the Hub's own package."""

import json
import os

import pytest
from conftest import BASE, script, tiny

from model import save_model
from plumbing.checkpoint.card import is_card, make_card, refresh_card, scalar, write_card, yaml
from plumbing.base.errors import InputError
from plumbing.base.files import write_json

hub = pytest.importorskip("huggingface_hub")
pyyaml = pytest.importorskip("yaml")

SETTINGS = {
    "supervised": ["en-no", "no-en"],
    "base": {"name": "org/base-1", "folder": "x", "license": {"license": "apache-2.0"}},
    "stage": 2,
    "alpha": 0.05,
    "conflict": "target",
    "steps": 100,
    "epochs": 0.0,
    "batch_size": 32,
    "lr": 5e-4,
    "full": False,
    "lora_rank": 8,
    "seed": 1,
    "template": "alpaca",
    "loss_reduction": "token",
    "data": ["/home/somebody/data/train.tsv"],
    "init": "/home/somebody/runs/stage1",
}
ROW = {"bleu": 12.345, "chrf": 30.0, "otr": 4.0, "length_ratio": 0.98, "sentences": 200}
ROW |= {"intervals": {"bleu": 1.0, "chrf": 2.0, "otr": 3.0}, "signature": "sig"}
REPORT = {"directions": {"en-no": ROW, "no-en": ROW}, "average": {"supervised": ROW}}
REPORT |= {"decoding": "greedy", "identifiers": ["langid 1 among en,no"]}
REPORT |= {"settings": {"data": ["/home/somebody/test.tsv"], "rows": 0}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "eval-test").mkdir(parents=True)
    write_json(folder / "settings.json", SETTINGS)
    write_json(folder / "adapter_config.json", {})
    write_json(folder / "eval-test" / "scores.json", REPORT)
    return folder


@pytest.mark.parametrize("name", ["run", 'a "no": \\ #\u2028\x85\x1b日😀', "- no", "null"])
def test_the_hub_reads_every_field_as_it_was_meant(run, name):
    write_card(str(run), name)
    data = hub.ModelCard.load(run / "README.md").data
    assert data.language == ["en", "no"] and data.library_name == "peft"
    assert data.base_model == "org/base-1" and data.license == "apache-2.0"
    assert data.pipeline_tag == "translation" and "lora" in data.tags
    assert data.model_name == name and data.get("base_model_relation") == "adapter"
    found = {
        (x.dataset_name, x.dataset_config, x.metric_type): x.metric_value for x in data.eval_results
    }
    assert found["test", "en-no", "sacrebleu"] == 12.35 and len(found) == 6
    assert found["test", "no-en", "off_target_ratio"] == 4.0


def test_no_path_of_this_machine_is_in_it(run):
    text = make_card(str(run), "run")
    assert "/home/" not in text and "somebody" not in text and str(run) not in text
    assert "`train.tsv`" in text and "Data: `test.tsv`." in text and "; from `stage1`" in text
    assert (
        "under instructions with another target language; mean over tokens" in text
        and "0.05 L_UL" in text
        and "{input}" in text
    )
    assert "| en→no " in text and "12.3 ± 1.0" in text


@pytest.mark.parametrize("name", [*SETTINGS, "everything"])
def test_what_the_settings_do_not_say_is_left_out(run, name):
    """As of an adapter from elsewhere, that was merged here."""
    left = {k: v for k, v in SETTINGS.items() if k != name and name != "everything"}
    write_json(run / "settings.json", {"supervised": [], "tuned": left})
    text = make_card(str(run), "run")
    assert ("put together" in text) == (name == "everything") and "`.`" not in text


def test_the_loss_is_said_as_it_was(run):
    more = {"init": "", "punish_eos": False, "penalty": "hinge"}
    write_json(run / "settings.json", SETTINGS | more)
    text = make_card(str(run), "run")
    assert "0.05 hinge, under instructions with another target language, EOS not punished" in text
    assert "; from" not in text


def test_a_card_follows_the_evaluations_until_somebody_takes_it_over(run):
    write_card(str(run), "run")
    write_json(run / "eval-test" / "scores.json", {"directions": 3})  # not whole
    refresh_card(str(run))
    card = run / "README.md"
    assert "12.3" not in card.read_text() and is_card(card)
    (run / "eval-other.ptl").mkdir()
    write_json(run / "eval-other.ptl" / "scores.json", REPORT)
    refresh_card(str(run))
    assert "## Results on `other.ptl`" in card.read_text()
    lines = card.read_text().split("\n")
    card.write_text("\n".join([lines[0], *lines[2:], "my own words"]))
    refresh_card(str(run))
    assert card.read_text().endswith("my own words") and not is_card(card)


def test_a_readme_of_somebody_else_is_not_replaced_when_a_run_finishes(run, capsys):
    (run / "README.md").write_text("my notes")
    write_card(str(run), "run")
    assert (run / "README.md").read_text() == "my notes"
    assert "is not this program's" in capsys.readouterr().out


def test_settings_that_somebody_changed_leave_the_card_as_it_is(run):
    write_card(str(run), "run")
    before = (run / "README.md").read_text()
    for wrong in ({"supervised": 3}, SETTINGS | {"alpha": "x"}, SETTINGS | {"base": 1}):
        write_json(run / "settings.json", wrong)
        refresh_card(str(run))
        assert (run / "README.md").read_text() == before
    (run / "settings.json").write_text("{")
    refresh_card(str(run))
    with pytest.raises(InputError):
        write_card(str(run), "run")


def test_yaml_says_what_python_said():
    value = {"a": ["no", {"b": 1.5, "c": ["x: y", "\t\u2028\x00\ufeff"]}], "d": {"e": "'\"\\"}}
    assert pyyaml.safe_load(yaml(value)) == value
    for text in ("no", "1.0", "~", "# x", "a\nb", "😀"):
        assert pyyaml.safe_load(scalar(text)) == text


def test_runs_and_merged_models_have_a_card_and_nobody_elses_is_touched(folder):
    small = ["--steps", 1, "--batch-size", 2, "--lora-rank", 2, "--data", "train.tsv"]
    small += ["--device", "cpu"]
    assert script("train.py", "--model", "model", *small, "--out", "a", cwd=folder).returncode == 0
    card = hub.ModelCard.load(folder / "a" / "README.md")
    assert card.data.library_name == "peft" and card.data.eval_results is None
    args = ["--init", "a", "--merge", "--out", "b"]
    assert script("train.py", *args, cwd=folder).returncode == 0
    merged = hub.ModelCard.load(folder / "b" / "README.md")
    assert merged.data.library_name == "transformers" and "1 step of 2 pairs" in merged.text
    (folder / "a" / "settings.json").rename(folder / "settings.json")  # PEFT knows none
    (folder / "a" / "README.md").unlink()
    done = script("train.py", "--init", "a", "--merge", "--out", "c", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "put together" in hub.ModelCard.load(folder / "c" / "README.md").text
    (folder / "settings.json").rename(folder / "a" / "settings.json")
    (folder / "model" / "README.md").write_text("theirs")
    args = ["--ckpt", "model", "b", "--data", "train.tsv", "--rows", 2, "--max-new-tokens", 2]
    done = script("evaluate.py", *args, "--picture", "p.svg", cwd=folder)
    assert done.returncode == 0 and (folder / "p.svg").exists(), done.stderr
    assert (folder / "model" / "README.md").read_text() == "theirs"
    card = hub.ModelCard.load(folder / "b" / "README.md")
    assert card.data.eval_results is None and "the first 2 rows of `train.tsv`" in card.text
    args = ["--ckpt", "b", "--data", "train.tsv", "--max-new-tokens", 2]
    assert script("evaluate.py", *args, cwd=folder).returncode == 0
    results = hub.ModelCard.load(folder / "b" / "README.md").data.eval_results
    scores = json.loads((folder / "b" / "eval-train-2" / "scores.json").read_text())
    by_name = {x.dataset_config: x.metric_value for x in results if x.metric_type == "chrf"}
    assert by_name == {k: round(v["chrf"], 2) for k, v in scores["directions"].items()}
    # an own text in OUT is not replaced with the run
    (folder / "a" / "README.md").write_text("mine")
    done = script("train.py", "--model", "model", *small, "--out", "a", cwd=folder)
    assert done.returncode == 2 and "README.md" in done.stderr
    assert (folder / "a" / "README.md").read_text() == "mine"


def test_a_small_model_of_the_project_is_no_run(tmp_path):
    save_model(tiny(), tmp_path / "model", BASE)
    refresh_card(str(tmp_path / "model"))
    assert not os.path.exists(tmp_path / "model" / "README.md")

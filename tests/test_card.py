"""The model card of a run or a merged model, read by the Hub's own package."""

import os

import pytest
from conftest import BASE, tiny

from model import save_model
from plumbing.base.files import write_json
from plumbing.checkpoint.card import base_of, write_card
from plumbing.checkpoint.peft import LoraSettings, write_adapter_config

hub = pytest.importorskip("huggingface_hub")

SETTINGS = {
    "supervised": ["en-no", "no-en"],
    "base": {"name": "org/base-1", "folder": "x"},
    "stage": 2,
    "alpha": 0.05,
    "conflict": "target",
    "lr": 5e-4,
    "lora_rank": 8,
    "seed": 1,
    "prompt": ["Translate from {source} to {target}.", "{input}"],
    "data": ["/home/somebody/data/train.tsv"],
    "init": "/home/somebody/runs/stage1",
}
ROW = {"bleu": 12.345, "chrf": 30.0, "otr": 4.0}
ROW |= {"intervals": {"bleu": 1.0, "chrf": 2.0, "otr": 3.0}}
REPORT = {"directions": {"en-no": ROW, "no-en": ROW}, "average": {"supervised": ROW}}
REPORT |= {"decoding": "greedy", "settings": {"data": ["/home/somebody/test.tsv"]}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "eval-test").mkdir(parents=True)
    write_json(folder / "settings.json", SETTINGS)
    write_json(folder / "adapter_config.json", {})
    write_json(folder / "eval-test" / "scores.json", REPORT)
    return folder


def card_of(folder, **changes):
    if changes:
        write_json(folder / "settings.json", SETTINGS | changes)
    write_card(str(folder), "run")
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["run", 'a "no": \\ #\u2028\x85日😀', "- no", "null"])
def test_the_hub_reads_every_field_as_it_was_meant(run, name):
    write_card(str(run), name)
    data = hub.ModelCard.load(run / "README.md").data
    assert data.language == ["en", "no"]  # a bare no were false
    assert data.library_name == "peft" and data.pipeline_tag == "translation"
    assert data.base_model == "org/base-1" and "lora" in data.tags
    assert data.metrics == ["sacrebleu", "chrf"]


def test_it_says_how_the_model_was_tuned_and_is_asked_and_what_it_scores(run):
    text = card_of(run)
    assert "LoRA adapter of rank 8" in text and "`org/base-1`" in text
    assert "L_MLE + 0.05 L_UL (--conflict target)" in text and "learning rate 0.0005" in text
    assert "Translate from {source} to {target}.\n{input}\n" in text
    assert "## test" in text and "Decoding: greedy" in text
    for label in ("en-no", "no-en", "supervised, average"):
        assert f"| {label} | 12.3 ± 1.0 | 30.0 ± 2.0 | 4.0 ± 3.0 |" in text


def test_no_path_of_this_machine_is_in_it(run):
    text = card_of(run)
    assert "/home/" not in text and "somebody" not in text and str(run) not in text


@pytest.mark.parametrize(
    "changes, there, absent",
    [
        ({"alpha": 0}, "Stage 2: L_MLE, learning rate", "L_UL"),
        ({"prompt": {"en": {}}}, "Stage 2", "It is asked"),
        ({"base": {"folder": "mine"}}, "tuned from `mine`", "base_model"),
        ({"supervised": []}, "Stage 2", "Directions of"),
    ],
)
def test_what_the_settings_do_not_say_is_left_out(run, changes, there, absent):
    text = card_of(run, **changes)
    assert there in text and absent not in text


def test_of_a_merged_adapter_of_others_there_is_little_to_say(tmp_path):
    write_json(tmp_path / "settings.json", {"merged": True})
    text = card_of(tmp_path)
    assert "A whole model tuned from `its base`" in text
    assert hub.ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


def test_a_card_follows_the_evaluations_until_somebody_takes_it_over(run, capsys):
    card_of(run)
    (run / "eval-other.ptl").mkdir()
    write_json(run / "eval-other.ptl" / "scores.json", REPORT)
    text = card_of(run)
    assert "## other.ptl" in text
    lines = text.split("\n")
    (run / "README.md").write_text("\n".join([lines[0], *lines[2:], "my own words"]))
    assert card_of(run).endswith("my own words")
    assert "is not this program's" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place, stated, expected",
    [
        ("mine", {}, {"folder": "mine"}),
        ("mine", {"_name_or_path": "org/name-7b"}, {"folder": "mine", "name": "org/name-7b"}),
        ("mine", {"_name_or_path": "/home/somebody/name"}, {"folder": "mine"}),
        ("models--org--a--b/snapshots/0f", {}, {"folder": "0f", "name": "org/a--b"}),
    ],
)
def test_the_base_has_its_name_on_the_hub_where_it_is_known(tmp_path, place, stated, expected):
    os.makedirs(tmp_path / place)
    write_json(tmp_path / place / "config.json", stated)
    assert base_of(str(tmp_path / place)) == expected


def test_a_run_hands_the_base_on_and_an_adapter_names_it(tmp_path):
    save_model(tiny(), tmp_path / "base", BASE)
    (tmp_path / "adapter").mkdir()
    settings = LoraSettings(2, 4.0, ["q_proj"])
    write_adapter_config(str(tmp_path / "adapter"), settings, str(tmp_path / "base"))
    assert base_of(str(tmp_path / "adapter")) == {"folder": "base"}
    write_json(tmp_path / "adapter" / "settings.json", SETTINGS)
    assert base_of(str(tmp_path / "adapter")) == SETTINGS["base"]

"""The model card of a run or a merged model, read by the Hub's own package."""

import os
import shutil

import pytest
from conftest import BASE, tiny

from model import add_lora, save_model
from plumbing.base.files import write_json
from plumbing.base.folders import OLD, strange_files
from plumbing.checkpoint.card import base_of, make_card, write_card
from plumbing.checkpoint.peft import LoraSettings

hub = pytest.importorskip("huggingface_hub")

SETTINGS = {"supervised": ["en-no", "no-en"], "base": {"name": "org/base-1", "folder": "x"}}
SETTINGS |= {"stage": 2, "alpha": 0.05, "conflict": "target", "lr": 5e-4, "lora_rank": 8}
SETTINGS |= {"seed": 1, "prompt": ["Translate.", "{input}"], "data": ["/home/somebody/train.tsv"]}
ROW = {"bleu": 12.345, "chrf": 30.0, "otr": 4.0, "intervals": {"bleu": 1.0, "chrf": 2.0, "otr": 3}}
REPORT = {"directions": {"en-no": ROW, "no-en": ROW}, "average": {"supervised": ROW}}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "eval-test").mkdir(parents=True)
    write_json(tmp_path / "run" / "settings.json", SETTINGS)
    write_json(tmp_path / "run" / "adapter_config.json", {"r": 2})
    write_json(tmp_path / "run" / "eval-test" / "scores.json", REPORT | {"decoding": "greedy"})
    return tmp_path / "run"


@pytest.mark.parametrize("adapter", [True, False])
def test_the_hub_reads_every_field_as_it_was_meant(run, adapter):
    if not adapter:
        os.unlink(run / "adapter_config.json")
    write_card(str(run), "run")
    card = hub.ModelCard.load(run / "README.md")
    assert card.data.language == ["en", "no"] and card.data.base_model == "org/base-1"
    assert card.data.library_name == ("peft" if adapter else "transformers")
    assert card.data.pipeline_tag == "translation" and ("lora" in card.data.tags) == adapter
    assert "0.05 L_UL" in card.text and "Translate.\n{input}" in card.text
    assert "/home/" not in card.text and str(run) not in card.text


def test_the_card_of_a_chat_model_has_the_message_of_the_user(run):
    before = make_card(str(run), "run")
    write_json(run / "settings.json", SETTINGS | {"template": "chat"})
    text = make_card(str(run), "run")
    assert "chat template" in text and "chat template" not in before
    assert "Translate.\n{input}" in text


def test_an_adapter_on_a_whole_model_of_ours_has_that_model_as_its_base(tmp_path):
    save_model(tiny(), tmp_path / "merged", BASE)
    write_json(tmp_path / "merged" / "settings.json", {"base": {"folder": "x", "name": "org/old"}})
    start = str(tmp_path / "merged")
    assert base_of(start)["name"] == "org/old"  # gone on with as a whole
    assert base_of(start, inherit=False) == {"folder": "merged"}


@pytest.mark.parametrize(
    "odd",
    [
        {"base": "a text"},
        {"base": {"name": 3, "folder": None}},
        {"lr": "5e-4"},
        {"lr": None, "alpha": "much", "seed": None},
        {"supervised": ["en-no", 3, None]},
        {"supervised": "en-no"},
        {"prompt": [3]},
        {"prompt": None, "stage": None},
    ],
)
def test_a_card_is_written_whatever_settings_another_version_left(run, odd):
    write_json(run / "settings.json", SETTINGS | odd)
    write_json(run / "eval-test" / "scores.json", {"of": "another program"})
    write_card(str(run), "run")
    card = hub.ModelCard.load(run / "README.md")
    assert card.data.pipeline_tag == "translation" and "adapter of rank 2 " in card.text


def test_each_whole_evaluation_is_a_table(run):
    shutil.copytree(run / "eval-test", run / f"eval-test{OLD}")
    text = make_card(str(run), "run")
    row = " | 12.3 ± 1.0 | 30.0 ± 2.0 | 4.0 ± 3.0 |\n"
    assert text.count("\n## ") == 1 and "## test\n" in text and "Decoding: greedy" in text
    assert all(f"\n| {label}{row}" in text for label in ("en-no", "no-en", "supervised, average"))


def test_a_readme_of_somebody_else_stays_and_ours_follows_the_evaluations(run, capsys):
    write_card(str(run), "run")
    os.rename(run / "eval-test", run / "eval-other")
    write_card(str(run), "run")
    assert "## other\n" in (run / "README.md").read_text() and not strange_files(run)
    (run / "README.md").write_text("my notes")
    write_card(str(run), "run")
    assert (run / "README.md").read_text() == "my notes"
    assert "is not this program's" in capsys.readouterr().out


@pytest.mark.parametrize(
    "place, stated, name",
    [
        ("base", "org/base-1", "org/base-1"),
        ("base", "/home/somebody/base", None),
        ("hub/models--org--base-2/snapshots/0a1b", "x/y", "org/base-2"),
    ],
)
def test_the_base_of_a_run_has_a_name_where_one_is_known(tmp_path, place, stated, name):
    model, base, adapter = tiny(), tmp_path / place, tmp_path / "adapter"
    model.config.rest = {"_name_or_path": stated}
    save_model(model, base, BASE)
    expected = {"folder": base.name} | ({"name": name} if name else {})
    assert base_of(str(base)) == expected
    model.source = str(base)
    add_lora(model, LoraSettings(2, 2.0, ["q_proj"]))
    save_model(model, adapter)
    assert base_of(str(adapter)) == expected
    write_json(adapter / "settings.json", {"base": {"folder": "x", "name": "of/run"}})
    assert base_of(str(adapter)) == {"folder": "x", "name": "of/run"}

"""How an evaluation is checked and put together; as a whole: test_evaluate.py."""

import pytest
from conftest import BASE, TSV, tiny

import evaluate
from model import save_model
from plumbing.score import evaluation
from plumbing.base.errors import InputError
from plumbing.score.systems import read_systems
from plumbing.score.testset import read_test_set


@pytest.fixture
def place(tmp_path):
    save_model(tiny(), tmp_path / "model", BASE)
    rows = TSV.split("\n")
    header = rows[0].split("\t")
    blank = "\t".join(["", *rows[2].split("\t")[1:]])
    (tmp_path / "test.tsv").write_text("\n".join([*rows[:2], blank, rows[3], ""]), encoding="utf-8")
    return tmp_path, header[0]


def settings(place, **more):
    args = {"data": [str(place / "test.tsv")], "device": "cpu", "dtype": "fp32"}
    s = evaluate.Settings(ckpt=[str(place / "model")], max_new_tokens=3, **args, **more)
    systems = read_systems(s)
    return systems[0], read_test_set(s, systems)


def test_a_system_has_a_text_for_every_row_and_its_cost(place):
    folder, first = place
    system, test = settings(folder)
    prompter = evaluation.check(evaluate, system, test)
    assert system.settings.template == prompter.template == "alpaca"
    results, texts, cost = evaluation.evaluate_system(evaluate, system, prompter, test)
    assert results.keys() == texts.keys() == {"-".join(d) for d in test.corpus}
    assert all(len(rows) == 3 for rows in texts.values()) and cost["tokens"] > 0
    for (source, target), samples in test.corpus.items():
        name = f"{source}-{target}"
        assert results[name]["sentences"] == (2 if first in (source, target) else 3)
        assert (texts[name][1] == "") >= samples[1].blank and results[name]["sources_cut"] == 0


def test_what_leaves_no_room_is_said_before_anything_is_decoded(place, monkeypatch):
    monkeypatch.setattr(evaluate, "load_decoder", None)
    system, test = settings(place[0])
    system.settings.max_new_tokens = 505
    with pytest.raises(InputError, match="leaves no room for the prompt in 512"):
        evaluation.check(evaluate, system, test)

"""Averages, doubt, and what a report says of what it rests on."""

import numpy as np
import pytest

from evaluate import Settings
from plumbing.score.identify import make_identifier
from plumbing.score.report import Answers, Comparison, average, doubted, without
from plumbing.score.systems import read_systems

IDENTIFY = make_identifier("langid", ["en", "it", "nl"])


def scores_of(bleu, otr, **more):
    """The scores of a direction, with resampled ones about them."""
    spread = np.linspace(-2, 2, 1000)
    resampled = {"bleu": bleu + spread, "chrf": 3 * bleu + spread, "otr": otr + spread}
    scores = {
        "bleu": bleu,
        "chrf": 3.0 * bleu,
        "otr": otr,
        "floor": 2.0,
        "length_ratio": 0.9,
        "kinds": [],
    }
    scores |= {"mixed": 1.0, "mixed_floor": 0.5, "off_target": {"english": 1}, "sentences": 50}
    scores |= {"signature": "sig", "chrf_signature": "chr", "sources_cut": 0, "kinds": []}
    return scores | {"resampled": resampled} | more


def test_averages_are_over_directions():
    found = average([scores_of(10.0, 20.0), scores_of(20.0, 40.0, off_target={"empty": 2})])
    assert (found["bleu"], found["chrf"], found["otr"], found["floor"]) == (15, 45, 30, 2)
    assert found["off_target"] == {"english": 1, "empty": 2} and found["sentences"] == 100
    assert found["resampled"]["bleu"].mean() == pytest.approx(15)
    by_two = {"a": {"otr": 1.0, "floor": 0.0}, "b": {"otr": 3.0, "floor": 1.0}}
    rows = [scores_of(1.0, 1.0, identifiers=by_two, agreement=x) for x in (90.0, 100.0)]
    assert average(rows)["identifiers"] == by_two and average(rows)["agreement"] == 95


def test_doubt_compares_with_the_first_system():
    first, other = scores_of(10.0, 20.0), scores_of(10.0, 60.0)
    assert "p" not in doubted(first, None)
    found = doubted(other, first)
    assert found["intervals"]["bleu"] == pytest.approx(1.9, abs=0.01)
    assert found["p"]["otr"] < 0.01
    # SacreBLEU's p of equal figures is the smallest there is, but they do not differ
    assert found["p"]["bleu"] < 0.01 and found["differs"] == {
        "bleu": False,
        "chrf": False,
        "otr": True,
    }


def test_reports_of_several_checkpoints_are_named_apart(capsys):
    comparison = Comparison(
        [("it", "nl")], [("en", "it")], {"data": ["a.tsv", "b.tsv"]}, [IDENTIFY]
    )
    s = Settings(ckpt=["a/run", "b/run"])
    for n, system in enumerate(read_systems(s)):
        cost = {"tokens": 1234, "seconds": 1.2}
        results = {"it-nl": scores_of(1.0 + n, 2.0, sources_cut=2, shots_left_out=3)}
        report = comparison.add(system, results, cost)
    out = capsys.readouterr().out
    assert out.count("it-nl: 2 over-long sources cut\n") == 2
    assert out.count("it-nl: 3 prompts with fewer shots, to fit\n") == 2
    assert report["average"].keys() == {"zero-shot"} and report["seconds"] == 1.2
    assert set(report["versions"]) == {"sacrebleu", "langid", "torch"}
    assert report["identifiers"] == [IDENTIFY.describe()] and "resampled" not in str(report)
    assert set(report["directions"]["it-nl"]["p"]) == {"bleu", "chrf", "otr"}
    said = str(comparison)
    assert "a/run BLEU" in said and "b/run BLEU" in said
    assert "- b/run: greedy, 1,234 tokens, 1.2 s\n" in said
    assert "a.tsv b.tsv. SacreBLEU chr and sig." in said
    assert f"OTR in %, by {IDENTIFY.describe()}." in said and "differs from a/run" in said


def test_answers_have_a_line_each():
    answers = Answers({"general": ["a.json"]})
    for ppl, system in zip((None, 12.345), read_systems(Settings(ckpt=["x", "y"])), strict=True):
        scores = {"perplexity": ppl, "response_tokens": 5, "sentences": 3, "empty": 1, "words": 2.0}
        scores["sources_cut"] = 0
        answers.add(system, {"general": scores}, {"tokens": 9, "seconds": 1.0})
    said = str(answers)
    rows = {line.split("|")[1].strip(): line.split("|") for line in said.split("\n") if "|" in line}
    assert [cell.strip() for cell in rows["x"][2:4]] == ["-", "5"] and "12.35" in rows["y"][2]
    assert without({"a": {"b": 1, "c": [2]}, "b": 3}, "b") == {"a": {"c": [2]}}

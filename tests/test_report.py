"""Averages and tables."""

from plumbing.report import Comparison, average, table
from plumbing.systems import SystemSettings, read_systems


def test_averages_are_over_directions_and_the_table_shows_every_checkpoint():
    def report(shift):
        results = {
            f"{s}-{t}": {
                "bleu": 10.0 * i + shift,
                "otr": 20.0 * i,
                "floor": 2.0,
                "off_target": {"english": i},
                "sentences": 50,
            }
            for i, (s, t) in enumerate([("en", "it"), ("it", "nl"), ("nl", "it")])
        }
        return {
            "directions": results,
            "average": {
                k: average([results["-".join(p)] for p in pairs]) for k, pairs in parts.items()
            },
        }

    parts = {"supervised": [("en", "it")], "zero-shot": [("it", "nl"), ("nl", "it")]}
    one = report(0)
    assert one["average"]["zero-shot"] == {
        "bleu": 15.0,
        "otr": 30.0,
        "floor": 2.0,
        "off_target": {"english": 3},
        "sentences": 100,
    }
    text = table({"one": one, "two": report(5)}, parts)
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.split("\n")
        if "|" in line
    }
    assert rows["direction"] == ["floor", "one BLEU", "one OTR", "two BLEU", "two OTR"]
    assert rows["it→nl"] == ["2.0", "10.0", "20.0", "15.0", "20.0"]
    assert rows["**zero-shot, average**"] == ["2.0", "15.0", "30.0", "20.0", "30.0"]
    assert "- two: english 3.0, source 0.0, other 0.0, empty 0.0" in text


def test_reports_of_several_checkpoints_are_named_apart(capsys):
    scores = {"bleu": 1.0, "otr": 2.0, "floor": 0.5, "off_target": {}, "sentences": 3}
    scores |= {"signature": "sig", "sources_cut": 0}
    settings = {"data": ["a.tsv", "b.tsv"], "candidates": "en,it,nl"}
    comparison = Comparison([("it", "nl")], [("en", "it")], settings)
    s = SystemSettings(ckpt=["a/run", "b/run"])
    for system in read_systems(s):
        cost = {"tokens": 1234, "seconds": 1.2}
        report = comparison.add(system, {"it-nl": scores | {"sources_cut": 2}}, cost)
    assert capsys.readouterr().out.count("it-nl: 2 over-long sources cut\n") == 2
    assert report["average"].keys() == {"zero-shot"} and report["seconds"] == 1.2
    assert set(report["versions"]) == {"sacrebleu", "langid", "torch"}
    said = str(comparison)
    assert "a/run BLEU" in said and "b/run BLEU" in said
    assert "- b/run: greedy, 1,234 tokens, 1.2 s\n" in said
    assert said.endswith("a.tsv b.tsv. SacreBLEU sig. OTR in %, langid among en,it,nl.")

"""Markdown tables of several systems."""

from plumbing.score.tables import costs, doubts, table

PARTS = {"supervised": [("en", "it")], "zero-shot": [("it", "nl"), ("nl", "it")]}


def scores_of(bleu, otr, differs=False):
    scores = {"bleu": bleu, "chrf": 2 * bleu, "otr": otr, "floor": 2.0, "length_ratio": 0.987}
    scores |= {"mixed": 1.0, "mixed_floor": 0.5, "off_target": {"english": 3}, "sentences": 100}
    scores["intervals"] = {"bleu": 1.25, "chrf": 0.5, "otr": 3.0}
    return scores | {"differs": {"bleu": differs, "chrf": False}}


def report(shift, differs=False, **more):
    directions = {
        f"{s}-{t}": scores_of(10.0 * i + shift, 20.0 * i, differs)
        for i, (s, t) in enumerate([("en", "it"), ("it", "nl"), ("nl", "it")])
    }
    averages = {
        "supervised": scores_of(shift, 0.0),
        "zero-shot": scores_of(15.0 + shift, 30.0, differs),
    }
    averages = {title: scores | more for title, scores in averages.items()}
    cost = {"tokens": 1234, "seconds": 1.25, "decoding": "greedy"}
    return {"directions": directions, "average": averages} | cost


def cells(text):
    return {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.split("\n")
        if "|" in line
    }


def test_every_system_has_its_columns_and_a_star_where_it_differs():
    text = table({"one": report(0), "two": report(5, differs=True)}, PARTS)
    rows = cells(text)
    columns = ["one BLEU", "one len", "one OTR", "two BLEU", "two len", "two OTR"]
    assert rows["direction"] == ["floor", *columns]
    assert rows["it→nl"] == ["2.0", "10.0", "0.99", "20.0", "15.0*", "0.99", "20.0"]
    assert rows["**zero-shot, average**"] == [
        "2.0",
        "15.0",
        "0.99",
        "30.0",
        "20.0*",
        "0.99",
        "30.0",
    ]
    assert "- two: english 3.0, source 0.0, other 0.0, empty 0.0" in text
    assert len({len(line) for line in text.split("\n") if "|" in line}) == 1


def test_averages_stand_with_their_doubt_and_every_identifier():
    rows = cells(doubts({"one": report(0), "two": report(5, differs=True)}, PARTS))
    assert rows["average"] == ["BLEU", "chrF++", "OTR", "len", "mixed"]
    assert rows["zero-shot, two"] == [
        "20.0 ± 1.2*",
        "40.0 ± 0.5",
        "30.0 ± 3.0",
        "0.99",
        "1.0 (0.5)",
    ]
    more = {"identifiers": {"a": {"otr": 7.0, "floor": 1.0}}, "agreement": 98.0}
    rows = cells(doubts({"one": report(0, **more)}, PARTS))
    assert rows["average"][-2:] == ["OTR a", "agree"]
    assert rows["supervised, one"][-2:] == ["7.0 (1.0)", "98.0"]
    assert "zero-shot" not in doubts({"one": report(0)}, PARTS | {"zero-shot": []})


def test_what_each_cost():
    assert costs({"one": report(0)}).endswith("\n- one: greedy, 1,234 tokens, 1.2 s")

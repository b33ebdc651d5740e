import sacrebleu

from evaluate import off_target, score
from plumbing.corpora import Sample
from plumbing.metrics import identifier
from plumbing.report import average, table

IDENTIFY = identifier(["de", "en", "fr", "it", "nl", "ro", "zh"])
TEXT = {
    "en": "The file could not be opened because it is damaged.",
    "it": "Impossibile aprire il file perché è danneggiato.",
    "nl": "Het bestand kan niet worden geopend omdat het beschadigd is.",
    "fr": "Impossible d'ouvrir le fichier, car il est endommagé.",
    "ro": "Fișierul nu poate fi deschis deoarece este deteriorat.",
}


def test_langid_names_a_candidate_and_empty_text_has_no_language():
    assert {code: IDENTIFY(text) for code, text in TEXT.items()} == {code: code for code in TEXT}
    assert IDENTIFY("") == IDENTIFY(" \n") == "empty"
    only = identifier(["fr", "nl"])
    assert only(TEXT["en"]) in (
        "fr",
        "nl",
    )  # the candidate set restricts, and one set does not leak into another
    assert IDENTIFY(TEXT["en"]) == "en"


def test_every_wrong_output_is_off_target_and_named():
    texts = [TEXT["nl"], TEXT["en"], TEXT["it"], TEXT["fr"], "", "  ", TEXT["en"], TEXT["nl"]]
    otr, kinds = off_target(texts, [("it", "nl")] * 8, IDENTIFY)
    assert otr == 75.0 and kinds == {"english": 2, "source": 1, "other": 1, "empty": 2}
    otr, kinds = off_target([TEXT["en"], TEXT["ro"]], [("en", "ro")] * 2, IDENTIFY)
    assert otr == 50.0 and kinds == {
        "english": 1
    }  # an untranslated English source counts as English


def test_scores_are_sacrebleus_with_the_floor_of_the_references():
    samples = [
        Sample(("it", "nl"), TEXT["it"], TEXT["nl"]),
        Sample(("it", "nl"), TEXT["it"], TEXT["en"]),
    ]
    hypotheses = [TEXT["nl"].replace("beschadigd", "kapot"), TEXT["en"]]
    r = score(hypotheses, samples, IDENTIFY)
    assert r["bleu"] == sacrebleu.corpus_bleu(hypotheses, [[s.target for s in samples]]).score > 50
    assert r["otr"] == r["floor"] == 50.0 and "tok:13a" in r["signature"]
    chinese = [Sample(("en", "zh"), "hi", "无法打开文件")]
    r = score(["无法打开该文件"], chinese, IDENTIFY)
    assert "tok:zh" in r["signature"] and r["bleu"] > 20


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

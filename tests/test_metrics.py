"""SacreBLEU's figures, and those of answers to other instructions."""

import math

import pytest
import sacrebleu
from conftest import TEXT
from sacrebleu.significance import PairedTest

from evaluate import off_target
from plumbing.corpus.corpus import Sample
from plumbing.score.bootstrap import half_width, p_value
from plumbing.score.identify import make_identifiers
from plumbing.score.metrics import bleu_metric, compare_texts, score_answers, score_translations

REFERENCES = [f"{TEXT['nl']} {n} keer" for n in range(40)]
FIRST = [text if n % 3 else text[:30] for n, text in enumerate(REFERENCES)]
OTHER = [text.replace("bestand", "ding") if n % 4 else TEXT["en"] for n, text in enumerate(FIRST)]


def test_bleu_cuts_words_as_the_target_language_wants():
    assert "tok:13a" in str(signature("it")) and "tok:zh" in str(signature("zh"))


def signature(target):
    metric = bleu_metric(target)
    metric.corpus_score(["a b c d e"], [["a b c d e"]])
    return metric.get_signature()


def test_scores_intervals_and_p_values_are_sacrebleus_own():
    metrics = {"BLEU": sacrebleu.BLEU(), "chrF2++": sacrebleu.CHRF(word_order=2)}
    systems = [("first", FIRST), ("other", OTHER)]
    test = PairedTest(systems, metrics, [REFERENCES], test_type="bs", n_samples=1000, n_jobs=1)
    _, theirs = test()
    ours = [compare_texts(texts, [(x,) for x in REFERENCES], "nl") for _, texts in systems]
    for name, key in (("BLEU", "bleu"), ("chrF2++", "chrf")):
        for result, (scores, resampled) in zip(theirs[name], ours, strict=True):
            assert scores[key] == pytest.approx(result.score, abs=1e-9)
            assert half_width(resampled[key]) == pytest.approx(result.ci, abs=1e-9)
        (first, a), (other, b) = ours
        p = p_value(a[key], b[key], other[key] - first[key])
        assert p == pytest.approx(theirs[name][1].p_value, abs=1e-12)
    split = sacrebleu.tokenizers.tokenizer_13a.Tokenizer13a()
    lengths, expected = (sum(len(split(x).split()) for x in some) for some in (OTHER, REFERENCES))
    assert ours[1][0]["length_ratio"] == pytest.approx(lengths / expected)


def test_further_references_count():
    scores, _ = compare_texts(["a b c d e f"], [("x", "a b c d e f")], "nl")
    assert scores["bleu"] == pytest.approx(100) and "nrefs:2" in scores["signature"]


def test_a_direction_has_its_identifiers_their_floors_and_their_agreement():
    identifiers = make_identifiers(["langid"], "en,fr,de", [("it", "nl")])
    never = identifiers[0]._replace(name="never", classify=lambda text: ("fr", 1.0))
    samples = [Sample(("it", "nl"), TEXT["it"], TEXT["nl"])] * 4
    texts = [TEXT["nl"], TEXT["en"], TEXT["fr"], ""]
    both = [*identifiers, never]
    verdicts = {
        x.name: [off_target(some, [("it", "nl")] * 4, x) for some in (texts, [TEXT["nl"]] * 4)]
        for x in both
    }
    scores = score_translations(texts, samples, verdicts, both, {"it", "nl"})
    assert scores["otr"] == 75 and scores["floor"] == 0
    assert scores["off_target"] == {"english": 1, "other": 1, "empty": 1}
    assert scores["identifiers"] == {
        "langid": {"otr": 75, "floor": 0},
        "never": {"otr": 100, "floor": 100},
    }
    assert scores["agreement"] == 50  # French and the empty one
    assert len(scores["resampled"]["otr"]) == 1000 and 60 < scores["resampled"]["otr"].mean() < 90


def test_perplexity_is_of_all_tokens_of_all_processes():
    scores = score_answers(["a b", "", "c"], [(2.0, 3), (4.0, 5)])
    assert scores["perplexity"] == pytest.approx(math.exp(6 / 8)) and scores["empty"] == 1
    assert scores["words"] == 1 and score_answers(["a"], [(0.0, 0)])["perplexity"] is None

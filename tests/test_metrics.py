"""Language identification."""

from plumbing.metrics import identifier

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
    # the candidate set restricts, and one set does not leak into another
    assert only(TEXT["en"]) in ("fr", "nl")
    assert IDENTIFY(TEXT["en"]) == "en"

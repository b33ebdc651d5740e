"""Which directions an instruction asks for, and which it leaves in doubt."""

import pytest

from plumbing.corpus.instructions import read_direction


@pytest.mark.parametrize(
    "text, direction",
    [
        ("Translate the following sentences from English to Italian.", "en-it"),
        ("Translate this from Chinese to English:\nChinese: 你好\nEnglish:", "zh-en"),
        ("You are an English teacher. Translate from German to French.", "de-fr"),
        ("German to Czech", "de-cs"),
        ("German-to-Czech translation", "de-cs"),
        ("Translate from English to German. Do not explain.", "en-de"),
        ("Translate this English into German", "en-de"),
        ("Translate German into Czech", "de-cs"),
        ("Translate from the German into the Czech language", "de-cs"),
        ("Translate from the German language\ninto Czech", "de-cs"),
        ("Translate into Italian the following English sentence", "en-it"),
        ("Translate the English text below into Italian.", "en-it"),
        ("Translate to Chinese from English", "en-zh"),
        ("Translate into Chinese from the English text", "en-zh"),
    ],
)
def test_what_is_certain_is_read_in_any_order(text, direction):
    assert "-".join(read_direction(text)) == direction


@pytest.mark.parametrize(
    "text",
    [
        "Write a French translation of this English text",
        "Rewrite so that an English and a German reader understand",
        "Rewrite it so that it is clear to German and English readers",
        "Translate from English to German to French",
        "Translate from English to German, or from German to French",
        "Translate into Italian, or into Dutch, the English sentence",
        "Translate into Italian what the English and the German say",
        "Translate into Italian. English is the source; English it is",
        "Translate from English to English",
        "Translate from Latin to English",
        "Translate into Italian",
        "Use Germanic words to English ears",
        "Write a poem.",
        "The text was translated from English to German; translate it back into English.",
        "Do not translate from English to German, do the reverse.",
        "Reverse the translation from English to Italian.",
        "Translate this English to German dictionary entry into French.",
        "Translate into French this German to English phrase.",
        "Translate from Latin to English to German.",
        "Translate via English to German.",
        "Translate from Old English to German.",
        "Translate from non-English to German.",
        "Translate from Italian, Dutch or English to German.",
        "Translate from English to German or French.",
        "Translate from English to German, French and Dutch.",
        "Translate into English or French.",
        "Translate into Italian, not English.",
        "Translate into Italian instead of English.",
        "Translate into German, for an English reader.",
        "Translate into German. Do not answer in English.",
        "You are an English teacher. Translate into Italian.",
        "",
        None,
        7,
        ["from English to German"],
    ],
)
def test_doubt_is_no_direction(text):
    assert read_direction(text) is None

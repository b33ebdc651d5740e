"""Files as people have them: what is read of each, what is drawn, what bad ones are told."""

import gzip
import json
import os
import random

import pytest
from conftest import TSV

from data import Sample, read_samples, write_prompt
from plumbing.base.errors import InputError
from plumbing.base.files import write_json
from plumbing.corpus import corpus as corpora
from plumbing.corpus.corpus import draw, read_corpus
from plumbing.corpus.general import read_general
from plumbing.corpus.instructions import read_direction
from plumbing.corpus.languages import LANGUAGES, TEMPLATES, add_languages, read_prompts

EN, IT = ["open file", "a\u2028b", '"x'], ["apri il file", "c\x85d", "</s>"]
ROWS = list(zip(EN, IT, strict=True))
BOTH = {"en-it": ROWS, "it-en": [row[::-1] for row in ROWS]}


def put(path, data):
    data = data if isinstance(data, bytes) else data.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


def read(paths, *args, **how):
    corpus, _ = read_corpus(paths if isinstance(paths, list) else [paths], *args, **how)
    return {"-".join(direction): texts for direction, texts in corpus.items()}


def counts(paths, *args, **how):
    return {direction: len(texts) for direction, texts in read(paths, *args, **how).items()}


def asking(*instructions):
    return json.dumps([{"instruction": i, "input": "x", "output": "y"} for i in instructions])


# The formats

TABLE = "en\tit\n" + "".join(f"{en}\t{it}\n" for en, it in ROWS)
TEXTS = [{"en": en, "it": it} for en, it in ROWS]
RECORDS = [{"translation": texts, "id": 3} for texts in TEXTS]
THERE, BACK = "Translate from Italian to Dutch.", "Translate from Dutch to Italian."
LINES, ENDED = "\n".join(EN), "\n".join(IT) + "\n"
FORMATS = {
    "TSV": ({"a.tsv": TABLE}, "multi-parallel TSV, 3", BOTH),
    "CRLF": ({"a.tsv": TABLE.replace("\n", "\r\n")}, "multi-parallel TSV, 3", BOTH),
    "array": ({"a.json": json.dumps(RECORDS)}, "translation JSON, 3", BOTH),
    "indented": ({"a.json": "\n" + json.dumps(RECORDS, indent=2)}, "translation JSON, 3", BOTH),
    "JSON lines": ({"a": "\n\n".join(map(json.dumps, RECORDS))}, "translation JSON, 3", BOTH),
    "bare": ({"a.jsonl": "\n".join(map(json.dumps, TEXTS))}, "translation JSON, 3", BOTH),
    "Alpaca": (
        {"a.json": asking(THERE, BACK, THERE)},
        "Alpaca JSON, 3",
        {"it-nl": [("x", "y")] * 2, "nl-it": [("x", "y")]},
    ),
    "paired": ({"a.en-it.en": LINES, "a.en-it.it": ENDED}, "paired files, 3", BOTH),
    "IWSLT": ({"tst2017en-it.en": LINES, "tst2017en-it.it": ENDED}, "paired files, 3", BOTH),
    "IWSLT, sources": ({"tst2017it-en.it": ENDED, "tst2017en-it.en": LINES}, "paired", BOTH),
    "WMT": (
        {"wmt.en-it.src.en": LINES, "wmt.en-it.ref.A.it": ENDED, "wmt.en-it.ref.B.it": LINES},
        "paired files, 3",
        {"en-it": ROWS},
    ),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_recognised_and_read_to_the_letter(tmp_path, capsys, name, bom, packed):
    files, form, expected = FORMATS[name]
    paths = [
        put(tmp_path / (file + packed), b"\xef\xbb\xbf" * bom + text.encode())
        for file, text in files.items()
    ]
    assert read(paths[:1]) == expected
    said = capsys.readouterr().out
    assert form in said and all(f"  {d}: {len(x)} pairs\n" in said for d, x in expected.items())
    again = [f"{os.path.dirname(paths[0])}/./{os.path.basename(paths[0])}"]
    assert read(paths[:2] + again) == expected  # both sides, as a shell's * names them


def test_a_packed_copy_is_not_read_twice_and_members_of_gzip_are_one_text(tmp_path):
    plain, members = put(tmp_path / "a.tsv", TABLE), [TABLE[:9].encode(), TABLE[9:].encode()]
    (tmp_path / "a.tsv.gz").write_bytes(b"".join(map(gzip.compress, members)))
    assert read([plain, plain + ".gz"]) == read(plain + ".gz") == BOTH


def test_a_file_under_several_names_is_read_once(tmp_path):
    path = put(tmp_path / "a.tsv", TABLE)
    os.symlink(path, tmp_path / "b.tsv")
    assert read([path, str(tmp_path / "b.tsv"), os.path.relpath(path)]) == BOTH


def test_of_several_references_the_first_is_used_aloud_and_another_can_be_named(tmp_path, capsys):
    for name, text in [("src.en", "one\n"), ("ref.A.cs", "jedna\n"), ("ref.B.cs", "1\n")]:
        put(tmp_path / f"wmt.en-cs.{name}", text)
    assert read(f"{tmp_path}/wmt.en-cs.src.en") == {"en-cs": [("one", "jedna")]}
    assert "of 2 references the first" in capsys.readouterr().out
    assert read(f"{tmp_path}/wmt.en-cs.ref.B.cs") == {"en-cs": [("one", "1")]}


# Directions


@pytest.mark.parametrize(
    "a, b",
    [
        ("train-it-nl", "train-nl-it"),
        ("ted-ml.it-nl", "ted-ml.nl-it"),
        ("it-nl-clean", "nl-it-clean"),
    ],
)
def test_a_named_direction_comes_from_its_own_file(tmp_path, a, b):
    texts = {"it": "uno", "nl": "een"}, {"nl": "twee", "it": "due"}
    expected = {"it-nl": [("uno", "een")], "nl-it": [("twee", "due")]}
    paths = [
        put(tmp_path / f"{name}.json", json.dumps([{"translation": text}]))
        for name, text in zip((a, b), texts, strict=True)
    ]
    assert read(paths) == expected
    assert counts(paths[0]) == {"it-nl": 1, "nl-it": 1}
    if not a.endswith("clean"):  # paired files too
        for name, text in zip((a, b), texts, strict=True):
            paths += [put(tmp_path / f"{name}.{code}", text[code]) for code in text]
        assert read(paths[2:]) == expected


@pytest.mark.parametrize("name", ["en-it-nl.json", "no-names.json", "en-it.and.it-en.json"])
def test_a_name_with_three_languages_or_two_directions_names_none(tmp_path, name):
    text = json.dumps([{"it": "a", "nl": "b"}])
    paths = [put(tmp_path / name, text), put(tmp_path / "nl-it.json", text)]
    assert counts(paths) == {"it-nl": 2, "nl-it": 2}
    # a row that says its direction belongs to it, whatever the files are called
    paths = [put(tmp_path / name, asking(THERE, BACK)) for name in ("it-nl.json", "nl-it.json")]
    assert counts(paths) == {"it-nl": 2, "nl-it": 2}


@pytest.mark.parametrize(
    "wanted, found",
    [
        ("it-nl,en-it", ["it-nl", "en-it"]),
        ("supervised", ["en-it", "en-nl", "it-en", "nl-en"]),
        ("zero-shot", ["it-nl", "nl-it"]),
        ("en-de", None),
        ("", None),
        ("supervised,all", None),
    ],
)
def test_directions_are_chosen_or_refused_with_what_the_data_has(tmp_path, wanted, found):
    paths = [put(tmp_path / "a.tsv", TABLE), put(tmp_path / "b.tsv", "en\tnl\tit\na\tb\tc\n")]
    if found:
        assert sorted(read(paths, wanted)) == sorted(found)
    else:
        with pytest.raises(InputError, match=f"--directions {wanted}: .* en-it 4, it-en 4"):
            read(paths, wanted)


@pytest.mark.parametrize(
    "text, direction",
    [
        ("Translate the following sentences from English to Italian.", "en-it"),
        ("German-to-Czech translation", "de-cs"),
        ("Translate from the German language\ninto Czech", "de-cs"),
        ("Translate into Italian the following English sentence", "en-it"),
        ("Write a French translation of this English text", None),
        ("Translate from English to German to French", None),
        ("Translate into Italian", None),
        ("Translate the following English text to German.", "en-de"),
        ("Translate this English sentence to Italian.", "en-it"),
        ("Translate this English to German", "en-de"),
        ("Translate to German:", None),
        ("translate the following text from english to german.", "en-de"),
        ("Translate the English sentence to German and French.", None),
        ("Do not translate from English to German, do the reverse.", None),
        ("Translate from Old English to German.", None),
        ("Write a poem.", None),
        (None, None),
    ],
)
def test_the_direction_of_an_instruction_is_certain_or_none(text, direction):
    assert read_direction(text) == (direction and tuple(direction.split("-")))


ENGLISH_TO_GERMAN = "Translate the following text from English to German."
HINT = "Prices are stable.\n\n### Hint: We prefer to translate it to"


@pytest.mark.parametrize(
    "instruction",
    [
        "Score the following translation from English to German.",
        "Is the following translation from English to German correct? Answer yes or no.",
        "Mark the errors in this translation from English to German.",
        "Improve the following translation from English to German.",
        "Summarize the following text and translate it from English to German.",
        "Translate the following text from English to German (Austria).",
        "Translate the following text from Simplified Chinese to German.",
        "Translate from English to German in a formal tone.",
        "Translate from English to German with the glossary below.",
        "Which translation from English to German is better?",
        "Paraphrase this translation from English to German.",
        "Translate from English to German, then back to English.",
        "Translate from English to German and explain the grammar.",
        "Write the source text of the following translation from English to German.",
        "Provide the source sentence for this translation from English to German.",
        "Translate word for word from English to German.",
    ],
)
def test_an_instruction_that_asks_for_more_than_a_translation_is_none(
    tmp_path, capsys, instruction
):
    assert read_direction(instruction) is None
    rows = [{"instruction": x, "input": "a", "output": "b"} for x in (instruction, THERE)]
    path = put(tmp_path / "a.json", json.dumps(rows))
    with pytest.raises(InputError, match="entry 1: instruction .* no certain pair .*plain"):
        read(path)
    assert counts(path, skip_unknown=True) == {"it-nl": 1}
    assert "  1 left out: instructions that are no plain" in capsys.readouterr().out
    assert read_general([path]) == [(instruction, "a", "b")]


@pytest.mark.parametrize(
    "source, target",
    [
        (HINT, "<p>Preise sind stabil</p> rather than <p>Preise stehen fest</p>"),
        (HINT.replace("\n\n", " "), "Preise sind stabil."),
        ("Hello.", "<v>Hallo</v>."),
        ("Source: Hello.\nTranslation: Hallo.", "Guten Tag."),
        ("English: Hello.", "Hallo."),
        ("Glossary: cat = Katze\nA cat.", "Eine Katze."),
        ("A cat.\nFormality: formal", "Eine Katze."),
        ("Domain: medical\nA cat.", "Eine Katze."),
        ("A cat.", "German: Eine Katze."),
        ("A cat.", "Translation: Eine Katze."),
        ("A cat.", "Sure! Here it is:\n\nEine Katze."),
        ("A cat.", "Eine Katze.\n\nNote: it can also be male."),
        ("Hello.\nHint: be formal", "Guten Tag."),
    ],
)
def test_a_translation_with_hints_or_labels_is_no_pair(tmp_path, capsys, source, target):
    row = {"instruction": ENGLISH_TO_GERMAN, "input": source, "output": target}
    path = put(tmp_path / "a.json", json.dumps([row, row | {"input": "Note: b", "output": "W: b"}]))
    with pytest.raises(InputError, match="entry 1: .*hints or labels"):
        read(path)
    assert counts(path, skip_unknown=True) == {"en-de": 1}  # a label on both sides is text
    assert "1 left out: translations with hints" in capsys.readouterr().out
    assert len(read_general([path])) == 1


@pytest.mark.parametrize(
    "instruction, output, expected",
    [
        ("Translate this from German to English:\nGerman: Guten Tag\nEnglish:", "Hi", "Guten Tag"),
        ("Translate the following sentence from German to English: Guten Tag", "Hi", "Guten Tag"),
        ("Translate the German text into English.\nGerman: a\nb\nEnglish:", "c", "a\nb"),
        ('Translate from German to English: "Guten Tag"', '"Hi"', '"Guten Tag"'),
        ('Translate from German to English: "Guten Tag"', "Hi", None),
        ("Translate from German to English:\nGuten Tag\n\nBe formal.", "Hi", None),
        ("Score this, from German to English: Guten Tag", "3", None),
        ("Translate from German to English.\nUse a formal tone.", "Hi", None),
        ("Translate from German to English: Guten Tag. Sei höflich.", "Good day.", None),
    ],
)
@pytest.mark.parametrize("blank", ["", None, " "])
def test_a_sentence_inside_its_instruction_is_read_where_it_is_certain(
    tmp_path, instruction, output, expected, blank
):
    row = {"instruction": instruction, "input": blank, "output": output}
    path = put(tmp_path / "a.json", json.dumps([row]))
    if expected:
        assert read(path) == {"de-en": [(expected, output)]}
        with pytest.raises(InputError, match="nothing is left; 1 translations"):
            read_general([path])
    else:
        with pytest.raises(InputError, match="entry 1: instruction .*no certain pair"):
            read(path)


@pytest.mark.parametrize(
    "source, target",
    [
        ("Error connecting to the server: timeout", "Fehler bei der Verbindung zum Server: aus"),
        ("Answer the following question: why?", "Beantworten Sie die folgende Frage: warum?"),
        ("Notebook: open", "Notizbuch – offen"),
        ("Germany: a winter's tale", "Deutschland. Ein Wintermärchen"),
        ("### Install\nRun it.", "### Installation\nStarten Sie es."),
        ("<b>Open</b> it", "<b>Öffnen</b>"),
    ],
)
def test_a_sentence_with_a_colon_or_marks_of_its_own_is_a_sentence(tmp_path, source, target):
    row = {"instruction": ENGLISH_TO_GERMAN, "input": source, "output": target}
    assert read(put(tmp_path / "a.json", json.dumps([row]))) == {"en-de": [(source, target)]}


@pytest.mark.parametrize("field", ["history", "system", "context", "formality"])
def test_a_row_with_more_than_our_prompts_hold_is_named_and_counted(tmp_path, capsys, field):
    rows = [{"instruction": THERE, "input": "a", "output": "b"} for _ in range(2)]
    rows[0][field] = [["Hello", "Ciao"]] if field == "history" else "Be formal."
    rows[1][field] = [] if field == "history" else ""
    path = put(tmp_path / "a.json", json.dumps(rows))
    with pytest.raises(InputError, match=f"entry 1: .*instructions with '{field}'"):
        read(path)
    assert counts(path, skip_unknown=True) == {"it-nl": 1}
    assert f"1 left out: instructions with '{field}'" in capsys.readouterr().out
    rows[1] = {"instruction": "Name a colour.", "output": "Red."}
    put(tmp_path / "a.json", json.dumps(rows))
    assert len(read_general([path])) == 1 and f"with '{field}'" in capsys.readouterr().out


def test_rows_of_another_form_are_named_and_counted(tmp_path, capsys):
    chat = {"conversations": [{"from": "human", "value": "Hello"}]}
    rows = [chat, {"instruction": THERE, "input": "a", "output": "b"}, "text", {"inputs": "a"}]
    path = put(tmp_path / "a.json", json.dumps(rows))
    with pytest.raises(InputError, match="entry 1: .*conversations.*another form.*expected"):
        read(path)
    assert counts(path, skip_unknown=True) == {"it-nl": 1}
    assert "  3 left out: rows of another form" in capsys.readouterr().out


@pytest.mark.parametrize("code, here", [("zh-CN", "zh"), ("pt_BR", "pt"), ("en-US", "en")])
def test_a_code_with_a_region_is_told_what_it_is_called_here(tmp_path, code, here):
    with pytest.raises(InputError, match=f"{code} is called {here} here"):
        read(put(tmp_path / "a.tsv", f"it\t{code}\na\tb\n"))


@pytest.mark.parametrize("wanted", ["en->it", "en_it", "en→it", "en-it;it-en", "english-italian"])
def test_what_is_no_direction_is_said_to_be_none(tmp_path, wanted):
    path = put(tmp_path / "a.tsv", TABLE)
    with pytest.raises(InputError, match="is no direction; expected .*en-it"):
        read(path, wanted)
    assert [*read(path, "en-it, it-en")] == ["en-it", "it-en"]


# What is no sentence


def iwslt(rows, translator):
    """A side of IWSLT's train.tags: a talk's tags before its sentences."""
    tags = ["<url>http://x.org/1</url>", "<keywords>talks</keywords>", "<talkid>1</talkid>"]
    tags += ["<title>A title</title>", "<description>About it.</description>"]
    talk = [
        *tags,
        f"<translator>{translator}</translator>",
        *rows,
        '<reviewer href="x">B</reviewer>',
    ]
    return "\n".join([*talk, '<doc docid="2">', "</doc>", ""])


@pytest.mark.parametrize("name", ["train.tags.en-it", "ted.en-it"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_the_tags_of_iwslt_are_no_sentences(tmp_path, capsys, name, packed):
    rows = ["It is <b>so</b>.", "Yes."], ["È <b>così</b>.", "Sì."]
    path = put(tmp_path / f"{name}.en{packed}", iwslt(rows[0], "A"))
    more = "<translator>C</translator>\n"  # the tags of two sides need not be as many
    put(tmp_path / f"{name}.it{packed}", iwslt(rows[1], "B") + more)
    assert read(path)["en-it"] == [*zip(*rows, strict=True)]
    assert "without IWSLT's tags, 2 rows" in capsys.readouterr().out


def test_a_sentence_that_begins_with_a_tag_is_a_sentence(tmp_path):
    rows = [("<title> is the tag of titles", "<title> è il tag"), ("<url> is unknown", "<url> è")]
    for name in ("a.en-it", "train.tags.en-it"):
        for side, code in enumerate(("en", "it")):
            path = put(tmp_path / f"{name}.{code}", "".join(f"{row[side]}\n" for row in rows))
        assert read(path)["en-it"] == rows


@pytest.mark.parametrize("code", ["id", "no"])
def test_a_column_that_numbers_the_rows_is_no_language(tmp_path, code):
    path = put(tmp_path / "a.tsv", f"{code}\ten\tit\n1\tHello\tCiao\n")
    with pytest.raises(InputError, match=f"line 2: is {code} 1 a text, or the row's name"):
        read(path)
    texts = f"{code}\ten\nHalo 2\tHello 2\n"
    assert counts(put(tmp_path / "b.tsv", texts)) == {f"{code}-en": 1, f"en-{code}": 1}


SGM = '<srcset setid="x" srclang="any">\n<doc docid="1">\n<seg id="1">a</seg>\n</doc>\n</srcset>\n'
XML = '<?xml version="1.0" encoding="UTF-8"?>\n<mteval><seg id="1">a</seg></mteval>\n'


@pytest.mark.parametrize("text", [SGM, XML])
@pytest.mark.parametrize("name", ["newstest-src.en.sgm", "tst2017.en-it.en", "t.en-it.en.xml"])
def test_xml_is_refused_with_how_it_becomes_lines(tmp_path, name, text):
    path = put(tmp_path / name, text)
    put(tmp_path / "tst2017.en-it.it", text)
    with pytest.raises(
        InputError, match=f"{name}.* is XML; expected a sentence a line.*docs/data.md"
    ):
        read(path)


@pytest.mark.parametrize("headed", ["en\tit", '"en"\t"it"'])
def test_a_spreadsheets_quotes_are_no_text(tmp_path, capsys, headed):
    text = headed + '\n"He said ""no"" twice."\tDisse no.\n"Yes, please"\t"""Sì"""\nplain\t#N/A\n'
    rows = [('He said "no" twice.', "Disse no."), ("Yes, please", '"Sì"')]
    assert read(put(tmp_path / "a.tsv", text))["en-it"] == rows
    said = capsys.readouterr().out
    assert "TSV of a spreadsheet" in said and "2 pairs; 1 with a blank side" in said
    # quotes that somebody wrote stay
    rows = [('"Yes"', '"Sì"'), ('say "x" twice', 'dire "x"'), ('"a" and "b"', '"a" e "b"')]
    text = "en\tit\n" + "".join(f"{en}\t{it}\n" for en, it in rows)
    assert read(put(tmp_path / "b.tsv", text))["en-it"] == rows


def test_a_line_break_in_a_cell_is_said_to_be_none(tmp_path):
    with pytest.raises(InputError, match="line 3: 1 columns, .*no line break"):
        read(put(tmp_path / "a.tsv", 'en\tit\n"a\nb"\tc\n'.replace('"a\n', '"x ""y"""\tz\n"a\n')))


def test_files_that_were_joined_leave_no_marks_and_no_headers(tmp_path):
    bom = "\ufeff"
    joined = f"{bom}en\tit\na\tb\n{bom}en\tit\nc\t{bom}d\n"
    assert read(put(tmp_path / "a.tsv", joined))["en-it"] == [("a", "b"), ("c", "d")]
    with pytest.raises(InputError, match="line 3: found it en again, in another order"):
        read(put(tmp_path / "b.tsv", "en\tit\na\tb\nit\ten\nc\td\n"))
    text = f'{bom}{{"en": "a", "it": "b"}}\n{bom}{{"en": "c{bom}", "it": "d"}}\n'
    assert read(put(tmp_path / "c.jsonl", text))["en-it"] == [("a", "b"), ("c", "d")]
    put(tmp_path / "d.en-it.it", f"b\n{bom}d\n")
    assert read(put(tmp_path / "d.en-it.en", f"{bom}a\n{bom}c\n"))["en-it"] == [
        ("a", "b"),
        ("c", "d"),
    ]


# Languages of one's own


def test_a_language_of_ones_own_is_read_asked_for_and_named(tmp_path):
    before = dict(LANGUAGES)
    path = put(
        tmp_path / "more.json", '{"my": "Burmese", "ceb": "Cebuano", "ht": "Haitian Creole"}'
    )
    try:
        add_languages(path)
        add_languages(path)  # twice is once
        assert read_direction("translate from haitian creole to english.") == ("ht", "en")
        rows = [{"instruction": "Translate from Burmese to English.", "input": "a", "output": "b"}]
        assert read(put(tmp_path / "a.json", json.dumps(rows))) == {"my-en": [("a", "b")]}
        put(tmp_path / "t.en-ceb.ceb", "b\n")
        assert counts(put(tmp_path / "t.en-ceb.en", "a\n")) == {"en-ceb": 1, "ceb-en": 1}
        assert counts(put(tmp_path / "b-en-my.tsv", "en\tmy\na\tb\n")) == {"en-my": 1, "my-en": 1}
        assert "to Burmese." in write_prompt("alpaca", Sample(("en", "my"), "a", "b"))
    finally:
        LANGUAGES.clear()
        LANGUAGES.update(before)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"my": 3}', "'my': 3; expected"),
        ('{"zh-CN": "Chinese"}', "'zh-CN'.*expected"),
        ('{"it": "Sicilian"}', "the code it means Italian already"),
        ('{"xx": "Italian"}', "Italian has the code it already"),
        ('["my"]', "holds list; expected"),
    ],
)
def test_a_file_of_languages_that_cannot_be_is_refused(tmp_path, text, said):
    before = dict(LANGUAGES)
    with pytest.raises(InputError, match=f"m.json.*{said}"):
        add_languages(put(tmp_path / "m.json", text))
    assert LANGUAGES == before


# Counts, blank rows, rows that are left out


def test_blank_pairs_are_left_out_aloud_and_duplicates_stay(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\tnl\n a \tb\tc\na\tb\t\n\tb\tc\na\tb\tc\n")
    assert read(path, "en-it,it-nl") == {"en-it": [("a", "b")] * 3, "it-nl": [("b", "c")] * 3}
    said = capsys.readouterr().out
    assert said.count(": 3 pairs; 1 with a blank side left out\n") == 2
    path = put(tmp_path / "b.tsv", "en\tit\tnl\na\tb\t\nc\t\td\n")
    assert "it-nl" not in read(path) and "  it-nl: 0 pairs; 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="it-nl 0"):
        read(path, "it-nl,en-it")


def test_blank_rows_can_be_kept_in_their_places(tmp_path):
    path = put(tmp_path / "a.tsv", "en\tit\na\tb\n\tc\nd\t\ne\tf\n\t\n")
    expected = [("a", "b"), ("", "c"), ("d", ""), ("e", "f"), ("", "")]
    assert read(path, "en-it", keep_blank=True) == {"en-it": expected}


@pytest.mark.parametrize("pairs", [0, 2])
def test_rows_without_a_certain_direction_are_refused_or_left_out_aloud(tmp_path, capsys, pairs):
    path = put(tmp_path / "a.json", asking(THERE, "Write a poem.", THERE))
    with pytest.raises(InputError, match="entry 2: instruction 'Write a poem.' .*--skip-unknown"):
        read(path)
    table = put(tmp_path / "b.tsv", "en\tit\txx\na\tb\tc\n")
    with pytest.raises(InputError, match="found en it xx; .*--skip-unknown"):
        read(table)
    found = counts([path, table], skip_unknown=True, pairs=pairs)
    assert found == {"it-nl": 2, "en-it": 1, "it-en": 1}
    said = capsys.readouterr().out  # once, though they are read twice
    assert said.count("  1 left out: instructions") == said.count("  1 left out: texts in xx") == 1


# Drawing

WORDS = ["a", "bé", "\u2028", "open", "файл", "", " ", "x\\y", '"q"', "c\x85d", "]", "{"]


def some_files(rng, folder):
    """The paths of a random corpus: each format, with blank sides and duplicates."""
    rows = [rng.choices(WORDS, k=3) for _ in range(rng.randint(20, 60))]
    records = [{"translation": dict(zip(("en", "it", "nl"), row, strict=True))} for row in rows]
    made = [{"instruction": THERE, "input": a, "output": b} for a, b, _ in rows]
    texts = {
        "a.tsv": "it\tnl\ten\n" + "".join("\t".join(row) + "\n" for row in rows),
        "b-it-en.json": json.dumps(records, ensure_ascii=False),
        "c.jsonl": "\n".join(map(json.dumps, records)),
        "d.json": json.dumps(made),
        "e.en-it.en": "".join(a + "\n" for a, *_ in rows),
    }
    put(folder / "e.en-it.it", "".join(b + "\n" for _, b, _ in rows))
    return [put(folder / name, text) for name, text in texts.items()]


@pytest.mark.parametrize("seed", range(6))
def test_drawing_while_reading_is_a_shuffle_of_the_list_in_memory(tmp_path, capsys, seed):
    rng = random.Random(seed)
    paths = some_files(rng, tmp_path)
    for files in [[path] for path in paths] + [paths]:
        pairs, start = rng.choice([1, 3, 10, 1000]), rng.randrange(9)
        whole, expected = read(files), {}
        said = capsys.readouterr().out
        for direction, texts in whole.items():
            expected[direction] = texts[:]
            draw_of = random.Random(f"{start} {tuple(direction.split('-'))}")
            draw_of.shuffle(expected[direction])
            del expected[direction][pairs:]
        assert read(files, pairs=pairs, seed=start) == expected
        assert capsys.readouterr().out == said


def test_samples_are_in_the_order_of_the_draw_however_many_are_asked_for(tmp_path):
    path = put(tmp_path / "a.tsv", TSV)
    whole = read_corpus([path])[0]["en", "it"]
    expected = [Sample(("en", "it"), *whole[n]) for n in draw(40, 0, 5, ("en", "it"))]
    assert read_samples([path], "en-it", seed=5) == expected
    assert read_samples([path], "en-it", pairs=7, seed=5) == expected[:7]
    assert read_samples([path], "en-it", pairs=7, seed=6) != expected[:7]


def test_data_that_is_not_there_in_the_second_pass_is_refused(tmp_path, monkeypatch):
    path, fetch = put(tmp_path / "a.tsv", TSV), corpora.fetch_samples

    def change(*args):
        put(tmp_path / "a.tsv", TSV[: TSV.index("open file 20")])
        return fetch(*args)

    monkeypatch.setattr(corpora, "fetch_samples", change)
    with pytest.raises(InputError, match="the data changed while it was read"):
        read(path, pairs=50)


# Refusals: (name, data, what the sentence has)

DAMAGED = [
    ("e.txt", "just text\n", "line 1: 'just text'; expected JSON"),
    ("e.tsv", "en\tit\n\t\n", "en-it 0, it-en 0"),
    ("a.tsv", b"en\tit\na\tb\n\xff\tc\n", "a.tsv, line 3: byte 0xff"),
    ("a.jsonl", b'{"en": "a", "it": "b"}\n{"en": "\xe9"}', "a.jsonl, line 2: byte 0xe9"),
    ("a.tsv", "en\tit\na\tb\nx\0y\tz\n", "a.tsv, line 3: the en side .*NUL"),
    ("a.json", '[{"en": "x\\u0000y", "it": "z"}]', "entry 1: the en side .*NUL"),
    ("a.json", '[{"en": "x\\ud800y", "it": "z"}]', "entry 1: the en side"),
    ("a.tsv", "en\tit\na\tb\nc\n", "a.tsv, line 3: 1 columns, expected 2"),
    ("a.tsv", "en\ten\na\tb\n", "line 1: 'en.ten'; .*different"),
    ("a.tsv", "en\txx\na\tb\n", "line 2: found en xx; expected some of ar bg"),
    ("a.json", '[{"translation": {"en": "a"}}]', "entry 1: found en; expected some of"),
    ("a.json", '[{"en": "a", "it": null}]', "entry 1: the it side is null or missing"),
    ("a.json", '[{"en": "a", "it": "b", "score": "c"}]', "found en it score"),
    ("a.json", '[{"en": "a", "it": NaN}]', "the it side is nan; expected text"),
    ("a.json", asking(3), "instruction is 3; expected text"),
    ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "a table of Arrow or Parquet; .*JSON lines"),
    ("a.parquet", b"PAR1\x15\x04", "a table of Arrow or Parquet"),
    ("a.xlsx", b"PK\x03\x04\x14\0", "a spreadsheet; .* save it as TSV"),
    ("a.tsv", "en\tit\na\tb\n".encode("utf-16"), "UTF-16; expected UTF-8"),
    ("a.tsv", "en\tit\na\tb\n".encode("utf-16-le"), "NUL in its first line"),
    (
        "a.tgz",
        gzip.compress(b"train.tsv" + b"\0" * 500, mtime=0),
        "NUL in its first line.*an archive",
    ),
    ("a.json", '[{"id": 17, "en": "a", "it": "b"}]', "is id 17 Indonesian"),
    ("a.json", '[{"en":\n "a",\n "it": "b"}', "a.json, line 3: not valid JSON"),
    ("a.json", "[" * 100_000, "line 1: not valid JSON"),
    ("a.json", '[{"n": ' + "1" * 5000 + "}]", "line 1: not valid JSON .*digits"),
    ("a.json", json.dumps([{"x\nerror: all is well\x1b": "y" * 10**6}]), "entry 1"),
    ("a.en-it.en", "a\n", "its other side is missing; expected .*a.en-it.it"),
    ("a.en-it.src.en", "a\n", "its other side is missing; .*a.en-it.ref"),
    ("a.tsv.gz", gzip.compress(b"en\tit\na\tb\n", mtime=0)[:-9], "damaged gzip, near line"),
    ("a.tsv.gz", gzip.compress(b"en\tit", mtime=0) + b"more", "damaged gzip"),
]


@pytest.mark.parametrize("name, data, said", DAMAGED, ids=lambda x: repr(x)[:30])
def test_bad_data_gets_one_sentence_with_file_and_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=said) as error:
        read(str(tmp_path / name))
    assert name in str(error.value) and str(error.value).isprintable()
    assert len(str(error.value)) < 1100


def test_unequal_pairs_and_paths_that_are_no_files_are_refused(tmp_path):
    path = put(tmp_path / "a.en-it.en", "a\nb\n")
    put(tmp_path / "a.en-it.it", "a\nb\nc\nd\n")
    os.mkfifo(tmp_path / "pipe.tsv")
    for bad, said in [
        (path, "a.en-it.en: 2 lines, but .*a.en-it.it: 4 lines"),
        (tmp_path / "none.tsv", "none.tsv: no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "pipe.tsv", "is a pipe"),
    ]:
        with pytest.raises(InputError, match=said):
            read(bad)


# Other instructions

GENERAL = [
    {"instruction": "Name three colours.", "input": "", "output": "Red,\ngreen, blue."},
    {"instruction": "Count the words.", "input": " one two", "output": "2"},
    {"instruction": "Say hello.", "output": "Hello!"},
]


@pytest.mark.parametrize("lines", [False, True])
def test_other_instructions_come_without_translations_and_blank_ones(tmp_path, capsys, lines):
    more = [{"instruction": THERE, "output": "x"}, {"instruction": "Be silent.", "output": " "}]
    records = GENERAL + more
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    assert read_general([put(tmp_path / "g.json", text)]) == [
        ("Name three colours.", "", "Red,\ngreen, blue."),
        ("Count the words.", "one two", "2"),
        ("Say hello.", "", "Hello!"),
    ]
    said = capsys.readouterr().out
    assert "other instructions, 3 rows" in said and "1 left out: translations" in said
    assert "1 left out: without" in said and read_general([]) == []


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expected JSON of"),
        ("en\tit\na\tb\n", "'en.tit.*; expected JSON of"),
        ("[]", "nothing is left; expected JSON of"),
        (asking(THERE), "nothing is left; 1 translations"),
        ('[{"instruction": 3}]', "entry 1: .*; expected JSON of"),
        ('[{"instruction": "a", "output": "b\\u0000"}]', "output is .*NUL"),
    ],
)
def test_what_is_no_instruction_file_is_one_sentence(tmp_path, text, said):
    with pytest.raises(InputError, match=f"a.json.*{said}"):
        read_general([put(tmp_path / "a.json", text)])


# Prompts


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_names_both_languages_and_holds_the_text_once(template):
    known = TEMPLATES[template] if template == "ptl" else LANGUAGES
    for source in known:
        for target in known.keys() - {source}:
            prompt = write_prompt(template, Sample((source, target), "{x} <text>", ""))
            names = known[target]["names"] if template == "ptl" else LANGUAGES
            assert prompt.count("{x} <text>") == 1 and prompt == prompt.strip()
            assert names[source] in prompt and names[target] in prompt


@pytest.mark.parametrize("lines", [["no text"], ["{input} {sauce}"], {"en": {"prompt": []}}])
def test_a_template_that_would_fail_later_is_said_when_it_is_read(tmp_path, lines):
    good = {"languages": {"en": "English"}, "templates": {"a": ["{source}", "{input}"]}}
    write_json(tmp_path / "p.json", good)
    assert read_prompts(tmp_path / "p.json") == (good["languages"], good["templates"])
    write_json(tmp_path / "p.json", good | {"templates": {"a": lines}})
    with pytest.raises(InputError, match="p.json: template a"):
        read_prompts(tmp_path / "p.json")

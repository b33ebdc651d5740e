"""Files as people have them: what is read from each, and the sentence that bad ones get."""

import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc

import pytest
from conftest import ROOT, TSV

from plumbing.base.errors import InputError
from plumbing.base.files import write_json
from plumbing.corpus import corpus as corpora
from plumbing.corpus.corpus import draw, read_corpus
from plumbing.corpus.general import read_general
from plumbing.corpus.languages import (
    GENERAL_PROMPTS,
    LANGUAGES,
    TEMPLATES,
    read_general_prompts,
    read_prompts,
    template_of,
)

EN, IT = ["open file", "a\u2028b", '"x'], ["apri il file", "c\x85d", "</s>"]
PAIRS = list(zip(EN, IT, strict=True))
BOTH = {"en-it": PAIRS, "it-en": [pair[::-1] for pair in PAIRS]}
TABLE = "en\tit\n" + "".join(f"{en}\t{it}\n" for en, it in PAIRS)
RECORDS = [{"translation": {"en": en, "it": it}, "id": 3} for en, it in PAIRS]
BARE = [{"en": en, "it": it} for en, it in PAIRS]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def put_all(folder, files):
    return [put(folder / name, text) for name, text in files.items()]


def read(paths, *args, **how):
    """{"en-it": [(source, target), ...]}"""
    return {"-".join(d): pairs for d, pairs in read_corpus(paths, *args, **how)[0].items()}


def sizes(paths, *args, **how):
    return {name: len(pairs) for name, pairs in read(paths, *args, **how).items()}


def alpaca(*instructions, source="x", target="y"):
    fields = {"input": source, "output": target}
    return json.dumps([{"instruction": text, **fields} for text in instructions])


def lines(records):
    return "\n\n".join(map(json.dumps, records)) + "\n"


# What is read


@pytest.mark.parametrize(
    "files, form, expected",
    [
        ({"a.tsv": TABLE}, "multi-parallel TSV", BOTH),
        ({"a.tsv": TABLE.replace("\n", "\r\n")}, "multi-parallel TSV", BOTH),
        ({"a.json": json.dumps(RECORDS, ensure_ascii=False)}, "translation JSON", BOTH),
        ({"a.json": json.dumps(RECORDS, indent=2)}, "translation JSON", BOTH),
        ({"a.json": json.dumps(BARE)}, "translation JSON", BOTH),
        ({"a.jsonl": lines(RECORDS)}, "translation JSON", BOTH),
        ({"a.jsonl": lines(BARE)}, "translation JSON", BOTH),
        (
            {"a.json": alpaca("Translate from German to Czech.")},
            "Alpaca JSON",
            {"de-cs": [("x", "y")]},
        ),
        (
            {"train.en-it.en": "\n".join(EN), "train.en-it.it": "\n".join(IT) + "\n"},
            "paired files",
            BOTH,
        ),
        (
            {"tst2017en-it.en": "[Music]\n", "tst2017en-it.it": "{Musica}\n"},
            "paired files",
            {"en-it": [("[Music]", "{Musica}")], "it-en": [("{Musica}", "[Music]")]},
        ),
        (
            {"wmt.en-cs.src.en": "one\n", "wmt.en-cs.ref.A.cs": "jedna\n"},
            "paired files",
            {"en-cs": [("one", "jedna")]},
        ),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_each_format_is_recognised_and_read_to_the_letter(
    tmp_path, capsys, files, form, expected, bom, packed
):
    data = {name: bom + text.encode() for name, text in files.items()}
    if packed:  # more than one member is one text
        data = {f"{n}.gz": gzip.compress(x[:5]) + gzip.compress(x[5:]) for n, x in data.items()}
    paths = put_all(tmp_path, data)
    assert read(paths) == read(paths[:1]) == expected  # both sides, as a shell's * names them
    said = capsys.readouterr().out
    rows = max(map(len, expected.values()))
    assert f"{form}, {rows} rows\n" in said
    for name, pairs in expected.items():
        assert f"  {name}: {len(pairs)} pairs\n" in said


def test_of_several_references_the_first_counts_and_another_can_be_named(tmp_path, capsys):
    texts = {"src.en": "one\n", "ref.A.cs": "jedna\n", "ref.B.cs": "1\n"}
    source, a, b = put_all(tmp_path, {f"wmt.en-cs.{name}": text for name, text in texts.items()})
    for paths in ([source], [a], [a, b, source], [source, b]):
        assert read(paths) == {"en-cs": [("one", "jedna")]}
    assert "of 2 references the first is used" in capsys.readouterr().out
    assert read([b]) == {"en-cs": [("one", "1")]}


def test_files_may_have_a_packed_side_or_a_packed_copy(tmp_path):
    put(tmp_path / "a.en-it.en", "one\n")
    put(tmp_path / "a.en-it.it.gz", gzip.compress(b"uno\n"))
    assert read([tmp_path / "a.en-it.en"], "en-it") == {"en-it": [("one", "uno")]}
    put(tmp_path / "a.en-it.en.gz", gzip.compress(b"one\n"))
    paths = [tmp_path / f"a.en-it.{end}" for end in ("en", "en.gz", "it.gz")]
    assert read(paths, "en-it") == {"en-it": [("one", "uno")]}


@pytest.mark.parametrize(
    "there, back",
    [
        ("tst2017it-nl", "tst2017nl-it"),
        ("train-it-nl", "train-nl-it"),
        ("ted-ml.it-nl", "ted-ml.nl-it"),
        ("it-nl-clean", "nl-it-clean"),
    ],
)
def test_a_direction_comes_from_the_file_that_is_named_so(tmp_path, there, back):
    rows = {"it": "uno", "nl": "een"}, {"nl": "twee", "it": "due"}
    names = f"{there}.json", f"{back}.json"
    paths = put_all(tmp_path, dict(zip(names, map(json.dumps, rows), strict=True)))
    assert read(paths) == {"it-nl": [("uno", "een")], "nl-it": [("twee", "due")]}
    assert read(paths[:1]) == {"it-nl": [("uno", "een")], "nl-it": [("een", "uno")]}


@pytest.mark.parametrize("name", ["en-it-nl.json", "no-names.json", "en-it.and.it-en.json"])
def test_a_name_with_three_languages_or_two_directions_names_none(tmp_path, name):
    texts = {name: '{"it": "a", "nl": "b"}', "nl-it.json": '{"it": "c", "nl": "d"}'}
    assert sizes(put_all(tmp_path, texts)) == {"it-nl": 2, "nl-it": 2}


def test_a_row_that_says_its_direction_belongs_to_it_whatever_its_file_is_called(tmp_path):
    text = alpaca("Translate from Italian to Dutch.", "Translate from Dutch to Italian.")
    paths = put_all(tmp_path, {"a.it-nl.json": text, "b.nl-it.json": text})
    assert sizes(paths) == {"it-nl": 2, "nl-it": 2}


def test_the_other_side_may_be_the_source_of_the_other_direction(tmp_path):
    """IWSLT's talks are the same in both."""
    names = {"tst2017it-nl.it": "ciao\n", "tst2017nl-it.nl": "hoi\n"}
    paths = put_all(tmp_path, names)
    for named in (paths[:1], paths[1:], paths):
        assert read(named, "it-nl") == {"it-nl": [("ciao", "hoi")]}
    put(tmp_path / "tst2017it-nl.nl", "dag\n")
    assert read(paths[:1], "it-nl") == {"it-nl": [("ciao", "dag")]}


def test_several_files_make_one_corpus_and_a_file_under_two_names_counts_once(tmp_path):
    table = put(tmp_path / "a.tsv", "en\tit\na\tb\n")
    paths = [table, f"{tmp_path}/./a.tsv", put(tmp_path / "c.tsv", TSV)]
    assert sizes(paths, "supervised") == {
        f"{a}-{b}": 41 if "it" in (a, b) else 40
        for a, b in [("en", "it"), ("it", "en"), ("en", "nl"), ("en", "ro"), ("nl", "en")]
        + [("ro", "en")]
    }
    others = ["it-nl", "it-ro", "nl-it", "nl-ro", "ro-it", "ro-nl"]
    assert sorted(read(paths, "zero-shot")) == others
    found, tuned = read_corpus(paths, "it-nl", supervised=[("it", "nl")])
    assert list(found) == tuned == [("it", "nl")]


def test_blank_sides_are_left_out_aloud_or_kept_in_their_place(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\n a \tb\n\tc\nd\t\ne\tf\n")
    assert read([path], "en-it") == {"en-it": [("a", "b"), ("e", "f")]}
    assert "  en-it: 2 pairs; 2 with a blank side left out\n" in capsys.readouterr().out
    kept = [("a", "b"), ("", "c"), ("d", ""), ("e", "f")]
    assert read([path], "en-it", keep_blank=True) == {"en-it": kept}


def test_a_direction_without_pairs_is_skipped_unless_it_was_asked_for(tmp_path):
    path = put(tmp_path / "a.tsv", "en\tit\tnl\na\tb\t\nc\t\td\n")
    assert list(read([path])) == ["en-it", "en-nl", "it-en", "nl-en"]
    with pytest.raises(InputError, match="--directions it-nl: pairs found in .* it-nl 0"):
        read([path], "it-nl")


def test_rows_without_a_certain_direction_can_be_left_out_and_are_counted_once(tmp_path, capsys):
    certain = "Translate from German to French."
    text = alpaca(certain, "A French version of this German text", certain, "Write a poem.")
    path = put(tmp_path / "a.json", text)
    with pytest.raises(InputError, match="entry 2: .* names no certain direction.*--skip-unknown"):
        read([path])
    for pairs in (0, 1):  # which takes a second pass
        assert sizes([path], skip_unknown=True, pairs=pairs) == {"de-fr": pairs or 2}
        assert "  2 left out: rows without a certain direction\n" in capsys.readouterr().out


def test_languages_that_are_not_known_can_be_left_out(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\txx\na\tb\tc\n")
    assert sizes([path], skip_unknown=True) == {"en-it": 1, "it-en": 1}
    assert "  1 left out: texts in xx" in capsys.readouterr().out


# What is refused


def translation(**texts):
    return json.dumps([{"translation": texts}])


BAD = [
    ("e.tsv", "", "e.tsv, line 1: ''; expected JSON, a TSV"),
    ("e.txt", "just text\n", "e.txt, line 1: 'just text'; expected JSON, a TSV"),
    ("e.json", "[]", "e.json: none"),
    ("e.tsv", "en\tit\n", "e.tsv: none"),
    ("e.tsv", "en\tit\n\t\n", "e.tsv: en-it 0, it-en 0"),
    ("l.tsv", b"en\tit\na\tb\n\xff\tc\n", "l.tsv, line 3: byte 0xff is not UTF-8"),
    ("n.tsv", "en\tit\na\tb\nx\0y\tz\n", "n.tsv, line 3: the en side is .*without NUL"),
    ("n.json", translation(en="x\0y", it="z"), "n.json, entry 1: the en side is .*without NUL"),
    ("s.json", translation(en="x\ud800y", it="z"), "s.json, entry 1: the en side is"),
    ("c.tsv", "en\tit\na\tb\nc\n", "c.tsv, line 3: 1 columns, expected 2: en it"),
    ("c.tsv", "en\tit\na\tb\tc\n", "c.tsv, line 2: 3 columns, expected 2"),
    ("c.tsv", "\nen\tit\na\tb\n", "c.tsv, line 1: 'en.tit'; expected JSON, a TSV"),
    ("u.tsv", "en\txx\na\tb\n", "u.tsv, line 2: found en xx; expected some of ar bg"),
    ("u.tsv", "en\ten\na\tb\n", "u.tsv, line 1: 'en.ten'.*different"),
    ("u.json", translation(en="a", xx="b"), "u.json, entry 1: found en xx"),
    ("u.json", translation(en="a"), "u.json, entry 1: found en; expected some of"),
    ("b.json", translation(en="a", it=None), "b.json, entry 1: the it side is None"),
    ("b.json", translation(en="a", it=3), "the it side is 3; expected text"),
    ("b.json", '[{"translation": ["a", "b"]}]', "entry 1: .*; expected {'translation'"),
    ("b.json", "[1, 2]", "b.json, entry 1: 1; expected {'translation'"),
    ("b.jsonl", '{"en": "a"}', "b.jsonl, line 1: .*code: text"),
    ("b.jsonl", '{"en": "a", "it": "b", "translation": null}', "expected .*code: text"),
    ("b.jsonl", '{"en": "a", "it": "b", "score": "c"}', "found en it score"),
    ("b.jsonl", '{"id": "17", "en": "a", "it": "b"}', "is id 17 Indonesian, or the row's name"),
    ("q.json", '[{"translation": {"en": "a, "it": "b"}}]', "q.json, line 1: not valid JSON"),
    ("q.json", '[{"translation":\n {"en": "a",\n "it": "b"}}', "q.json, line 3: not valid JSON"),
    ("q.jsonl", '{"en": "a", "it": "b"}\n{"en":', "q.jsonl, line 2: not valid JSON"),
    ("q.json", "[" * 100_000, "q.json, line 1: not valid JSON"),
    ("q.json", '[{"n": ' + "1" * 5000 + "}]", "q.json, line 1: not valid JSON"),
    ("a.json", alpaca("Write a poem."), "a.json, entry 1: .*Write a poem"),
    ("a.json", alpaca("from English to Italian", source=None), "the en side is None"),
    ("a.en-it.en", "a\n", "a.en-it.en: its other side is missing; expected .*a.en-it.it"),
    ("a.en-cs.src.en", "a\n", "other side is missing; expected .*a.en-cs.ref"),
    ("a.tsv.gz", gzip.compress(TABLE.encode(), mtime=0)[:-9], "gz: damaged gzip, near line"),
    ("a.tsv.gz", gzip.compress(TABLE.encode(), mtime=0) + b"more", "damaged gzip"),
    ("a.tsv.gz", gzip.compress(b"en\tit\n\xff\tb", mtime=0), "gz, line 2: byte 0xff"),
]


@pytest.mark.parametrize("name, data, said", BAD)
def test_bad_data_gets_one_sentence_with_file_and_line(tmp_path, name, data, said):
    with pytest.raises(InputError, match=said):
        read([put(tmp_path / name, data)])


def test_paired_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    paths = put_all(tmp_path, {"a.en-it.en": "a\nb\n", "a.en-it.it": "a\nb\nc\n"})
    with pytest.raises(InputError, match="a.en-it.en: 2 lines, but .*a.en-it.it: 3 lines"):
        read(paths)


def test_what_is_no_file_is_said_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    for path, said in [("none.tsv", "no such file"), ("", "a directory"), ("pipe.tsv", "a pipe")]:
        with pytest.raises(InputError, match=said):
            read([tmp_path / path])


@pytest.mark.parametrize("wanted", ["en-de", "en", "", "en-it,", "supervised,all"])
def test_directions_that_the_data_does_not_have_are_refused_with_what_it_has(tmp_path, wanted):
    with pytest.raises(InputError, match=f"--directions {wanted}: .*a.tsv: en-it 1, it-en 1"):
        read([put(tmp_path / "a.tsv", "en\tit\na\tb\n")], wanted)


def test_a_wrong_last_file_is_said_before_the_first_is_read(tmp_path):
    first = put(tmp_path / "a.tsv", "en\tit\na\tb\nc\n")  # its third line is not reached
    for name, text in [("b.tsv", "no table"), ("b.json", '[{"a": 1}]'), ("b.en-it.en", "x")]:
        with pytest.raises(InputError, match=f"{name}[,:]"):
            read([first, put(tmp_path / name, text)])


def test_a_sentence_is_bounded_and_on_one_line(tmp_path):
    forged = {"en\nerror: all is well\x1b[2J": "x" * 10**6, "it": "y"}
    texts = [translation(**forged), "\t".join(map(str, range(10**5))) + "\nx\n"]
    for text in texts:
        with pytest.raises(InputError) as error:
            read([put(tmp_path / "a", text)])
        assert len(str(error.value)) < 1100 and str(error.value).isprintable()


# Drawing


def some_files(rng, folder):
    """A random corpus: a file of each format, with blank sides and duplicates."""
    words = ["a", "bé", "\u2028", "open", "файл", "", " ", "x\\y", '"q"', "c\x85d", "]", "{"]
    rows = [rng.choices(words, k=3) for _ in range(rng.randint(1, 60))]
    records = [{"translation": dict(zip(("en", "it", "nl"), row, strict=True))} for row in rows]
    asked = [f"Translate from {name} to Dutch." for name in ("English", "Italian")]
    made = [{"instruction": rng.choice(asked), "input": a, "output": b} for a, b, _ in rows]
    texts = {
        "a.tsv": "it\tnl\ten\n" + "".join("\t".join(row) + "\n" for row in rows),
        "b-it-en.json": json.dumps(records),
        "c.jsonl": lines(records),
        "d.json": json.dumps(made),
        "e.en-it.en": "".join(a + "\n" for a, *_ in rows),
        "f.en-it.src.en": "".join(a + "\n" for a, *_ in rows),
    }
    other = "".join(b + "\n" for _, b, _ in rows)
    put_all(folder, {"e.en-it.it": other, "f.en-it.ref.A.it": other})
    return put_all(folder, texts)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
@pytest.mark.parametrize("pairs", [0, 1, 10, 5000])
def test_the_draw_is_that_of_a_shuffled_list(n, pairs):
    """As it was when all samples were held: a run that was begun then can be gone on with."""
    shuffled = list(range(n))
    random.Random("3 ('en', 'it')").shuffle(shuffled)
    assert list(draw(n, pairs, 3, ("en", "it"))) == shuffled[: pairs or None]


@pytest.mark.parametrize("seed", range(12))
def test_drawing_while_reading_is_drawing_from_the_list(tmp_path, capsys, seed):
    """The same samples in the same order, and what is said."""
    rng = random.Random(seed)
    paths = some_files(rng, tmp_path)
    for files in [*([path] for path in paths), paths]:
        pairs, start = rng.choice([1, 3, 10, 1000]), rng.randrange(9)
        try:
            whole, directions = read_corpus(files)
        except InputError as error:  # all blank
            with pytest.raises(InputError, match="pairs found in") as again:
                read_corpus(files, pairs=pairs, seed=start)
            assert str(again.value) == str(error)
            continue
        said = capsys.readouterr().out
        drawn, same = read_corpus(files, pairs=pairs, seed=start)
        assert said == capsys.readouterr().out and directions == same
        assert list(drawn) == list(whole)
        for direction, samples in whole.items():
            numbers = draw(len(samples), pairs, start, direction)
            assert drawn[direction] == [samples[n] for n in numbers]


@pytest.mark.parametrize(
    "end, said", [("", "the data changed while it was read"), ("open\n", "line 102: 1 columns")]
)
def test_data_that_loses_rows_between_the_passes_is_refused(tmp_path, monkeypatch, end, said):
    rows = [f"open {i}\tapri {i}\n" for i in range(200)]
    path = put(tmp_path / "a.tsv", "en\tit\n" + "".join(rows))
    fetch = corpora.fetch_samples

    def lose_rows(*args):
        put(tmp_path / "a.tsv", "en\tit\n" + "".join(rows[:100]) + end)
        return fetch(*args)

    monkeypatch.setattr(corpora, "fetch_samples", lose_rows)
    with pytest.raises(InputError, match=said):
        read([path], pairs=50, seed=1)


def test_memory_follows_what_is_drawn_and_not_the_file(tmp_path):
    words = "open the file", "apri il file"
    rows = ("\t".join(f"{text} {i} {'x' * 50}" for text in words) for i in range(20000))
    path = put(tmp_path / "a.tsv", "\n".join(["en\tit", *rows]))

    def peak(**how):
        tracemalloc.start()
        read([path], "en-it", **how)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak() > 6e6  # of all
    assert peak(pairs=10) < 1e6  # 8 bytes of a number each, and what reads a file


# Other instructions than translations

GENERAL = [
    {"instruction": "Name three colours.", "input": "", "output": "Red,\ngreen, blue."},
    {"instruction": " Count the words.", "input": "one two", "output": "2"},
    {"instruction": "Say hello.", "output": "Hello!"},
]
EXPECTED = [("Name three colours.", "", "Red,\ngreen, blue."), ("Count the words.", "one two", "2")]
EXPECTED += [("Say hello.", "", "Hello!")]


@pytest.mark.parametrize("write", [json.dumps, lines])
def test_general_instructions_are_read_with_an_input_or_without_one(tmp_path, capsys, write):
    assert read_general([put(tmp_path / "a.json", write(GENERAL))]) == EXPECTED
    assert "other instructions, 3 rows" in capsys.readouterr().out


def test_translations_and_blank_responses_are_left_out_aloud(tmp_path, capsys):
    translations = json.loads(alpaca("Translate from English to Italian."))
    more = [{"instruction": "Be silent.", "output": " "}, {"instruction": "", "output": "x"}]
    path = put(tmp_path / "a.json", json.dumps(GENERAL + translations + more))
    assert read_general([path]) == EXPECTED
    said = capsys.readouterr().out
    assert "1 left out: translations, which belong to --data" in said
    assert "2 left out: without" in said
    with pytest.raises(InputError, match="nothing is left; 1 translations"):
        read_general([put(tmp_path / "b.json", json.dumps(translations))])


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expected JSON of"),
        ("en\tit\na\tb\n", "'en.tit.*; expected JSON of"),
        ("[]", "nothing is left; expected JSON of"),
        ('[{"instruction": 3}]', "entry 1: .*; expected JSON of"),
        ('["x"]', "entry 1: x; expected JSON of"),
        (translation(en="a", it="b"), "entry 1: .*; expected JSON of"),
        ('[{"instruction": "a", "output": ["b"]}]', "output is .*; expected text, without NUL"),
        ('[{"instruction": "a", "output": "b\\u0000"}]', "output is .*without NUL"),
        ('[{"instruction": "a", "input": "\\ud800"}]', "input is .*without NUL"),
        ('[{"instruction": "a"', "not valid JSON"),
    ],
)
def test_what_is_no_file_of_instructions_is_one_sentence(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as error:
        read_general([put(tmp_path / "a.json", text)])
    assert "a.json" in str(error.value)


# Languages and templates


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_names_both_languages_and_holds_the_text_once(template):
    codes = TEMPLATES["ptl"]
    for source, target in [(a, b) for a in codes for b in codes if a != b]:
        names, lines_of = template_of(template, (source, target))
        fields = {"source": names[source], "target": names[target]}
        text = "\n".join(lines_of).format(**fields, input="{x} <text>")
        assert text.count("{x} <text>") == 1 and text == text.strip()
        assert names[source] in text and names[target] in text


def test_a_template_or_a_language_that_there_is_not_is_refused():
    assert template_of("alma", ("de", "en"))[0] is LANGUAGES
    with pytest.raises(InputError, match="--template ptl: no prompt for en-da; it has en it nl"):
        template_of("ptl", ("en", "da"))
    with pytest.raises(InputError, match="--template mine: prompts.json has no such; it has alpa"):
        template_of("mine", ("en", "it"))


GOOD = {"languages": {"en": "English"}, "templates": {"a": ["{source} {target}", "{input}"]}}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"languages": 3}, "expected an object of languages and templates"),
        ({"languages": {"en": 3}}, "languages: expected names by code"),
        ({"templates": {}}, "expected an object of languages"),
        ({"templates": {"a": ["no text"]}}, "template a: expected lines with {input}"),
        ({"templates": {"a": ["{input} {sauce}"]}}, "template a: expected lines with {input}"),
        ({"templates": {"a": ["{input} {"]}}, "template a: expected lines"),
        ({"templates": {"a": "{input}"}}, "template a: expected lines"),
        ({"templates": {"a": {"en": ["{input}"]}}}, "template a: expected names"),
        ({"templates": {"a": {"en": {"prompt": ["{input}"]}}}}, "template a: expected names"),
    ],
)
def test_a_template_that_would_fail_later_is_said_when_it_is_read(tmp_path, changes, said):
    path = tmp_path / "prompts.json"
    write_json(path, GOOD | changes)
    with pytest.raises(InputError, match=f"prompts.json: {said}"):
        read_prompts(path)


def test_prompts_json_may_be_without_general_prompts_but_not_with_bad_ones(tmp_path):
    path = tmp_path / "prompts.json"
    write_json(path, GOOD)
    assert read_prompts(path)[0] == {"en": "English"} and read_general_prompts(path) == {}
    write_json(path, GOOD | {"general": GENERAL_PROMPTS})
    assert read_general_prompts(path) == GENERAL_PROMPTS
    for general in (3, {"with input": ["{instruction}"]}, {"with input": ["{input}"]}):
        write_json(path, GOOD | {"general": general})
        with pytest.raises(InputError, match="general, with input: expected lines"):
            read_general_prompts(path)


def test_a_broken_prompts_json_is_one_sentence_and_no_traceback(tmp_path):
    code = "import plumbing.base.files as files; files.ROOT = '.'; import plumbing.corpus.languages"
    put(tmp_path / "prompts.json", "{")
    command = [sys.executable, "-c", code]
    path = os.environ | {"PYTHONPATH": ROOT}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "prompts.json: " in done.stderr

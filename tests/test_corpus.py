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
from plumbing.corpus.languages import LANGUAGES, TEMPLATES, read_prompts

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
        ("Do not translate from English to German, do the reverse.", None),
        ("Translate from Old English to German.", None),
        ("Write a poem.", None),
        (None, None),
    ],
)
def test_the_direction_of_an_instruction_is_certain_or_none(text, direction):
    assert read_direction(text) == (direction and tuple(direction.split("-")))


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
    assert said.count("  1 left out: rows without") == said.count("  1 left out: texts in xx") == 1


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
    ("a.json", '[{"en": "a", "it": null}]', "entry 1: the it side is None"),
    ("a.json", '[{"en": "a", "it": "b", "score": "c"}]', "found en it score"),
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

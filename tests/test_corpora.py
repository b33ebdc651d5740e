"""Files as people have them: what is read from each, and the sentence that bad ones get."""

import json
import os
import random
import tracemalloc
from collections import Counter

import pytest
from conftest import TSV, tuning_set

from plumbing.corpus import corpus as corpora
from plumbing.corpus.corpus import Sample, read_corpus
from plumbing.corpus.drawing import draw
from plumbing.base.errors import InputError
from plumbing.run.record import corpus_checksums

EN, IT = ["open file", "a\u2028b", '"x'], ["apri il file", "c\x85d", "</s>"]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def pairs(corpus):
    return {"-".join(d): [(s.source, s.target) for s in samples] for d, samples in corpus.items()}


def translation(name="translation", pretty=None):
    return json.dumps(
        [{name: {"en": e, "it": i}, "id": 3} for e, i in zip(EN, IT, strict=True)],
        ensure_ascii=False,
        indent=pretty,
    )


BOTH = {"en-it": list(zip(EN, IT, strict=True)), "it-en": list(zip(IT, EN, strict=True))}
ALPACA = [
    {"instruction": f"Translate the following sentences from {a} to {b}.", "input": x, "output": y}
    for a, b, x, y in [
        ("English", "Italian", "one", "uno"),
        ("Italian", "English", "due", "two"),
        ("German", "Czech", "A", "B"),
    ]
]


@pytest.mark.parametrize(
    "files, form, expected",
    [
        (
            {"a.tsv": "en\tit\n" + "".join(f"{e}\t{i}\n" for e, i in zip(EN, IT, strict=True))},
            "multi-parallel TSV, 3 rows",
            BOTH,
        ),
        (
            {"a.tsv": "en\tit\r\n" + "".join(f"{e}\t{i}\r\n" for e, i in zip(EN, IT, strict=True))},
            "multi-parallel TSV, 3 rows",
            BOTH,
        ),
        ({"train.json": translation()}, "translation JSON, 3 rows", BOTH),
        ({"train.json": translation(pretty=2)}, "translation JSON, 3 rows", BOTH),
        (
            {"train.jsonl": "\n\n".join(json.dumps(r) for r in json.loads(translation())) + "\n"},
            "translation JSON, 3 rows",
            BOTH,
        ),
        (
            {"mt.json": json.dumps(ALPACA)},
            "Alpaca JSON, 3 rows",
            {"en-it": [("one", "uno")], "it-en": [("due", "two")], "de-cs": [("A", "B")]},
        ),
        (
            {"mt.jsonl": "\n".join(map(json.dumps, ALPACA[:1]))},
            "Alpaca JSON, 1 rows",
            {"en-it": [("one", "uno")]},
        ),
        (
            {"train.en-it.en": "\n".join(EN), "train.en-it.it": "\n".join(IT) + "\n"},
            "paired files, 3 rows",
            BOTH,
        ),
        (
            {"tst2017en-it.en": "[Music]\n", "tst2017en-it.it": "{Musica}\n"},
            "paired files, 1 rows",
            {"en-it": [("[Music]", "{Musica}")], "it-en": [("{Musica}", "[Music]")]},
        ),
        (
            {
                "generaltest2022.en-cs.src.en": "one\n",
                "generaltest2022.en-cs.ref.A.cs": "jedna\n",
                "generaltest2022.en-cs.ref.B.cs": "1\n",
            },
            "paired files, 1 rows",
            {"en-cs": [("one", "jedna")]},
        ),
    ],
)
@pytest.mark.parametrize("bom", [False, True])
def test_each_format_is_recognised_and_read_to_the_letter(
    tmp_path, capsys, files, form, expected, bom
):
    paths = [
        put(tmp_path / name, b"\xef\xbb\xbf" * bom + text.encode()) for name, text in files.items()
    ]
    assert pairs(read_corpus(paths[:1])[0]) == expected
    said = capsys.readouterr().out
    assert form in said and all(
        f"  {d}: {len(found)} pairs\n" in said for d, found in expected.items()
    )
    if "B.cs" not in paths[-1]:
        # naming both sides of a pair, as a shell's * does, is naming it once
        assert pairs(read_corpus(paths)[0]) == expected


def test_a_ref_can_be_chosen_by_naming_it(tmp_path):
    for name, text in [("src.en", "one\n"), ("ref.A.cs", "jedna\n"), ("ref.B.cs", "1\n")]:
        put(tmp_path / f"generaltest2022.en-cs.{name}", text)
    assert pairs(read_corpus([tmp_path / "generaltest2022.en-cs.ref.B.cs"])[0]) == {
        "en-cs": [("one", "1")]
    }


def test_a_named_direction_comes_from_its_own_file(tmp_path):
    it_nl = [put(tmp_path / f"tst2017it-nl.{c}", t) for c, t in [("it", "uno\n"), ("nl", "een\n")]]
    nl_it = [put(tmp_path / f"tst2017nl-it.{c}", t) for c, t in [("nl", "twee\n"), ("it", "due\n")]]
    assert pairs(read_corpus(it_nl)[0]) == {"it-nl": [("uno", "een")], "nl-it": [("een", "uno")]}
    assert pairs(read_corpus(it_nl + nl_it)[0]) == {
        "it-nl": [("uno", "een")],
        "nl-it": [("twee", "due")],
    }
    csen = [
        put(tmp_path / f"test.{n}.json", json.dumps([{"translation": t}]))
        for n, t in [("cs-en", {"cs": "a", "en": "b"}), ("en-cs", {"en": "c", "cs": "d"})]
    ]
    assert pairs(read_corpus(csen)[0]) == {"cs-en": [("a", "b")], "en-cs": [("c", "d")]}


def test_several_files_and_formats_make_one_corpus(tmp_path):
    paths = [
        put(tmp_path / "a.tsv", "en\tit\na\tb\n"),
        put(tmp_path / "b.json", json.dumps(ALPACA)),
        put(tmp_path / "c.tsv", TSV),
    ]
    found = read_corpus(paths, "supervised")[0]
    assert {"-".join(d): len(x) for d, x in found.items()} == {
        "en-it": 42,
        "it-en": 42,
        "en-nl": 40,
        "en-ro": 40,
        "nl-en": 40,
        "ro-en": 40,
    }
    assert ("de", "cs") in read_corpus(paths, "zero-shot")[0]


def test_blank_and_duplicate_pairs_are_counted_aloud_and_duplicates_stay(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\tnl\n a \tb\tc\na\tb\t\n\tb\tc\na\tb\tc\n")
    found = pairs(read_corpus([path], "en-it,it-nl")[0])
    assert found == {"en-it": [("a", "b")] * 3, "it-nl": [("b", "c")] * 3}
    said = capsys.readouterr().out
    assert "  en-it: 3 pairs, 2 of them duplicates; 1 with a blank side left out\n" in said
    assert "  it-nl: 3 pairs, 2 of them duplicates; 1 with a blank side left out\n" in said


def test_a_direction_without_pairs_is_said_and_skipped_unless_it_was_asked_for(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\tnl\na\tb\t\nc\t\td\n")
    assert list(pairs(read_corpus([path])[0])) == ["en-it", "en-nl", "it-en", "nl-en"]
    assert "  it-nl: 0 pairs; 2 with a blank side left out\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="--directions it-nl,en-it: pairs found in .* it-nl 0"):
        read_corpus([path], "it-nl,en-it")


def test_over_long_pairs_are_counted_aloud(capsys, tokenizer):
    samples = [
        Sample(("en", "it"), "open the file " * 100, "apri"),
        Sample(("it", "en"), "apri", "open the file " * 100),
        Sample(("en", "it"), "open", "apri"),
    ]
    encoded = tuning_set({("en", "it"): samples[::2], ("it", "en"): samples[1:2]}, tokenizer, 120)
    assert {item[0] for item in encoded.samples} == {samples[0], samples[2]}
    assert encoded.instructions == Counter({("en", "it"): 2})
    said = capsys.readouterr().out
    assert (
        "  en-it: 1 over-long sources cut\n" in said
        and "  it-en: 1 over-long pairs left out: too long without their source\n" in said
    )


# Every bad input of formats.md, and the sentence that it gets


@pytest.mark.parametrize(
    "name, data, said",
    [
        (
            "e.tsv",
            b"",
            "e.tsv, line 1: ''; expected JSON, a TSV whose first line is different language codes, "
            "or paired files",
        ),
        ("e.txt", "just text\n", "e.txt, line 1: 'just text'; expected JSON, a TSV"),
        ("e.json", "[]", "--directions all: pairs found in .*e.json: none"),
        ("e.tsv", "en\tit\n", "--directions all: pairs found in .*e.tsv: none"),
        ("e.tsv", "en\tit\n\t\n", "--directions all: pairs found in .*e.tsv: en-it 0, it-en 0"),
        (
            "l.tsv",
            b"en\tit\na\tb\n\xff\tc\n",
            "l.tsv, line 3: byte 0xff is not UTF-8; convert the file",
        ),
        (
            "l.jsonl",
            b'{"translation": {"en": "a", "it": "b"}}\n{"translation": {"en": "\xe9"}}',
            "l.jsonl, line 2: byte 0xe9",
        ),
        (
            "n.tsv",
            "en\tit\na\tb\nx\0y\tz\n",
            "n.tsv, line 3: the en side is 'x.*y'; expected text without NUL",
        ),
        (
            "n.json",
            '[{"translation": {"en": "x\\u0000y", "it": "z"}}]',
            "n.json, line 1, entry 1: the en side is .*without NUL",
        ),
        (
            "s.json",
            '[{"translation": {"en": "x\\ud800y", "it": "z"}}]',
            "s.json, line 1, entry 1: the en side is",
        ),
        ("c.tsv", "en\tit\na\tb\nc\n", "c.tsv, line 3: 1 columns, expected 2: en it"),
        ("c.tsv", "en\tit\na\tb\n\nc\td\n", "c.tsv, line 3: 1 columns, expected 2"),
        ("c.tsv", "en\tit\na\tb\tc\n", "c.tsv, line 2: 3 columns, expected 2"),
        ("c.tsv", "\nen\tit\na\tb\n", "c.tsv, line 1: 'en.tit'; expected JSON, a TSV"),
        ("u.tsv", "en\txx\na\tb\n", "u.tsv, line 2: found en xx; expected some of ar bg"),
        (
            "u.tsv",
            "en\ten\na\tb\n",
            "u.tsv, line 1: 'en.ten'; expected JSON, a TSV whose first line is different",
        ),
        (
            "u.json",
            '[{"translation": {"en": "a", "xx": "b"}}]',
            "u.json, line 1, entry 1: found en xx; expected some of",
        ),
        (
            "u.json",
            '[{"translation": {"en": "a"}}]',
            "u.json, line 1, entry 1: found en; expected some of",
        ),
        (
            "b.json",
            '[{"translation": {"en": "a", "it": null}}]',
            "b.json, line 1, entry 1: the it side is None; expected text",
        ),
        ("b.json", '[{"translation": {"en": "a", "it": 3}}]', "the it side is 3; expected text"),
        (
            "b.json",
            '[{"translation": ["a", "b"]}]',
            "b.json, line 1, entry 1: .*; expected {'translation': {code: text}}",
        ),
        ("b.json", "[1, 2]", "b.json, line 1, entry 1: 1; expected {'translation'"),
        ("q.json", '[{"translation": {"en": "a, "it": "b"}}]', "q.json, line 1: not valid JSON"),
        (
            "q.json",
            '[{"translation":\n {"en": "a",\n "it": "b"}}',
            "q.json, line 3: not valid JSON",
        ),
        (
            "q.jsonl",
            '{"translation": {"en": "a", "it": "b"}}\n{"translation":',
            "q.jsonl, line 2: not valid JSON",
        ),
        ("q.json", "[" * 100_000, "q.json, line 1: not valid JSON"),
        (
            "a.json",
            '[{"instruction": "Write a poem.", "input": "", "output": "x"}]',
            "a.json, line 1, entry 1: .*Write a poem",
        ),
        (
            "a.json",
            '[{"instruction": "from English to Italian", "output": "x"}]',
            "entry 1: the en side is None",
        ),
        (
            "train.en-it.en",
            "a\n",
            "train.en-it.en: its other side is missing; expected .*train.en-it.it",
        ),
        (
            "generaltest2022.en-cs.src.en",
            "a\n",
            "its other side is missing; expected .*generaltest2022.en-cs.ref\\*.cs",
        ),
    ],
)
def test_bad_data_gets_one_sentence_with_file_and_line(tmp_path, name, data, said):
    with pytest.raises(InputError, match=said) as error:
        read_corpus([put(tmp_path / name, data)])
    assert "\n" not in str(error.value)


def test_paired_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    path = put(tmp_path / "train.en-it.en", "a\nb\n")
    put(tmp_path / "train.en-it.it", "a\nb\nc\n")
    with pytest.raises(
        InputError, match="train.en-it.en: 2 lines, but .*train.en-it.it has 3; expected equal"
    ):
        read_corpus([path])
    with pytest.raises(
        InputError, match="none.tsv: no such file or directory; expected a file of translations"
    ):
        read_corpus([tmp_path / "none.tsv"])
    with pytest.raises(InputError, match="is a directory; expected a file of translations"):
        read_corpus([tmp_path])


@pytest.mark.parametrize("wanted", ["en-de", "en", "", "en-it,", "supervised,all"])
def test_directions_that_the_data_does_not_have_are_refused_with_what_it_has(tmp_path, wanted):
    with pytest.raises(
        InputError, match=f"--directions {wanted}: pairs found in .*a.tsv: en-it 1, it-en 1"
    ):
        read_corpus([put(tmp_path / "a.tsv", "en\tit\na\tb\n")], wanted)


def json_of(**texts):
    return json.dumps([{"translation": texts}])


@pytest.mark.parametrize(
    "a, b",
    [
        ("train-it-nl.json", "train-nl-it.json"),
        ("ted-ml.it-nl.json", "ted-ml.nl-it.json"),
        ("dev-it-nl.json", "dev-nl-it.json"),
        ("tst2017it-nl.json", "tst2017nl-it.json"),
        ("it-nl-clean.json", "nl-it-clean.json"),
    ],
)
def test_the_direction_of_a_name_stands_between_two_languages(tmp_path, a, b):
    """Once it was taken from train-it, ed-ml or ev-it; both files then gave both directions."""
    paths = [put(tmp_path / a, json_of(it="uno", nl="een"))]
    paths.append(put(tmp_path / b, json_of(nl="twee", it="due")))
    assert pairs(read_corpus(paths)[0]) == {"it-nl": [("uno", "een")], "nl-it": [("twee", "due")]}


def test_paired_files_with_a_hyphen_before_the_direction_too(tmp_path):
    paths = [put(tmp_path / f"train-it-nl.{c}", t) for c, t in [("it", "uno\n"), ("nl", "een\n")]]
    paths += [put(tmp_path / f"train-nl-it.{c}", t) for c, t in [("it", "due\n"), ("nl", "twee\n")]]
    assert pairs(read_corpus(paths)[0]) == {"it-nl": [("uno", "een")], "nl-it": [("twee", "due")]}


@pytest.mark.parametrize("name", ["en-it-nl.json", "no-names.json", "en-it.and.it-en.json"])
def test_a_name_with_three_languages_or_two_directions_names_none(tmp_path, name):
    paths = [
        put(tmp_path / name, json_of(it="a", nl="b")),
        put(tmp_path / "nl-it.json", json_of(it="c", nl="d")),
    ]
    assert {d: len(x) for d, x in pairs(read_corpus(paths)[0]).items()} == {"it-nl": 2, "nl-it": 2}


def test_two_references_are_one_sample(tmp_path):
    for name, text in [("src.en", "one\ntwo\n"), ("ref.A.cs", "jedna\n\n"), ("ref.B.cs", "1\n2\n")]:
        put(tmp_path / f"wmt.en-cs.{name}", text)
    samples = read_corpus([tmp_path / "wmt.en-cs.ref.A.cs", tmp_path / "wmt.en-cs.ref.B.cs"])[0]
    assert samples == {
        ("en", "cs"): [
            Sample(("en", "cs"), "one", "jedna", ("1",)),
            Sample(("en", "cs"), "two", "2"),
        ]
    }


def test_a_corpus_with_its_blank_rows_has_the_lines_of_the_file(tmp_path):
    path = put(tmp_path / "a.tsv", "en\tit\na\tb\n\tc\nd\t\ne\tf\n\t\n")
    samples = read_corpus([path], "en-it", keep_blank=True)[0]["en", "it"]
    assert [(x.source, x.target) for x in samples] == [
        ("a", "b"),
        ("", "c"),
        ("d", ""),
        ("e", "f"),
        ("", ""),
    ]
    assert [x.blank for x in samples] == [False, True, True, False, True]


def alpaca(*instructions):
    return json.dumps([{"instruction": i, "input": "x", "output": "y"} for i in instructions])


CERTAIN, DOUBTFUL = (
    "Translate from German to French.",
    "Write a French translation of this German text",
)


def test_an_instruction_that_leaves_doubt_is_refused_by_name_or_counted(tmp_path, capsys):
    path = put(tmp_path / "a.json", alpaca(CERTAIN, DOUBTFUL, "Write a poem.", CERTAIN))
    said = f"entry 2: instruction '{DOUBTFUL}' names no certain direction; .*--skip-unknown"
    with pytest.raises(InputError, match=said):
        read_corpus([path])
    found = read_corpus([path], skip_unknown=True)[0]
    assert pairs(found) == {"de-fr": [("x", "y")] * 2}
    assert "  2 left out: rows without a certain direction\n" in capsys.readouterr().out


def test_languages_that_are_not_known_can_be_left_out(tmp_path, capsys):
    path = put(tmp_path / "a.tsv", "en\tit\txx\na\tb\tc\n")
    with pytest.raises(InputError, match="found en it xx; expected some of .*--skip-unknown"):
        read_corpus([path])
    rows = json.dumps([{"translation": {"en": "a", "xx": "b"}}])
    paths = [path, put(tmp_path / "b.json", rows)]
    assert pairs(read_corpus(paths, skip_unknown=True)[0]) == {
        "en-it": [("a", "b")],
        "it-en": [("b", "a")],
    }
    said = capsys.readouterr().out
    assert "  1 left out: texts in xx, which prompts.json does not have\n" in said
    assert "  1 left out: rows without a certain direction\n" in said


def test_a_row_that_says_its_direction_belongs_to_it_whatever_the_files_are_called(tmp_path):
    there, back = "Translate from Italian to Dutch.", "Translate from Dutch to Italian."
    paths = [
        put(tmp_path / "a.it-nl.json", alpaca(there, back)),
        put(tmp_path / "b.nl-it.json", alpaca(there, back)),
    ]
    assert {d: len(x) for d, x in pairs(read_corpus(paths)[0]).items()} == {"it-nl": 2, "nl-it": 2}


def test_a_file_under_two_spellings_is_one(tmp_path):
    path = put(tmp_path / "a.tsv", "en\tit\na\tb\n")
    found = read_corpus([path, f"{tmp_path}/./a.tsv"], "en-it")[0]
    assert pairs(found) == {"en-it": [("a", "b")]}


WORDS = ["a", "bé", "\u2028", "open", "файл", "", " ", "x\\y", '"q"', "c\x85d", "]", "{", "xx"]


def some_files(rng, folder):
    """The paths of a random corpus: one of each format, with blank sides and duplicates."""
    few = [(rng.choice(WORDS), rng.choice(WORDS), rng.choice(WORDS)) for _ in range(30)]
    rows = [rng.choice(few) for _ in range(rng.randint(1, 60))]
    records = [{"translation": dict(zip(("en", "it", "nl"), row, strict=True))} for row in rows]
    asked = [f"Translate from {a} to Dutch." for a in ("English", "Italian")]
    made = [{"instruction": rng.choice(asked), "input": a, "output": b} for a, b, _ in rows]
    texts = {
        "a.tsv": "it\tnl\ten\n" + "".join("\t".join(row) + "\n" for row in rows),
        "b-it-en.json": json.dumps(records, indent=rng.choice([None, 1]), ensure_ascii=False),
        "c.jsonl": "\n".join(map(json.dumps, records)),
        "d.json": json.dumps(made),
        "e.en-it.en": "".join(a + "\n" for a, *_ in rows),
        "f.en-it.src.en": "".join(a + "\n" for a, *_ in rows),
    }
    put(folder / "e.en-it.it", "".join(b + "\n" for _, b, _ in rows))
    for reference in "AB":
        lines = [rng.choice(row) + "\n" for row in rows]
        put(folder / f"f.en-it.ref.{reference}.it", "".join(lines))
    return [put(folder / name, text) for name, text in texts.items()]


@pytest.mark.parametrize("seed", range(12))
def test_drawing_while_reading_is_drawing_from_the_list(tmp_path, capsys, seed):
    """The samples and their order, what is said, and the checksums of all that was there."""
    rng = random.Random(seed)
    paths = some_files(rng, tmp_path)
    for chosen in ([path] for path in paths), [paths]:
        for files in chosen:
            pairs, start = rng.choice([1, 3, 10, 1000]), rng.randrange(9)
            wanted = rng.choice(["all", "en-it"]) if "d.json" not in str(files) else "all"
            try:
                whole, directions = read_corpus(files, wanted)
            except InputError as error:  # all blank
                with pytest.raises(InputError, match="pairs found in") as again:
                    read_corpus(files, wanted, pairs=pairs, seed=start)
                assert str(again.value) == str(error)
                continue
            said = capsys.readouterr().out
            drawn, same = read_corpus(files, wanted, pairs=pairs, seed=start)
            assert said == capsys.readouterr().out and directions == same
            assert drawn == {
                direction: [samples[n] for n in draw(len(samples), pairs, start, direction)]
                for direction, samples in whole.items()
            }
            assert list(drawn) == list(whole)
            assert corpus_checksums(drawn) == corpus_checksums(whole)


def test_a_tuning_set_is_the_same_whoever_drew_it(tmp_path, tokenizer):
    path = put(tmp_path / "a.tsv", TSV)
    sets = [
        tuning_set(read_corpus([path], "supervised", **how)[0], tokenizer, 512, 7, 5)
        for how in ({}, {"pairs": 7, "seed": 5})
    ]
    assert sets[0].samples == sets[1].samples and len(sets[0].samples) == 42


def test_unknown_rows_are_counted_once_though_they_are_read_twice(tmp_path, capsys):
    path = put(tmp_path / "a.json", alpaca(CERTAIN, DOUBTFUL, CERTAIN, "Write a poem.", CERTAIN))
    found = read_corpus([path], skip_unknown=True, pairs=2, seed=1)[0]
    assert pairs(found) == {"de-fr": [("x", "y")] * 2}
    said = capsys.readouterr().out
    assert "  2 left out: rows without a certain direction\n" in said
    assert "  de-fr: 3 pairs, 2 of them duplicates\n" in said and "Alpaca JSON, 5 rows" in said


@pytest.mark.parametrize("change", ["other", "shorter", "shifted", "gone", "broken"])
def test_data_that_changes_between_the_passes_is_refused(tmp_path, monkeypatch, change):
    rows = [f"open {i}\tapri {i}\n" for i in range(200)]
    changed = {
        "other": rows[:150] + [row.replace("apri", "apro") for row in rows[150:]],
        "shorter": rows[:100],
        "shifted": ["one\tuno\n", *rows],
        "gone": [],
        "broken": [*rows[:-1], "open\n"],
    }[change]
    path = put(tmp_path / "a.tsv", "en\tit\n" + "".join(rows))

    def change_data(*args):
        put(tmp_path / "a.tsv", "en\tit\n" + "".join(changed))
        if change == "gone":
            os.unlink(path)
        return fetch(*args)

    fetch = corpora.fetch_samples
    monkeypatch.setattr(corpora, "fetch_samples", change_data)
    expected = "the data changed while it was read; begin again when nobody writes it"
    expected = {"gone": "a.tsv: no such file", "broken": "a.tsv, line 201: 1 columns"}.get(
        change, expected
    )
    with pytest.raises(InputError, match=expected):
        read_corpus([path], pairs=50, seed=1)


@pytest.mark.parametrize("form", ["tsv", "jsonl", "json", "paired"])
def test_memory_follows_what_is_drawn_and_not_the_file(tmp_path, form):
    rows = [(f"open the file {i} {'x' * 50}", f"apri il file {i} {'y' * 50}") for i in range(20000)]
    records = [json.dumps({"translation": {"en": a, "it": b}}) for a, b in rows]
    text = {
        "tsv": "en\tit\n" + "".join(f"{a}\t{b}\n" for a, b in rows),
        "jsonl": "\n".join(records),
        "json": f"[{', '.join(records)}]",
        "paired": "".join(a + "\n" for a, _ in rows),
    }[form]
    path = put(tmp_path / ("a.en-it.en" if form == "paired" else f"a.{form}"), text)
    put(tmp_path / "a.en-it.it", "".join(b + "\n" for _, b in rows))
    del rows, records, text

    def peak(**how):
        tracemalloc.start()
        corpus, _ = read_corpus([path], "en-it", **how)
        corpus_checksums(corpus)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak() > 6e6  # of all
    # 8 bytes of hash and 8 of a number each, and of an array its window
    assert peak(pairs=10) < (2e6 if form == "json" else 1e6)

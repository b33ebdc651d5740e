"""Rows of files: references that belong together, numbers of lines, what is no text."""

import gzip
import json
import os
import time

import pytest

from plumbing.base.errors import InputError
from plumbing.corpus.formats import read_files


def put(folder, **files):
    for name, lines in files.items():
        text = "".join(line + "\n" for line in lines)
        (folder / f"wmt.en-cs.{name.replace('_', '.')}").write_text(text)
    return str(folder / "wmt.en-cs.")


def test_references_of_one_source_are_one_file_however_they_are_named(tmp_path):
    stem = put(tmp_path, src_en=["a", "b"], ref_A_cs=["x", "y"], ref_B_cs=["v", "w"])
    everything = [stem + end for end in ("src.en", "ref.A.cs", "ref.B.cs")]
    for paths in (everything[:1], everything[1:], everything, everything[1:] + everything[:1]):
        (file,) = read_files(paths)
        assert [(row.texts, row.references) for row in file.rows] == [
            ({"en": "a", "cs": "x"}, ("v",)),
            ({"en": "b", "cs": "y"}, ("w",)),
        ]
    (file,) = read_files(everything[2:])
    first, _ = file.rows
    assert first.texts == {"en": "a", "cs": "v"} and first.references == ()


def test_references_of_unequal_length_are_refused(tmp_path):
    stem = put(tmp_path, src_en=["a", "b"], ref_A_cs=["x", "y"], ref_B_cs=["v"])
    with pytest.raises(InputError, match="ref.B.cs: 1 lines, but .*src.en has 2; expected equal"):
        for file in read_files([stem + "src.en"]):
            list(file.rows)


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("a.gz", gzip.compress(gzip.compress(b"[]", 9, mtime=0), 9, mtime=0), "is gzip in gzip"),
        ("a.tar.gz", gzip.compress(b"\0" * 257 + b"ustar\0", mtime=0), "gz is a tar archive"),
        ("a.tsv.gz", gzip.compress(b"en\tit\na\tb\n", mtime=0)[:-9], "damaged gzip, near line 3"),
        ("b.tsv.gz", gzip.compress(b"en\tit\na\tb\n", mtime=0)[:12], "damaged gzip, near line 1"),
        ("c.tsv.gz", gzip.compress(b"en\tit", mtime=0) + b"more", "damaged gzip"),
        ("d.tsv.gz", gzip.compress(b"en\tit\n\xff\tb", mtime=0), "gz, line 2: byte 0xff is not"),
        ("a.parquet", b"PAR1\x15\x04\x15\x00 some PAR1", "a.parquet is Parquet; expected text"),
        ("a.zip", b"PK\x03\x04\x14\x00", "a.zip is a zip archive"),
        (
            "a.json",
            b'[{"n": ' + b"1" * 5000 + b"}]",
            "a.json, line 1: not valid JSON .*5000 digits",
        ),
        ("a.tsv", b"en\tit\nBZh91 is a name\tPAR1S\n", None),
    ],
)
def test_what_is_no_text_is_named_for_what_it_is(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    if said is None:
        assert len(list(read_files([str(tmp_path / name)])[0].rows)) == 1
    else:
        with pytest.raises(InputError, match=said):
            list(read_files([str(tmp_path / name)])[0].rows)


FILES = {
    "a.tsv": "en\tit\nHi\tCiao\n",
    "a.json": '[{"translation": {"en": "Hi", "it": "Ciao"}}]',
    "b.json": '{"en": "Hi", "it": "Ciao"}\n',
    "c.json": '[{"en": "Hi", "it": "Ciao"}]',
    "train.en-it.en": "Hi\n",
    "wmt.en-it.src.en": "Hi\n",
}
OTHER_SIDES = {"train.en-it.it": "Ciao\n", "wmt.en-it.ref.A.it": "Ciao\n"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [0, 1, 2, 3])
def test_any_file_may_be_compressed(tmp_path, name, packed):
    """packed: 1 the file, 2 its other side, 3 both; more than one member is one text."""
    for name_of, text in {**FILES, **OTHER_SIDES}.items():
        data = text.encode()
        if packed & (2 if name_of in OTHER_SIDES else 1):
            name_of += ".gz"
            data = gzip.compress(data[:5], mtime=0) + gzip.compress(data[5:], mtime=0)
        (tmp_path / name_of).write_bytes(data)
    (file,) = read_files([str(tmp_path / name) + ".gz" * (packed & 1)])
    assert [row.texts for row in file.rows] == [{"en": "Hi", "it": "Ciao"}]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_source_of_the_other_direction_is_the_other_side_where_there_is_none(tmp_path, ending):
    def write(name, text):
        data = gzip.compress(text.encode()) if ending else text.encode()
        (tmp_path / (name + ending)).write_bytes(data)

    write("tst2017it-nl.it", "ciao\n\n")
    write("tst2017nl-it.nl", "hoi\nja\n")
    paths = [f"{tmp_path}/tst2017{name}{ending}" for name in ("it-nl.it", "nl-it.nl")]
    for named in (paths[:1], paths[1:], paths, paths[::-1]):
        (file,) = read_files(named)
        assert file.paths == tuple(paths)
        pairs = [(row.texts["it"], row.texts["nl"]) for row in file.rows]
        assert pairs == [("ciao", "hoi"), ("", "ja")]
    write("tst2017it-nl.nl", "dag\nnee\n")
    (file,) = read_files(paths[:1])
    assert [row.texts["nl"] for row in file.rows] == ["dag", "nee"]
    os.remove(paths[1])
    os.remove(f"{tmp_path}/tst2017it-nl.nl{ending}")
    with pytest.raises(InputError, match="side is missing; .*it-nl.nl or .*nl-it.nl$"):
        read_files(paths[:1])


def test_a_compressed_reference_is_not_read_twice(tmp_path):
    stem = put(tmp_path, src_en=["a"], ref_A_cs=["x"])
    with gzip.open(stem + "ref.A.cs.gz", "wt") as f:
        f.write("x\n")
    for paths in ([stem + "src.en"], [stem + "ref.A.cs", stem + "ref.A.cs.gz", stem + "src.en"]):
        (file,) = read_files(paths)
        assert [row.references for row in file.rows] == [()]


def test_no_side_of_a_plain_pair_is_a_reference_of_another(tmp_path):
    """A third file once made a source the reference of its own translation."""
    for name, text in [("it-nl.it", "uno"), ("it-nl.nl", "een"), ("nl-it.nl", "EEN!")]:
        (tmp_path / f"tst2017{name}").write_text(text + "\n")
    with gzip.open(tmp_path / "tst2017it-nl.it.gz", "wt") as f:
        f.write("uno\n")
    files = read_files(sorted(map(str, tmp_path.iterdir())))
    rows = [row for file in files for row in file.rows]
    assert [row.texts["nl"] for row in rows] == ["een", "EEN!"]
    assert all(row.references == () and row.texts["it"] == "uno" for row in rows)


@pytest.mark.parametrize(
    "record, said",
    [
        ({"en": "a"}, "expected .*code: text"),
        ({"en": "a", "it": "b", "instruction": "x"}, None),
        ({"en": "a", "it": "b", "translation": None}, "expected .*code: text"),
        ({"en": "a", "it": "b", "score": "c"}, "found en it score; expected some of"),
        ({"en": "a", "it": 3}, "the it side is 3; expected text"),
        ({"id": "17", "en": "a", "it": "b"}, "is id 17 Indonesian, or the row's name"),
        ({"id": 17, "en": "a", "it": "b"}, "is id 17 Indonesian, or the row's name"),
    ],
)
def test_a_bare_record_has_texts_of_languages_alone(tmp_path, record, said):
    from plumbing.corpus.corpus import read_corpus

    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match=said or "instruction 'x' names no certain direction"):
        read_corpus([tmp_path / "a.jsonl"])


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    os.symlink("/dev/zero", tmp_path / "zero.tsv")
    for name in ("pipe.tsv", "zero.tsv"):
        with pytest.raises(InputError, match=f"{name}: is a pipe or a device; expected a file of"):
            read_files([str(tmp_path / name)])


def test_sentences_are_bounded_and_on_one_line(tmp_path):
    record = {"translation": {"en\nerror: all is well\x1b[2J": "x" * 8_000_000, "it": "y"}}
    (tmp_path / "a.json").write_text(json.dumps([{"x": "y" * 8_000_000}]))
    (tmp_path / "b.json").write_text(json.dumps([record]))
    (tmp_path / "c.tsv").write_text("\t".join(map(str, range(100_000))) + "\nx\n")
    from plumbing.corpus.corpus import read_corpus

    for name in ("a.json", "b.json", "c.tsv"):
        began = time.time()
        with pytest.raises(InputError) as error:
            read_corpus([str(tmp_path / name)])
        said = str(error.value)
        assert len(said) < 1100 and said.isprintable() and time.time() - began < 20


def test_rows_are_read_anew_each_time_and_none_before_the_first(tmp_path):
    (tmp_path / "a.tsv").write_text("en\tit\na\tb\n")
    (file,) = read_files([str(tmp_path / "a.tsv")])
    assert list(file.rows) == list(file.rows) and len(list(file.rows)) == 1
    (tmp_path / "a.tsv").write_text("en\tit\na\tb\nc\td\n")
    assert [row.where for row in file.rows] == ["line 2", "line 3"]


def test_what_is_wrong_with_the_last_file_is_said_before_the_first_is_read(tmp_path):
    (tmp_path / "a.tsv").write_text("en\tit\na\tb\nc\n")  # its third line is not reached
    for name, text in [("b.tsv", "no table"), ("b.json", '[{"a": 1}]'), ("b.en-it.en", "x")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}[,:]"):
            read_files([str(tmp_path / "a.tsv"), str(tmp_path / name)])

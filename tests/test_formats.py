"""Rows of files: references that belong together, numbers of lines, what is no text."""

import gzip
import json
import os
import time

import pytest

from plumbing.errors import InputError
from plumbing.formats import read_files


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
        ("a.json.gz", gzip.compress(b"[]", mtime=0), "a.json.gz is gzip; expected text: unpack it"),
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
            read_files([str(tmp_path / name)])


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
    from plumbing.corpora import read_corpus

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

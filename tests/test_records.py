"""JSON one value at a time: the values, and the errors, of json.loads on the whole text."""

import json
import random

import pytest

from plumbing.corpus import records
from plumbing.base.errors import InputError
from plumbing.base.files import read_lines
from plumbing.corpus.records import array_records, line_records

VALUES = [{"a": 'x, ] [ { "\\ \n\u2028\U0001f600', "b": [1, -2.5e-7, {"c": None}]}, 123, "]"]
VALUES += [[], {}, [[1], [2, [3]]], True, float("-inf"), "", 10**40, {"": "è" * 50}] * 3


def whole(path):
    """The entries, or the sentence, that the text at once gives."""
    try:
        return json.loads("\n".join(read_lines(path)))
    except InputError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"{path}, line {getattr(error, 'lineno', 1)}: not valid JSON ({error})"


def streamed(path):
    try:
        return [entry for _, entry in array_records(path)]
    except InputError as error:
        return str(error)


@pytest.fixture(params=[(1, 1), (5, 16), (1 << 16, 1 << 20)])
def sizes(request, monkeypatch):
    """Bytes of a piece and characters of the window: texts are cut at every place."""
    monkeypatch.setattr(records, "PIECE", request.param[0])
    monkeypatch.setattr(records, "WINDOW", request.param[1])


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("ascii", [True, False])
def test_the_entries_of_an_array_are_those_of_the_whole_text(tmp_path, sizes, indent, ascii):
    path = str(tmp_path / "a.json")
    text = json.dumps(VALUES, indent=indent, ensure_ascii=ascii)
    for begin, end in [("", ""), ("\ufeff", "\n"), (" \n\t", " \n\n"), ("\r\n", "\r\n")]:
        (tmp_path / "a.json").write_bytes((begin + text.replace("\n", "\r\n") + end).encode())
        assert streamed(path) == whole(path) == VALUES
    for text in ("[]", "[ ]", "[\n]\n", "[1]", "[[]]"):
        (tmp_path / "a.json").write_text(text)
        assert streamed(path) == json.loads(text)


BAD = ["[1,]", "[1 2]", "[1", "[", "[1]]", "[1] 2", "[,1]", "[1,,2]", '["a]', '["a\\', '["\\u12']
BAD += ['["a" "b"]', "[tru", "[tru]", "[-", "[1e", "[-Infinit", '[{"a" 1}]', '[{"a": 1,}]', "[1.]"]
BAD += ["[1]\n[2]\n", "[1,\n2,\r\n x]", '["a\nb"]', "[" * 100_000, "[1, " + "[" * 100_000, "[0x1]"]
BAD += ['[1,\n{"a": "b}]\n', "[" + "1" * 5000 + "]", "[1,\n\n" + "2, " * 40 + "}", "[1]" + "x" * 99]
BAD += [b"[1, \xff]", b"[1,\n\n 2, \xc3\n]", b'["\xe2\x80', b'["\xf0\x9f\x98\x80", "\xf0\x9f\x98"]']


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_a_bad_array_gets_the_sentence_of_the_whole_text(tmp_path, sizes, text):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    path = str(tmp_path / "a.json")
    said = streamed(path)
    assert isinstance(said, str)
    if len(text) != 5002 or records.PIECE > 5:  # a part of the digits is too many already
        assert said == whole(path)


def test_a_damaged_array_is_refused_or_read_as_json_does(tmp_path, sizes):
    rng, path = random.Random(0), tmp_path / "a.json"
    text = json.dumps(VALUES, indent=1).encode()
    errors = 0
    for _ in range(300):
        damaged, at = bytearray(text), rng.randrange(len(text))
        if rng.random() < 0.3:
            del damaged[at:]
        elif rng.random() < 0.5:
            damaged[at] = rng.randrange(256)
        else:
            del damaged[at : at + rng.randint(1, 5)]
        path.write_bytes(damaged)
        found = streamed(str(path))
        assert found == whole(str(path)) or not damaged.strip().startswith(b"[")
        errors += isinstance(found, str)
    assert 100 < errors < 300


def test_an_error_is_said_before_the_rest_of_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PIECE", 10)
    monkeypatch.setattr(records, "WINDOW", 100)
    path = tmp_path / "a.json"
    path.write_bytes(b"[1, 2 3, " + b"4, " * 10_000 + b"\xff]")  # which nobody sees
    with pytest.raises(InputError, match="line 1: not valid JSON .*column 7 "):
        list(array_records(str(path)))


def test_a_huge_entry_takes_a_few_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PIECE", 100)
    monkeypatch.setattr(records, "WINDOW", 100)
    attempts = []
    monkeypatch.setattr(records.Window, "grow", counted(records.Window.grow, attempts))
    (tmp_path / "a.json").write_text(json.dumps([1, "x" * 1_000_000, 2]))
    assert len(streamed(str(tmp_path / "a.json"))) == 3 and len(attempts) < 25


def counted(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def test_json_lines_have_numbers_and_a_line_may_be_an_array(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n[{"b": 2}, {"c": 3}]\n[]\n4\n')
    found = list(line_records(str(tmp_path / "a.jsonl")))
    assert found == [(1, {"a": 1}), (3, {"b": 2}), (3, {"c": 3}), (5, 4)]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a" 1}\n')
    with pytest.raises(InputError, match=r"a.jsonl, line 2: not valid JSON \(Expecting ':'"):
        list(line_records(str(tmp_path / "a.jsonl")))

"""JSON, lines, and folders that appear whole or not at all."""

import pytest

from plumbing.base.errors import InputError
from plumbing.base.files import read_json, read_lines, read_pieces, write_json, write_lines


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"name": "è\u2028", "list": [1, 2.5, None], "deep": {"a": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "data, said",
    [
        (b"[1]", "holds list; expected a JSON object"),
        (b"null", "holds NoneType; expected"),
        (b"{", "expecting property name"),
        (b"\xff", "can't decode byte"),
        (b"[" * 100_000, "recursion"),
        (None, "no such file or directory; expected a JSON object"),
    ],
)
def test_what_is_no_json_object_is_one_sentence_that_names_the_file(tmp_path, data, said):
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError, match=f"a.json: .*{said}") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_only_a_newline_ends_a_line(tmp_path):
    lines = ["a\u2028b", "c\x85d", "", "e\x0cf"]
    write_lines(tmp_path / "a.txt", lines)
    assert read_lines(tmp_path / "a.txt") == lines
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + "a\r\nb\u2028\r\nc".encode())
    assert read_lines(tmp_path / "b.txt") == ["a", "b\u2028", "c"]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 1000])
def test_pieces_of_a_file_are_its_text_cut_between_characters(tmp_path, most):
    text = "aè\u2028\U0001f600\r\n\n" * 20 + "\ufeffend\r"
    for bom in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.txt").write_bytes(bom + text.encode())
        pieces = list(read_pieces(tmp_path / "a.txt", most))
        assert "".join(pieces) == text and max(map(len, pieces)) <= most
    for wrong, line in [(b"\xff", 1), (b"a\n\xc3\n\n", 2), (b"a\n\n\x80", 3), (b"\xf0\x9f\x98", 1)]:
        (tmp_path / "b.txt").write_bytes(b"abc" + wrong)
        with pytest.raises(InputError, match=rf"b.txt, line {line}: byte 0x.. is not UTF-8"):
            list(read_pieces(tmp_path / "b.txt", most))

"""The JSON values of a file one at a time: the entries of an array, or the value of each line."""

import json
import re
from collections.abc import Iterator

from plumbing.base.errors import InputError
from plumbing.base.files import read_pieces, stream_lines

PIECE = 1 << 16  # bytes
WINDOW = 1 << 18  # characters that are read at once
BEGIN, NEXT, END = (re.compile(rf"[ \t\n\r]*{c}[ \t\n\r]*") for c in (r"\[", ",", r"[,\]]"))
DECODER = json.JSONDecoder()
# An error so near to the end of what has been read may be that of a number, of a name like
# -Infinity or of an escape of which a part is there; one in a string may lie farther.
UNDECIDED = 16


def line_records(path: str) -> Iterator[tuple[int, object]]:
    """(line, value) of JSON lines; of a line with an array, its entries. Raises InputError."""
    for number, text in enumerate(stream_lines(path), start=1):
        try:
            value = json.loads(text or "[]")
        except (ValueError, RecursionError) as error:
            raise not_json(path, number + getattr(error, "lineno", 1) - 1, error) from None
        for record in value if isinstance(value, list) else [value]:
            yield number, record


def not_json(path: str, line: int, said: object) -> InputError:
    return InputError(f"{path}, line {line}: not valid JSON ({said})")


def array_records(path: str) -> Iterator[tuple[int, object]]:
    """(1, entry) of one JSON array, of which memory holds a window or a longer entry. Raises
    InputError, which says what json.loads says of the whole text."""
    window, begun = Window(path), False
    while True:
        entry = window.decode(NEXT if begun else BEGIN)
        if entry:
            yield 1, entry[0]
            begun = True
            continue
        before = "[0" if begun else ""  # stands for the entries that are gone
        error = window.find_error(before)
        if is_decided(error, len(before) + window.left()) or not window.grow():
            if error is None:
                return
            raise not_json(path, *window.place(error, len(before)))


class Window:
    """The part of a file's text that is not decoded yet, from `at` on."""

    def __init__(self, path: str):
        self.pieces = text_pieces(path)
        self.text, self.at = "", 0
        self.gone, self.lines, self.line_start = 0, 0, 0  # characters before it, lines; its line's

    def left(self) -> int:
        """How many characters are not decoded."""
        return len(self.text) - self.at

    def decode(self, opening: re.Pattern) -> tuple[object] | None:
        """The next entry, after `opening`; None where it is not there with what must follow it."""
        found = opening.match(self.text, self.at)
        if not found:
            return None
        try:
            value, end = DECODER.raw_decode(self.text, found.end())
        except (ValueError, RecursionError):
            return None
        if not END.match(self.text, end):
            return None
        self.at = end
        return (value,)

    def grow(self) -> bool:
        """Let go of what is decoded and read on: as much again as is left, so that a huge entry
        takes a few attempts and not thousands. False at the end of the file."""
        self.lines += self.text.count("\n", 0, self.at)
        newline = self.text.rfind("\n", 0, self.at)
        if newline >= 0:
            self.line_start = self.gone + newline + 1
        self.gone += self.at
        rest = self.text[self.at :]
        parts, wanted = [rest], max(WINDOW, len(rest))
        while wanted > 0 and (piece := next(self.pieces, None)) is not None:
            parts.append(piece)
            wanted -= len(piece)
        self.text, self.at = "".join(parts), 0
        return self.left() > len(rest)

    def find_error(self, before: str) -> Exception | None:
        """What is wrong with `before` and the text that is left, as a whole; None: nothing."""
        try:
            json.loads(before + self.text[self.at :])
        except (ValueError, RecursionError) as error:
            return error
        return None

    def place(self, error: Exception, before: int) -> tuple[int, str]:
        """(the line of an error, its text), with places in the whole file; it was found in what is
        left, after so many characters that do not count."""
        if not isinstance(error, json.JSONDecodeError):
            return 1, str(error)
        head = self.text[: self.at + error.pos - before]
        line, char = self.lines + head.count("\n") + 1, self.gone + len(head)
        start = self.gone + head.rfind("\n") + 1 if "\n" in head else self.line_start
        return line, f"{error.msg}: line {line} column {char - start + 1} (char {char})"


def is_decided(error: Exception | None, length: int) -> bool:
    """Whether an error in a text of this length stays one, however the text goes on."""
    if isinstance(error, json.JSONDecodeError):
        in_string = error.msg.startswith("Unterminated string")
        return not in_string and error.pos < length - UNDECIDED
    return error is not None


def text_pieces(path: str) -> Iterator[str]:
    """The text of a file in pieces, its lines without \\r at their ends, the last without \\n."""
    ending = ""
    for piece in read_pieces(path, PIECE):
        piece = ending + piece
        line = piece.removesuffix("\n")
        text = line.removesuffix("\r")
        ending = "\n" if line != piece else "\r" if text != line else ""
        yield text

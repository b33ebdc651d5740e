"""JSON and lines of text: read with one sentence for what is wrong, written whole or not at all."""

import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from plumbing.base.errors import InputError, require

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # of the project
NEW = ".train-py-new"  # ends the name of what is not whole yet
MODEL_JSON = "a JSON object of a model folder in Hugging Face format"
GZIP = b"\x1f\x8b"
# How files begin that people take for text.
PACKED = {
    "gzip in gzip": re.escape(GZIP),
    "bzip2": rb"BZh\d1AY&SY",
    "xz": rb"\xfd7zXZ",
    "zstd": rb"\(\xb5/\xfd",
    "a zip archive": rb"PK\x03\x04",
    "Parquet": rb"PAR1[\0-\x1f]",
    "Arrow": rb"ARROW1\0",
    "a tar archive": rb"(?s).{257}ustar",
}


def require_file(path: str, expected: str) -> None:
    """Raise InputError unless `path` is a file: to read a pipe or a device may never end."""
    found = "no such file or directory"
    if os.path.exists(path):
        found = "is a directory" if os.path.isdir(path) else "is a pipe or a device"
    require(os.path.isfile(path), f"{path}: {found}; expected {expected}")


def read_json(path: str, expected: str = MODEL_JSON) -> dict:
    """The JSON object of a file. Raises InputError."""
    require_file(path, expected)
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found = f"holds {type(value).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        value, found = None, (getattr(error, "strerror", None) or str(error)).lower()
    require(isinstance(value, dict), f"{path}: {found}; expected {expected}")
    return value


def write_whole(path: str, text: str) -> None:
    """Write a text file that has its name only when it is whole. What UTF-8 cannot say, the name of
    a strange file perhaps, is escaped as in JSON."""
    aside = os.fspath(path) + NEW
    try:
        pathlib.Path(aside).write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(aside, path)
    except OSError:
        pathlib.Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: str, value: dict | list) -> None:
    """Write JSON, one field a line."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. Raises InputError. Only \\n ends a line: U+2028 and U+0085 are
    text."""
    return list(stream_lines(path))


def stream_lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time."""
    for line in read_pieces(path):
        yield line.removesuffix("\n").removesuffix("\r")


def read_pieces(path: str, most: int = -1) -> Iterator[str]:
    """The text of a UTF-8 file, perhaps of a gzip-compressed one, a line with its end at a time, or
    of a longer one about `most` bytes. Raises InputError."""
    require_file(path, "a file of translations")
    number, encoding = 1, "utf-8-sig"
    try:
        with open(path, "rb") as file, unpacked(file) as f:
            refuse_packed(path, f.peek(300))
            while piece := f.readline(most):
                for _ in range(3 if most > 0 and piece[-1] > 127 else 0):  # the rest of a character
                    if b"\x80" <= f.peek(1)[:1] < b"\xc0":
                        piece += f.read(1)
                yield piece.decode(encoding)
                number, encoding = number + piece.endswith(b"\n"), "utf-8"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        sentence = f"{path}: damaged gzip, near line {number} ({error})"
        raise InputError(f"{sentence}; copy the file again") from None
    except OSError as error:
        found = error.strerror.lower()
        raise InputError(f"{path}: {found}; expected a file of translations") from None
    except UnicodeDecodeError as error:
        place, byte = f"{path}, line {number}", error.object[error.start]
        raise InputError(f"{place}: byte {byte:#04x} is not UTF-8; convert the file") from None


def unpacked(file: io.BufferedReader) -> BinaryIO:
    """A file that was opened, decompressed while it is read where it is gzip."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == GZIP else file


def refuse_packed(path: str, first: bytes) -> None:
    """Raise InputError where a file begins as an archive or a table of columns does."""
    for kind, magic in PACKED.items():
        sentence = f"{path} is {kind}; expected text: unpack it, or export it as JSON lines"
        require(not re.match(magic, first), sentence)


def write_lines(path: str, lines: list[str]) -> None:
    """Write a text file, each line ended by \\n."""
    write_whole(path, "".join(line + "\n" for line in lines))

"""JSON and lines of text: read with one sentence for what is wrong, written whole or not at all."""

import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator

from plumbing.base.errors import InputError, require

ROOT = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)  # of the project
NEW = ".train-py-new"  # ends the name of what is not whole yet
MODEL_JSON = "a JSON object of a model folder in Hugging Face format"
FROM_HUB = "`hf download NAME --local-dir FOLDER` copies a model from Hugging Face's Hub"
GZIP = b"\x1f\x8b"
TABLE = "a table of Arrow or Parquet; expected text: datasets' to_json writes it as JSON lines"
NO_TEXT = {
    b"\xff\xff\xff\xff": TABLE,
    b"ARROW1": TABLE,
    b"PAR1": TABLE,
    b"PK\x03\x04": "a zip archive or a spreadsheet; expected text: unpack it, or save it as TSV",
    b"\xff\xfe": "UTF-16; expected UTF-8: convert it, as with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; expected UTF-8: convert it, as with iconv -f UTF-16 -t UTF-8",
}


def require_file(path: str, expected: str) -> None:
    """Raise InputError unless `path` is a file: to read a pipe or a device may never end."""
    found = "no such file or directory"
    if os.path.exists(path):
        found = "is a directory" if os.path.isdir(path) else "is a pipe or a device"
    require(os.path.isfile(path), f"{path}: {found}; expected {expected}")


def require_folder(folder: str, expected: str) -> None:
    """Raise InputError unless a folder is there."""
    require(os.path.isdir(folder), f"{folder}: no such folder; expected {expected}; {FROM_HUB}")


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
    """Write a text file that has its name only when it is whole."""
    aside = os.fspath(path) + NEW
    try:
        pathlib.Path(aside).write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(aside, path)
    except OSError:
        pathlib.Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: str, value: dict | list) -> None:
    """Write JSON, one field a line."""
    write_whole(path, to_text(path, value))


def to_text(path: str, value: dict | list) -> str:
    """JSON, one field a line. Raises InputError for what a user's file nests more deeply than
    Python can write."""
    try:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be written; expected plain JSON") from None


def write_lines(path: str, lines: list[str]) -> None:
    """Write a text file, each line ended by \\n."""
    write_whole(path, "".join(line + "\n" for line in lines))


def read_lines(path: str, what: str = "a file of translations") -> Iterator[str]:
    """The lines of a UTF-8 file, perhaps of a gzip-compressed one, one at a time. Only \\n ends a
    line: U+2028 and U+0085 are text. what: the file is expected to be. Raises InputError."""
    require_file(path, what)
    number = 1
    try:
        with open(path, "rb") as file:
            first = file.peek(6)
            for magic, what in NO_TEXT.items():
                require(not first.startswith(magic), f"{path}: {what}")
            for line in gzip.GzipFile(fileobj=file) if first.startswith(GZIP) else file:
                nul = (
                    f"{path}: NUL in its first line; expected text: unpack an archive, or convert "
                )
                require(number > 1 or b"\0" not in line, f"{nul}UTF-16 and UTF-32 to UTF-8")
                # A byte-order mark begins a file, or a line where files were joined.
                yield line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        sentence = f"{path}: damaged gzip, near line {number} ({error})"
        raise InputError(f"{sentence}; copy the file again") from None
    except OSError as error:
        found = error.strerror.lower()
        raise InputError(f"{path}: {found}; expected {what}") from None
    except UnicodeDecodeError as error:
        place, byte = f"{path}, line {number}", error.object[error.start]
        advice = "convert the file, or unpack it where it is an archive or a table of columns"
        raise InputError(f"{place}: byte {byte:#04x} is not UTF-8; {advice}") from None

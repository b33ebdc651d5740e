"""JSON, lines of text, and folders that appear whole or not at all."""

import json
import os
import pathlib
import shutil

from plumbing.errors import InputError, require

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of the project


def read_json(path: str) -> dict:
    """The JSON object of a file. Raises InputError."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        found = f"holds {type(value).__name__}"
    except (OSError, ValueError, RecursionError) as error:
        value, found = None, (getattr(error, "strerror", None) or str(error)).lower()
    sentence = f"{path}: {found}; expected a JSON object of a model folder in Hugging Face format"
    require(isinstance(value, dict), sentence)
    return value


def write_json(path: str, value: dict) -> None:
    """Write a JSON object, one field a line."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. Raises InputError. Only \\n ends a line: U+2028 and U+0085 are
    text."""
    lines = []
    try:
        with open(path, "rb") as f:
            for line in f:
                text = line.decode("utf-8" if lines else "utf-8-sig")
                lines.append(text.removesuffix("\n").removesuffix("\r"))
    except OSError as error:
        found = error.strerror.lower()
        raise InputError(f"{path}: {found}; expected a file of translations") from None
    except UnicodeDecodeError as error:
        place, byte = f"{path}, line {len(lines) + 1}", error.object[error.start]
        raise InputError(f"{place}: byte {byte:#04x} is not UTF-8; convert the file") from None
    return lines


def write_lines(path: str, lines: list[str]) -> None:
    """Write a text file, each line ended by \\n."""
    pathlib.Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def remove_folder(folder: str) -> None:
    """Delete a folder, when all that replaces it is on the disk. It first loses its name, so a kill
    leaves no half of it."""
    os.sync()
    shutil.rmtree(folder + ".old", ignore_errors=True)
    if os.path.exists(folder):
        os.rename(folder, folder + ".old")
        shutil.rmtree(folder + ".old")


def publish_folder(partial: str, folder: str) -> None:
    """Give a folder its name once all of it is on the disk: whoever sees the name sees it whole."""
    remove_folder(folder)
    os.rename(partial, folder)

"""Files as they are on the disk: JSON, lines of text, folders that appear whole or not at all."""

import json
import os
import pathlib
import shutil

from plumbing.errors import InputError


def read_json(path):
    try:
        return dict(json.loads(pathlib.Path(path).read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        said = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(
            f"{path}: {said}; expected a JSON object of a model folder in Hugging Face format"
        ) from None


def write_json(path, value):
    pathlib.Path(path).write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_lines(path):
    """The lines of a UTF-8 file; only \\n ends one, U+2028 and U+0085 are text. Raises InputError."""
    lines = []
    try:
        with open(path, "rb") as f:
            for line in f:
                lines.append(
                    line.decode("utf-8" if lines else "utf-8-sig")
                    .removesuffix("\n")
                    .removesuffix("\r")
                )
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror.lower()}; expected a file of translations"
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{path}, line {len(lines) + 1}: byte {byte:#04x} is not UTF-8; convert the file"
        ) from None
    return lines


def remove(folder):
    """Delete a folder, when all that replaces it is on the disk; it first loses its name, so a kill leaves no half of it."""
    os.sync()
    shutil.rmtree(folder + ".old", ignore_errors=True)
    if os.path.exists(folder):
        os.rename(folder, folder + ".old")
        shutil.rmtree(folder + ".old")


def publish(partial, out):
    """Give a folder its name once all of it is on the disk, so that whoever sees the name sees a whole folder."""
    remove(out)
    os.rename(partial, out)

"""Folders that appear whole or not at all, and what may be deleted: what this program made.

What is there for a moment alone has a mark in its name, so that nobody else's folder is taken for
it. Files are deleted by name: a file that this program does not make stays, wherever it lies.
"""

import os
import re

from plumbing.checkpoint.card import is_card
from plumbing.base.files import NEW
from plumbing.checkpoint.folder import COMPANIONS
from plumbing.corpus.languages import LANGUAGES
from plumbing.run.log import LOGS
from plumbing.run.record import CARD

LOCK = "train-py.lock"
OLD = ".train-py-old"  # ends the name of a whole folder that another is about to replace
TRASH = ".train-py-trash"  # of one that is being deleted
NOT_FINITE = ".train-py-not-finite"  # of a checkpoint whose loss was not finite

MARKS = (NEW, OLD, TRASH, NOT_FINITE)
MARKED = rf"(({'|'.join(map(re.escape, MARKS))})\d*)*"  # numbered where a name was taken
NAMES = "|".join(map(re.escape, (*COMPANIONS, *LOGS, LOCK)))
NAMES += rf"|README\.md({'|'.join(map(re.escape, MARKS))})"  # without a mark it may be anybody's
NAMES += r"|events\.out\.tfevents\..+"  # of experiments/to_tensorboard.py
CODES = "|".join(map(re.escape, LANGUAGES))
FILES = re.compile(
    rf"({NAMES}|(adapter_)?config\.json|(settings|state)\.json"
    r"|(model|adapter_model|optimizer)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    rf"){MARKED}"
)
# ... and in the folder of an evaluation.
TEXTS = rf"({CODES})-({CODES})(\.(src|ref\d*))?\.txt"
EVAL_FILES = re.compile(rf"(scores\.json|model_outputs\.json|repaired\.md|{TEXTS}){MARKED}")
FOLDERS = re.compile(rf"(step-\d{{6,}}|eval-.+?){MARKED}")


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder that this program makes."""
    return entry.is_dir(follow_symlinks=False) and bool(FOLDERS.fullmatch(entry.name))


def is_file(entry: os.DirEntry) -> bool:
    """Whether it is a file that this program makes."""
    if entry.name == CARD:
        return is_card(entry.path)
    evaluation = os.path.basename(os.path.dirname(entry.path)).startswith("eval-")
    names = EVAL_FILES if evaluation else FILES
    return not entry.is_dir(follow_symlinks=False) and bool(names.fullmatch(entry.name))


def made(folder: str) -> set[str]:
    """The names in a folder that this program may have given."""
    return {entry.name for entry in os.scandir(folder) if is_folder(entry) or is_file(entry)}


def others(folder: str) -> list[str]:
    """The paths in a folder that this program does not make."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_folder(entry):
            found += others(entry.path)
        elif not is_file(entry):
            found.append(entry.path)
    return found


def remove_made(folder: str, keep: re.Pattern | None = None) -> None:
    """Delete what this program made in a folder, but for names that match `keep`; then the folder,
    if nothing is left in it."""
    for entry in list(os.scandir(folder)):
        if keep and keep.fullmatch(entry.name):
            continue
        if is_folder(entry):
            remove_made(entry.path)
        elif is_file(entry):
            os.unlink(entry.path)
    if not os.listdir(folder):
        os.rmdir(folder)


def free_name(name: str) -> str:
    """The name, or one like it that is not taken: what is left under it of a killed process goes,
    what is somebody else's stays."""
    number, found = 1, name
    while os.path.lexists(found):
        if os.path.isdir(found) and not os.path.islink(found):
            remove_made(found)
        if os.path.lexists(found):
            number += 1
            found = f"{name}{number}"
    return found


def remove_folder(folder: str) -> None:
    """Delete what this program made in a folder. It first loses its name, so a kill leaves no half
    of it."""
    trash = free_name(folder.split(OLD)[0] + TRASH)
    os.rename(folder, trash)
    remove_made(trash)
    if os.path.isdir(trash):
        print(f"{trash} stays: it holds what this program did not make")


def publish_folder(partial: str, folder: str) -> None:
    """Give a folder its name once all of it is on the disk: whoever sees the name sees it whole. A
    folder of that name is moved away before, and deleted after."""
    os.sync()
    old = free_name(folder + OLD)
    if os.path.isdir(folder):
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        if os.path.isdir(old):
            os.rename(old, folder)
        raise
    if os.path.isdir(old):
        remove_folder(old)


def restore_folder(folder: str) -> None:
    """Undo a replacement that ended between its two moves; delete what a later end left."""
    if os.path.isdir(folder + OLD):
        if os.path.exists(folder):
            remove_folder(folder + OLD)
        else:
            os.rename(folder + OLD, folder)
    if os.path.isdir(folder + TRASH):
        remove_made(folder + TRASH)

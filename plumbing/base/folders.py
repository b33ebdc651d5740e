"""Folders that appear whole or not at all, and which of them may be deleted: those that are ours.

What is there for a moment alone has a mark in its name, so that a kill leaves nothing that could be
taken for a whole folder, and nobody else's folder is taken for such a remainder.
"""

import itertools
import os
import re
import shutil

from plumbing.base.files import NEW

LOCK = "train-py.lock"
SETTINGS, CARD = "settings.json", "README.md"
CARD_MARK = "made by train.py"  # in a CARD that is ours
OLD = ".train-py-old"  # ends the name of a whole folder that another is about to replace
TRASH = ".train-py-trash"  # of one that is being deleted
NOT_FINITE = ".train-py-not-finite"  # of a checkpoint whose loss was not finite
MARKS = (NEW, OLD, TRASH, NOT_FINITE)
MARKED = "(" + "|".join(map(re.escape, MARKS)) + r")?"
FILES = re.compile(
    r"((adapter_|generation_|tokenizer_)?config\.json|(settings|state|scores)\.json"
    r"|(special_tokens_map|added_tokens|tokenizer)\.json|tokenizer\.model|chat_template\.jinja"
    r"|(model|adapter_model|optimizer)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
    r"|(log|speed)\.jsonl|README\.md|train-py\.lock|[a-z]{2,3}-[a-z]{2,3}(\.src|\.ref)?\.txt"
    rf"|events\.out\.tfevents\..+){MARKED}"
    r"|\.tmp\w{6}"  # of safetensors, until a file is whole
)
FOLDERS = re.compile(rf"(step-\d{{6,}}|eval-.+?){MARKED}")


def is_ours(entry: os.DirEntry) -> bool:
    """Whether this program gives such a name to a file, or to a folder."""
    if entry.is_dir(follow_symlinks=False):
        return bool(FOLDERS.fullmatch(entry.name))
    if entry.name == CARD:
        with open(entry.path, encoding="utf-8", errors="replace") as file:
            return CARD_MARK in file.read(1000)
    return bool(FILES.fullmatch(entry.name))


def strange_files(folder: str) -> list[str]:
    """The paths in a folder that are not ours."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not is_ours(entry):
            found.append(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            found += strange_files(entry.path)
    return found


def clear_folder(folder: str, keep: str = "") -> None:
    """Delete what is ours in a folder, but for names like the pattern `keep`, and for folders that
    hold something else too."""
    for entry in list(os.scandir(folder)):
        if not is_ours(entry) or re.fullmatch(keep, entry.name):
            continue
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
        elif not strange_files(entry.path):
            shutil.rmtree(entry.path)


def remove_folder(folder: str) -> None:
    """Delete a folder that is ours as a whole; one that holds something else stays as it is. It
    first loses its name, so that a kill leaves no half of it."""
    if strange_files(folder):
        return print(f"{folder} stays: it holds {strange_files(folder)[0]}")
    trash = folder.removesuffix(OLD) + TRASH
    if os.path.isdir(trash):
        shutil.rmtree(trash)
    os.rename(folder, trash)
    shutil.rmtree(trash)


def publish_folder(partial: str, folder: str) -> None:
    """Give a folder its name once all of it is on the disk: whoever sees the name sees it whole. A
    folder of that name is moved away before, and deleted after."""
    if hasattr(os, "sync"):
        os.sync()
    old = folder + OLD
    if os.path.isdir(folder):
        if os.path.isdir(old):  # it stayed, as it holds something else: it is not in the way
            free = (f"{old}-{n}" for n in itertools.count(1))
            os.rename(old, next(name for name in free if not os.path.exists(name)))
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
        shutil.rmtree(folder + TRASH)

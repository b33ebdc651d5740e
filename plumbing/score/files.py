"""Files of outputs: those that came from elsewhere, and where an evaluation leaves its own."""

import itertools
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress

from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW, read_json, write_json, write_lines
from plumbing.base.folders import CARD, TRASH, publish_folder, remove_folder, restore_folder
from plumbing.base.lock import in_turn
from plumbing.base.processes import require_agreement
from plumbing.checkpoint.card import write_card

Corpus = dict[tuple[str, str], Sequence[tuple]]


NAMED = re.compile(r"(?<![A-Za-z])([a-z]{2,3})-([a-z]{2,3})(?![A-Za-z])")  # it-nl
Direction = tuple[str, str]


def group_files(paths: list[str]) -> dict[str, dict[Direction | None, str]]:
    """{name of a system: {direction: the file of its outputs}} of files and folders. gpt.it-nl.txt
    and gpt.nl-it.txt are one system, gpt, as are it-nl.txt and nl-it.txt in a folder; None is the
    direction of a file whose name has none. Raises InputError."""
    systems = {}
    for path in map(os.path.normpath, paths):
        files = [path]
        if os.path.isdir(path):
            names = (name for name in sorted(os.listdir(path)) if name.endswith(".txt"))
            files = [os.path.join(path, x) for x in names if NAMED.fullmatch(x[:-4])]
            require(files, f"{path}: no outputs in it; expected files like it-nl.txt")
        for file in files:
            folder, name = os.path.split(file)
            found = NAMED.findall(name)
            direction = found[0] if len(found) == 1 else None
            stem = re.sub(r"\.(txt|out|hyp)$", "", name)
            if direction:
                stem = stem.replace("-".join(direction), "").strip("._-")
                stem = re.sub(r"[._-]{2,}", ".", stem)
            whole = os.path.abspath(folder)
            if os.path.basename(whole).startswith("eval-"):  # of a run
                whole = os.path.dirname(whole)
            system = stem or os.path.basename(whole)
            others = systems.setdefault(system, {})
            sentence = f"--hypotheses {file}: {others.get(direction)} is {system}'s already"
            require(direction not in others, f"{sentence}; give one of them another name")
            others[direction] = file
    return systems


def directions_of(files: dict[Direction | None, str], there: list[Direction]) -> list[Direction]:
    """The directions of a test set that a system's outputs are of: all of them where it has no
    files. Raises InputError."""
    names = ", ".join("-".join(direction) for direction in there)
    for direction, path in files.items():
        if direction is None:
            advice = "name the file like it-nl.txt, or choose one with --directions"
            one = len(there) == 1 and len(files) == 1
            require(one, f"{path}: its name has no direction, and these are {names}; {advice}")
        else:
            found = f"{path}: {'-'.join(direction)} is not among those to be scored, {names}"
            require(direction in there, f"{found}; choose others with --data and --directions")
    return there if None in files else [x for x in there if not files or x in files]


class Results:
    """The place of an evaluation's files: CKPT/eval-SPLIT, with .SUFFIX behind it for a system that
    has one; -2 at its end where another test set's are there. data: the test set's first file.
    Raises InputError where nothing can be written, or where another node has other rows."""

    def __init__(self, ckpt: str, data: str, corpus: Corpus, suffix: str = ""):
        split, _ = os.path.splitext(os.path.basename(data.removesuffix(".gz")))
        self.ckpt, self.name = ckpt, f"{split}.{suffix}" if suffix else split
        self.of = {"data_crc32": zlib.crc32(repr(corpus).encode()), "name_of_files": self.name}
        require_agreement("data_crc32", self.of["data_crc32"])
        require(os.access(ckpt, os.W_OK), f"{ckpt} cannot be written to; copy it, or change that")
        longest = len(os.fsencode(f"eval-{self.name}-99{TRASH}"))
        sentence = (
            f"{data}: eval-{self.name} would be too long as a folder's name, with marks behind"
        )
        require(longest <= 255, f"{sentence}; give the file or the system a shorter one")

    def find_again(self) -> str:
        """The checkpoint's folder, which has another name when its run has finished meanwhile."""
        before, _, after = self.ckpt.rpartition(".partial")
        found = [path for path in (self.ckpt, before + after) if os.path.isdir(path)]
        if not found:
            raise InputError(f"{self.ckpt} was deleted while it was evaluated: no files")
        return found[0]

    def choose(self, ckpt: str) -> str:
        """The folder of this test set."""
        for number in itertools.count(1):
            folder = os.path.join(ckpt, f"eval-{self.name}{f'-{number}' if number > 1 else ''}")
            restore_folder(folder)  # which a kill may have left between two names
            scores = os.path.join(folder, "scores.json")
            if not os.path.exists(scores):
                return folder
            found = {}
            with suppress(InputError):  # a damaged one stays, and is no test set's
                found = read_json(scores)
            if found and all(found.get(name, value) == value for name, value in self.of.items()):
                return folder

    def write(self, corpus: Corpus, hypotheses: dict[str, list[str]], report: dict) -> str:
        """Write hypotheses, sources, references and scores.json, all of them or none, and the
        model's card where it has one; returns the folder, without what an earlier evaluation left
        there. Raises InputError."""
        with in_turn(self.find_again()):  # two evaluations may end at once
            ckpt = self.find_again()
            folder = self.choose(ckpt)
            if os.path.isdir(folder + NEW):
                remove_folder(folder + NEW)  # what a killed one left
            os.mkdir(folder + NEW)
            for direction, rows in corpus.items():
                name = "-".join(direction)
                _, sources, targets = (
                    column for column in zip(*(row[:3] for row in rows), strict=True)
                )
                write_texts(folder + NEW, f"{name}.txt", hypotheses[name])
                write_texts(folder + NEW, f"{name}.src.txt", sources)
                write_texts(folder + NEW, f"{name}.ref.txt", targets)
            write_json(os.path.join(folder + NEW, "scores.json"), report | self.of)
            publish_folder(folder + NEW, folder)
            if os.path.exists(os.path.join(ckpt, CARD)):
                write_card(ckpt, os.path.basename(os.path.realpath(ckpt)))
        return folder


def write_texts(folder: str, name: str, texts: Sequence[str]) -> None:
    """Each text on a line of its own, so that line n of every file is row n of the test set."""
    write_lines(os.path.join(folder, name), [" ".join(text.split()) for text in texts])

"""Files of outputs: those that came from elsewhere, and where an evaluation leaves its own."""

import itertools
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import suppress

from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW, read_json, read_lines, write_json, write_lines
from plumbing.base.folders import CARD, TRASH, publish_folder, remove_folder, restore_folder
from plumbing.base.lock import in_turn
from plumbing.base.processes import require_agreement
from plumbing.checkpoint.card import write_card
from plumbing.corpus.corpus import clean, in_names
from plumbing.corpus.languages import LANGUAGES

Direction = tuple[str, str]
Corpus = dict[Direction, Sequence[tuple]]


def group_files(paths: list[str]) -> dict[str, dict[Direction | None, str]]:
    """{name of a system: {direction: the file of its outputs}} of files and folders. gpt.it-nl.txt
    and gpt.nl-it.txt are one system, gpt, as are it-nl.txt and nl-it.txt in a folder; None is the
    direction of a file whose name has none. Raises InputError."""
    systems = {}
    for path in map(os.path.normpath, paths):
        files = [path]
        if os.path.isdir(path):
            packed = (".txt", ".txt.gz")
            names = (name for name in sorted(os.listdir(path)) if name.endswith(packed))
            files = [os.path.join(path, x) for x in names if split_name(x)[1] == ""]
            require(files, f"{path}: no outputs in it; expected files like it-nl.txt")
        for file in files:
            direction, stem = split_name(os.path.basename(file))
            folder = os.path.dirname(os.path.abspath(file))
            if os.path.basename(folder).startswith("eval-"):  # of a run
                folder = os.path.dirname(folder)
            system = stem or os.path.basename(folder)
            of_system = systems.setdefault(system, {})
            sentence = f"--hypotheses: {of_system.get(direction)} and {file} are both of the system"
            what = f"{system}, {'-'.join(direction)}" if direction else system
            require(direction not in of_system, f"{sentence} {what}; rename one of them")
            of_system[direction] = file
    return systems


def split_name(name: str) -> tuple[Direction | None, str]:
    """(the direction, what is left) of a file's name: (it, nl) and gpt of gpt.it-nl.txt or
    gpt.it-nl.nl. Of a chain like x-it-nl the last two languages count."""
    name = re.sub(r"(\.txt|\.out|\.hyp)?(\.gz)?$", "", name)
    found = list(in_names(tuple(LANGUAGES)).finditer(name))
    if len(found) != 1:
        return None, name
    *_, source, target = found[0][0].split("-")
    before = name[: found[0].start()] + "-".join(found[0][0].split("-")[:-2])
    after = re.sub(rf"^\.({source}|{target})$", "", name[found[0].end() :])
    return (source, target), ".".join(filter(None, (before.strip("._-"), after.strip("._-"))))


def directions_of(files: dict[Direction | None, str], there: list[Direction]) -> list[Direction]:
    """The directions of a test set that a system's outputs are of: all of them where it has no
    files. Raises InputError."""
    names = ", ".join("-".join(direction) for direction in there)
    for direction, path in files.items():
        if direction is None:
            advice = "name the file like it-nl.txt, or choose one with --directions"
            one = len(there) == 1 and len(files) == 1
            found = f"{path}: its name has no direction, and the test set has several: {names}"
            require(one, f"{found}; {advice}")
        else:
            found = f"{path}: {'-'.join(direction)} is not among those to be scored, {names}"
            require(direction in there, f"{found}; choose others with --data and --directions")
    return there if None in files else [x for x in there if not files or x in files]


def read_outputs(
    files: dict[Direction | None, str], corpus: Corpus, sizes: dict[Direction, int]
) -> dict[tuple[Direction, int], str]:
    """{(direction, row): a system's output}. sizes: how many rows the test set has, of which the
    corpus may have the first alone; a file has either as many lines. Raises InputError."""
    texts = {}
    for direction, rows in corpus.items():
        path = files.get(direction) or files[None]
        lines = [clean(line) for line in read_lines(path, "a file of outputs")]
        found = f"{path}: {len(lines):,} lines for the {len(rows):,} rows of {'-'.join(direction)}"
        fits = len(lines) in (len(rows), sizes[direction])
        require(fits, f"{found}; expected one for each row, blank or not")
        texts |= {(direction, n): line for n, line in enumerate(lines[: len(rows)])}
    return texts


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

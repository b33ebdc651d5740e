"""Where an evaluation leaves its files: a folder of its own, in that of the checkpoint."""

import itertools
import os

from plumbing.checkpoint.card import refresh_card
from plumbing.corpus.corpus import Corpus
from plumbing.base.processes import require_agreement
from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW, read_json, write_json, write_lines, write_whole
from plumbing.corpus.general import GENERAL
from plumbing.run.lock import in_turn
from plumbing.run.removal import free_name, publish_folder, remove_made, restore_folder


class Results:
    """The place of an evaluation's files: ckpt/eval-SPLIT, or for a named system eval-SPLIT.NAME;
    -2 at its end where another test set's are there. data_crc32: of the test set, which is the same
    on every node. Raises InputError where it is not, or where nothing can be written."""

    def __init__(self, ckpt: str, split: str, data_crc32: int, system: str = ""):
        self.ckpt, self.data_crc32 = ckpt, data_crc32
        self.split = f"{split}.{system}" if system else split
        self.of = {"data_crc32": data_crc32, "split": split, "system": system}
        require_agreement("data_crc32", data_crc32)
        require(os.access(ckpt, os.W_OK), f"{ckpt} cannot be written to; copy it, or change that")
        self.identity = identity(ckpt)

    def find_again(self) -> str:
        """The checkpoint's folder, which has another name when its run has finished meanwhile.
        Raises InputError where it is gone, or another run's."""
        before, _, after = self.ckpt.rpartition(".partial")
        for path in (self.ckpt, before + after):
            if os.path.isdir(path) and identity(path) == self.identity:
                return path
        raise InputError(f"{self.ckpt} was deleted or replaced while it was evaluated: no files")

    def choose(self, ckpt: str) -> str:
        """The folder of this test set."""
        for number in itertools.count(1):
            folder = os.path.join(ckpt, f"eval-{self.split}{f'-{number}' if number > 1 else ''}")
            restore_folder(folder)  # which a kill may have left between two names
            scores = os.path.join(folder, "scores.json")
            if not os.path.exists(scores):
                return folder
            found = read_json(scores)
            if all(found.get(name, value) == value for name, value in self.of.items()):
                return folder

    def write(
        self,
        corpus: Corpus,
        hypotheses: dict[str, list[str]],
        report: dict,
        more: dict | None = None,
    ) -> str:
        """Write hypotheses, sources, references and scores.json, and more texts by name, all of
        them or none, and the model's card; returns the folder, without what an earlier evaluation
        left there. Raises InputError."""
        with in_turn(self.find_again()):  # two evaluations may end at once
            folder = self.choose(self.find_again())
            aside = free_name(folder + NEW)  # without what a killed one left
            os.mkdir(aside)
            try:
                self.write_files(aside, corpus, hypotheses, report.get("name", ""))
                for name, text in (more or {}).items():
                    write_whole(os.path.join(aside, name), text)
                write_json(os.path.join(aside, "scores.json"), report | self.of)
                publish_folder(aside, folder)
            except OSError:
                if os.path.isdir(aside):
                    remove_made(aside)
                raise
            refresh_card(os.path.dirname(folder))
        return folder

    def write_files(self, folder: str, corpus: Corpus, outputs: dict, system: str) -> None:
        """The texts of each direction, or the answers to other instructions."""
        for direction, samples in corpus.items():
            name = "-".join(direction)
            if direction == GENERAL:
                answers = zip(samples, outputs[name], strict=True)
                records = [x.answered(text, system) for x, text in answers]
                write_json(os.path.join(folder, "model_outputs.json"), records)
                continue
            self.write_texts(folder, f"{name}.txt", outputs[name])
            self.write_texts(folder, f"{name}.src.txt", [x.source for x in samples])
            self.write_texts(folder, f"{name}.ref.txt", [x.target for x in samples])
            others = itertools.zip_longest(*(x.others for x in samples), fillvalue="")
            for n, references in enumerate(others, start=2):
                self.write_texts(folder, f"{name}.ref{n}.txt", references)

    @staticmethod
    def write_texts(folder: str, name: str, texts: list[str]) -> None:
        """Each text on a line of its own, so that line n of every file is row n of the test set."""
        write_lines(os.path.join(folder, name), [" ".join(text.split()) for text in texts])


def identity(folder: str) -> tuple[int, int]:
    """What stays the same when a folder is renamed."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino

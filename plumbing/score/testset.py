"""What an evaluation reads: test set or instructions, demonstrations; checked before long work."""

import os
from typing import NamedTuple

from plumbing.corpus.corpus import Corpus, Direction, first_rows, read_corpus
from plumbing.score.bootstrap import read_seed
from plumbing.base.errors import require
from plumbing.corpus.general import GENERAL, read_general
from plumbing.score.identify import Identifier, make_identifiers
from plumbing.score.metrics import bleu_metric
from plumbing.run.record import tuned_directions
from plumbing.score.systems import System, SystemSettings


class TestSet(NamedTuple):
    """Rows of each direction, or {GENERAL: other instructions} without the rest."""

    name: str  # of its first file
    corpus: Corpus
    supervised: list[Direction] = ()  # perhaps more than there are rows of
    shots: Corpus = {}  # demonstrations
    identifiers: list[Identifier] = ()  # the first one's verdict is the table's

    @property
    def languages(self) -> set[str]:
        """Those of its directions."""
        return {code for direction in self.corpus for code in direction}


def read_test_set(s: SystemSettings, systems: list[System]) -> TestSet:
    """What evaluate.py's settings and its systems ask for. Raises InputError, also for a metric or
    a language that some direction lacks."""
    first, *_ = s.general or s.data
    name, _ = os.path.splitext(os.path.basename(first.removesuffix(".gz")))
    if s.general:
        check_general(systems)
        return TestSet(name, {GENERAL: first_rows(read_general(s.general, tuning=False), s.rows)})
    tuned = tuned_directions([system.ckpt for system in systems])
    corpus, tuned = read_corpus(s.data, s.directions, tuned, s.skip_unknown, keep_blank=True)
    corpus = {direction: first_rows(samples, s.rows) for direction, samples in corpus.items()}
    read_seed()
    identifiers = make_identifiers(s.lid, s.candidates, corpus)
    for _, target in corpus:
        bleu_metric(target)
    check_contrast(systems, corpus)
    most = max(system.settings.shots for system in systems)
    shots = read_shots(s.shots_from, corpus, most, s.skip_unknown)
    return TestSet(name, corpus, tuned, shots, identifiers)


def check_general(systems: list[System]) -> None:
    """Raise InputError where a system would do with other instructions what translations need."""
    for name, _, s, _ in systems:
        translating = s.shots or s.contrast_language or s.contrast_source
        sentence = "--general answers an instruction by itself; leave out shots and contrast"
        require(not translating, f"{name}: {sentence}")


def check_contrast(systems: list[System], corpus: Corpus) -> None:
    """Raise InputError where a system would contrast with another source, and there is none."""
    if any(system.settings.contrast_source for system in systems):
        for direction, samples in corpus.items():
            sources = {sample.source for sample in samples if not sample.blank}
            sentence = f"--contrast-source needs a second source in {'-'.join(direction)}"
            require(len(sources) > 1, f"{sentence}; it has {len(sources)}")


def read_shots(paths: list[str], corpus: Corpus, count: int, skip_unknown: bool = False) -> Corpus:
    """For each direction of a test set the first so many pairs of the files, the same for every
    system and seed. Raises InputError where there are too few, or a pair of the test set."""
    if not count:
        return {}
    require(paths, "--shots needs --shots-from FILE, which is not the test set")
    found, _ = read_corpus(paths, skip_unknown=skip_unknown)
    shots = {}
    for direction, samples in corpus.items():
        name, of_test = "-".join(direction), {(x.source, x.target) for x in samples}
        possible = found.get(direction, [])
        shared = next((x for x in possible if (x.source, x.target) in of_test), None)
        pair = f"{shared and shared.source!r:.60}"
        sentence = f"--shots-from {' '.join(paths)}: {name} {pair} is in the test set too"
        require(shared is None, f"{sentence}; choose files that share no pair with it")
        shots[direction] = possible[:count]
        few = f"--shots-from {' '.join(paths)}: {len(shots[direction])} pairs of {name}"
        require(len(shots[direction]) == count, f"{few}; expected {count}")
    return shots

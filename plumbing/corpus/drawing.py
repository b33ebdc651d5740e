"""Samples drawn while their files are read: what is known of the others is 8 bytes each, so that
memory follows what is drawn and not the files."""

import random
import zlib
from array import array
from collections.abc import Iterable

import numpy as np


class Drawn(list):
    """Samples of a direction in the order of the draw. crc32: of all that they were drawn from."""

    crc32: int


class Checksum:
    """CRC-32 of what Python prints for a list, whose items come one at a time."""

    def __init__(self, items: Iterable = ()):
        self.crc, self.separator = zlib.crc32(b"["), ""
        for item in items:
            self.add(item)

    def add(self, item: object) -> None:
        self.crc = zlib.crc32(f"{self.separator}{item!r}".encode(), self.crc)
        self.separator = ", "

    def value(self) -> int:
        return zlib.crc32(b"]", self.crc)


def draw(n: int, pairs: int, seed: int, direction: tuple[str, str]) -> array:
    """The numbers of `pairs` of n samples (0: of all), drawn without replacement, in the order of
    the draw, which the seed and the direction decide."""
    numbers = array("q", range(n))
    random.Random(f"{seed} {direction}").shuffle(numbers)  # as it would a list of the samples
    return numbers[: pairs or None]


def draw_all(corpus: dict[tuple, list], pairs: int, seed: int) -> list:
    """`pairs` samples of each direction (0: all of them) in the order of the draw, unless they have
    been drawn."""
    drawn = []
    for direction, samples in corpus.items():
        if not isinstance(samples, Drawn):
            samples = [samples[n] for n in draw(len(samples), pairs, seed, direction)]
        drawn += samples
    return drawn


class Tally:
    """A direction's samples as the first pass over the files finds them: counted; hashed, where
    the direction is chosen; and then kept, or where some will be drawn, only their checksum."""

    def __init__(self, chosen: bool, keep: bool, keep_blank: bool = False):
        self.count, self.blank = 0, 0  # samples, and those with a blank side
        self.hashes = array("q") if chosen else None
        self.kept, self.keep_blank = [] if chosen and keep else None, keep_blank
        self.checksum = Checksum() if chosen and not keep else None

    def add(self, sample: tuple) -> None:
        """The next one of the files."""
        blank = sample.blank
        if blank:
            self.blank += 1
        else:
            self.count += 1
            if self.hashes is not None:
                self.hashes.append(hash(sample))
            if self.checksum:
                self.checksum.add(sample)
        if self.kept is not None and (self.keep_blank or not blank):
            self.kept.append(sample)

    def duplicates(self) -> int:
        """How many samples equal an earlier one, which means: have its 64-bit hash. Of 10 million
        different samples two have the same by chance in one corpus out of 370,000. To be called
        last, since the hashes lose their order."""
        hashes = np.frombuffer(self.hashes, np.int64)
        hashes.sort()
        return int(np.count_nonzero(hashes[1:] == hashes[:-1]))


class Draw:
    """Samples of a direction, drawn from its tally; the second pass over the files fetches them."""

    def __init__(self, tally: Tally, pairs: int, seed: int, direction: tuple[str, str]):
        numbers = draw(tally.count, pairs, seed, direction)
        self.samples = Drawn([None] * len(numbers))
        self.samples.crc32 = tally.checksum.value()
        due = ((n, place, tally.hashes[n]) for place, n in enumerate(numbers))
        self.due = iter(sorted(due))  # in the order of the files
        self.next, self.offered = next(self.due, None), 0

    def offer(self, sample: tuple) -> bool:
        """Keep the next sample of the files, one without a blank side, if it was drawn. False: it
        is not the one that the first pass found there."""
        number, self.offered = self.offered, self.offered + 1
        if self.next is None or self.next[0] != number:
            return True
        _, place, expected = self.next
        self.samples[place], self.next = sample, next(self.due, None)
        return hash(sample) == expected

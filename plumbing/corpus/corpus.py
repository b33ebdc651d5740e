"""A corpus out of translation files: their directions, chosen and counted aloud."""

import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from plumbing.base.processes import progress_bar
from plumbing.corpus.drawing import Draw, Tally, draw
from plumbing.base.errors import InputError, require
from plumbing.corpus.formats import PAIR_NAME, Row, TranslationFile, read_files
from plumbing.corpus.languages import LANGUAGES

UNREADABLE = re.compile("[\0\ud800-\udfff]")

Direction = tuple[str, str]  # codes of source and target


class Sample(NamedTuple):
    """A source and its translation."""

    direction: Direction
    source: str
    target: str
    others: tuple[str, ...] = ()  # further references

    instruction = ""  # it is the direction's; other instructions have their own

    @property
    def blank(self) -> bool:
        return not (self.source and self.target)


Corpus = dict[Direction, list[Sample]]
Source = tuple[TranslationFile, Direction | None]  # and a direction that is another file's


def read_corpus(
    paths: list[str],
    wanted: str = "all",
    supervised: list[Direction] | None = None,
    skip_unknown: bool = False,
    keep_blank: bool = False,
    pairs: int = 0,
    seed: int = 0,
) -> tuple[Corpus, list[Direction]]:
    """({direction: samples}, the supervised ones of all directions) of data files, counted aloud.
    wanted: "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count
    as such, by default those with English. A file named en-it gives it->en too, unless another file
    is named it-en. Rows without a certain direction are an error, or with skip_unknown left out;
    pairs with a blank side are left out too, unless keep_blank. Duplicates are kept; they are
    counted by 64-bit hashes. pairs: so many of each direction are drawn, as the seed says, while
    the files are read, twice: memory holds no others. 0: all, as the files have them. Raises
    InputError."""
    files = read_files(list(map(os.fspath, paths)))
    names = [named_direction(file) for file in files]
    others = [name[::-1] if name and name[::-1] in names else None for name in names]
    sources, unknown = list(zip(files, others, strict=True)), Counter() if skip_unknown else None

    def new_tally(direction: Direction) -> Tally:
        return Tally(may_be_chosen(direction, wanted, supervised), not pairs, keep_blank)

    tallies = count_samples(sources, unknown, new_tally)
    counts = {direction: tally.count for direction, tally in tallies.items()}
    in_run = [direction for direction in counts if is_supervised(direction, supervised)]
    chosen = choose_directions(counts, wanted, in_run, paths)
    found = {pair: tallies[pair] for pair in chosen if counts[pair]}
    draws = {pair: Draw(tally, pairs, seed, pair) for pair, tally in found.items() if pairs}
    for direction in chosen:
        print_count(direction, tallies[direction])
    for what, n in (unknown or {}).items():
        print(f"  {n:,} left out: {what}")
    if pairs:
        fetch_samples(sources, skip_unknown, draws)
        return {pair: [x[1:3] for x in draw.samples] for pair, draw in draws.items()}, in_run
    return {pair: [x[1:3] for x in tally.kept] for pair, tally in found.items()}, in_run


def named_direction(file: TranslationFile) -> Direction | None:
    """The direction in the name of a file, if there is one: two languages with a hyphen between
    them, and not three."""
    name = os.path.basename(file.paths[0])
    if pair := PAIR_NAME.search(name):
        return pair[1], pair[2]
    found = set()
    for words in re.findall(r"[A-Za-z]+(?:-[A-Za-z]+)*", name):
        known = [(word in LANGUAGES and len(word) == 2, word) for word in words.split("-")]
        for is_code, run in itertools.groupby(known, key=lambda item: item[0]):
            codes = tuple(word for _, word in run)
            if is_code and len(codes) > 1:
                found.add(codes)
    direction = found.pop() if len(found) == 1 else ()
    return direction if len(direction) == 2 else None


def count_samples(
    sources: list[Source], unknown: Counter | None, new_tally: Callable[[Direction], Tally]
) -> dict[Direction, Tally]:
    """The first pass over the files: checks every row; adds each sample to its direction's tally,
    blank ones too, and says what each file is."""
    tallies = {}
    for source in sources:
        rows, directed = 0, False
        pairs = read_pairs(source, unknown)
        for row, samples in progress_bar(pairs, desc="reading", unit="row", leave=False, delay=3):
            rows, directed = rows + 1, directed or row.directed
            for sample in samples:
                tally = tallies.get(sample.direction)
                if tally is None:
                    tally = tallies[sample.direction] = new_tally(sample.direction)
                tally.add(sample)
        print(source[0].describe(rows, directed))
    return tallies


def fetch_samples(sources: list[Source], skip_unknown: bool, draws: dict[Direction, Draw]) -> None:
    """The second pass: fetches what was drawn. Raises InputError where it is not there any more."""
    again = "the data changed while it was read; begin again when nobody writes it"
    for source in sources:
        pairs = read_pairs(source, Counter() if skip_unknown else None)
        for row, samples in progress_bar(pairs, desc="drawing", unit="row", leave=False, delay=3):
            for sample in samples:
                draw = draws.get(sample.direction)
                if draw and not sample.blank and not draw.offer(sample):
                    raise InputError(f"{source[0].paths[0]}, {row.where}: {again}")
    for direction, draw in draws.items():
        missing = f"{'-'.join(direction)} has {draw.offered:,} pairs, and had more before"
        require(draw.next is None, f"{missing}: {again}")


def read_pairs(source: Source, unknown: Counter | None) -> Iterator[tuple[Row, list[Sample]]]:
    """The rows of a file, each with its samples of every direction but another file's, blank ones
    too. unknown: counts rows without a certain direction, which are an error without it. Raises
    InputError."""
    file, of_another = source
    for row in file.rows:
        known = row if unknown is None else known_part(row, unknown)
        samples = []
        if known:
            check_row(file.paths[0], known)
            directions = [tuple(known.texts)] if known.directed else orders(tuple(known.texts))
            samples = [
                make_sample(known, direction)
                for direction in directions
                if direction != of_another or known.directed
            ]
        yield row, samples


@functools.lru_cache
def orders(codes: tuple[str, ...]) -> list[Direction]:
    """Every pair of two languages."""
    return list(itertools.permutations(codes, 2))


def make_sample(row: Row, direction: Direction) -> Sample:
    """The sample of a row in a direction; a target that is blank is left to the next reference."""
    source, target = direction
    source, target = row.texts[source].strip(), row.texts[target].strip()
    if not row.references:
        return Sample(direction, source, target)
    targets = [target, *(text.strip() for text in row.references)]
    target, *others = [text for text in targets if text] or [""]
    return Sample(direction, source, target, tuple(others))


def known_part(row: Row, unknown: Counter) -> Row | None:
    """A row without the languages that are not known; None where too little is left."""
    strange = sorted(row.texts.keys() - LANGUAGES.keys())
    row = row._replace(texts={c: text for c, text in row.texts.items() if c not in strange})
    if row.unknown or len(row.texts) < 2:
        unknown["rows without a certain direction"] += 1
        return None
    for code in strange:
        unknown[f"texts in {code}, which prompts.json does not have"] += 1
    return row


def check_row(path: str, row: Row) -> None:
    """Raise InputError unless a row has texts in two or more of the known languages."""
    skip = "or leave such rows out with --skip-unknown"
    if row.unknown:
        sentence = f"{path}, {row.where}: {row.unknown} names no certain direction"
        raise InputError(f"{sentence}; expected '... from English to Italian ...', {skip}")
    if len(row.texts) < 2 or not row.texts.keys() <= LANGUAGES.keys():
        found, expected = " ".join(row.texts), " ".join(LANGUAGES)
        raise InputError(f"{path}, {row.where}: found {found}; expected some of {expected}, {skip}")
    for code, text in (*row.texts.items(), *(("other", text) for text in row.references)):
        if not isinstance(text, str) or (not text.isprintable() and UNREADABLE.search(text)):
            found = f"the {code} side is {text!r:.60}"
            raise InputError(f"{path}, {row.where}: {found}; expected text without NUL")


def is_supervised(direction: Direction, supervised: list[Direction] | None) -> bool:
    return direction in supervised if supervised else "en" in direction


def may_be_chosen(
    direction: Direction, wanted: str, supervised: list[Direction] | None = None
) -> bool:
    """Whether `wanted` means a direction, if there are samples of it."""
    if wanted in ("supervised", "zero-shot"):
        return (wanted == "supervised") == is_supervised(direction, supervised)
    return wanted == "all" or "-".join(direction) in wanted.split(",")


def choose_directions(
    counts: dict[Direction, int], wanted: str, supervised: list[Direction], paths: list[str]
) -> list[Direction]:
    """The directions that `wanted` means, by the number of their samples. Raises InputError. A
    keyword may mean directions without samples, as long as there is one that has some."""
    keywords = {
        "all": list(counts),
        "supervised": supervised,
        "zero-shot": [pair for pair in counts if pair not in supervised],
    }
    if wanted in keywords:
        chosen = keywords[wanted]
        there = any(counts[pair] for pair in chosen)
    else:
        chosen = [tuple(pair.split("-")) for pair in wanted.split(",")]
        there = all(counts.get(pair) for pair in chosen)
    found = ", ".join(f"{s}-{t} {n:,}" for (s, t), n in counts.items())
    files = " ".join(map(str, paths))
    require(there, f"--directions {wanted}: pairs found in {files}: {found or 'none'}")
    return chosen


def first_rows(samples: list[Sample], rows: int) -> list[Sample]:
    """A direction's rows up to the pair of that number; 0: all."""
    numbers = [n for n, sample in enumerate(samples, start=1) if not sample.blank]
    return samples[: numbers[rows - 1]] if 0 < rows <= len(numbers) else samples


def print_count(direction: Direction, tally: Tally) -> None:
    line = f"  {'-'.join(direction)}: {tally.count:,} pairs"
    if twice := tally.duplicates():
        line += f", {twice:,} of them duplicates"
    if tally.blank:
        line += f"; {tally.blank:,} with a blank side left out"
    print(line)

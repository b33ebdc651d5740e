"""A corpus out of translation files: their directions, chosen, counted aloud and drawn."""

import functools
import itertools
import os
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from plumbing.base.errors import InputError, require
from plumbing.base.processes import progress_bar
from plumbing.corpus.formats import PAIR_NAME, Row, TranslationFile, read_files
from plumbing.corpus.languages import LANGUAGES

UNREADABLE = re.compile("[\0\ud800-\udfff]")

Direction = tuple[str, str]  # codes of source and target
Corpus = dict[Direction, list[tuple[str, str]]]  # (source, target) of each sample
Source = tuple[TranslationFile, Direction | None]  # and a direction that is another file's


@dataclass
class Tally:
    """What a first pass over the files finds of a direction."""

    count: int = 0  # of pairs with two sides
    blank: int = 0  # of the others
    kept: list[tuple[str, str]] = field(default_factory=list)


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
    pairs with a blank side are left out too, unless keep_blank. pairs: so many of each direction
    are drawn, as the seed says, while the files are read twice: memory holds no others. 0: all, as
    the files have them. Raises InputError."""
    files = read_files(paths)
    names = [named_direction(file) for file in files]
    others = [name[::-1] if name and name[::-1] in names else None for name in names]
    sources, unknown = list(zip(files, others, strict=True)), Counter() if skip_unknown else None

    tallies = {}
    for source in sources:
        count_samples(source, unknown, tallies, not pairs, keep_blank)
    counts = {direction: tally.count for direction, tally in tallies.items()}
    in_run = [direction for direction in counts if is_supervised(direction, supervised)]
    chosen = choose_directions(counts, wanted, in_run, paths)
    for direction in chosen:
        print_count(direction, tallies[direction])
    for what, n in (unknown or {}).items():
        print(f"  {n:,} left out: {what}")
    chosen = [direction for direction in chosen if counts[direction]]
    if not pairs:
        return {direction: tallies[direction].kept for direction in chosen}, in_run
    drawn = {direction: draw(counts[direction], pairs, seed, direction) for direction in chosen}
    return fetch_samples(sources, skip_unknown, drawn), in_run


def draw(n: int, pairs: int, seed: int, direction: Direction) -> array:
    """The numbers of `pairs` of n samples (0: of all), drawn without replacement, in the order of
    the draw, which the seed and the direction decide."""
    numbers = array("q", range(n))
    random.Random(f"{seed} {direction}").shuffle(numbers)
    return numbers[: pairs or None]


def named_direction(file: TranslationFile) -> Direction | None:
    """The direction in the name of a file, if there is one: two languages with a hyphen between
    them, and not three."""
    name = os.path.basename(file.paths[0])
    if pair := PAIR_NAME.search(name):
        return pair[1], pair[2]
    found = set(in_names(tuple(LANGUAGES)).findall(name))
    codes = found.pop().split("-") if len(found) == 1 else []
    return (codes[0], codes[1]) if len(codes) == 2 else None


@functools.lru_cache
def in_names(codes: tuple[str, ...]) -> re.Pattern:
    """What it-nl and en-it-nl are in a file's name, of these languages."""
    code = "|".join(codes)
    return re.compile(rf"(?<![A-Za-z])(?:{code})(?:-(?:{code}))+(?![A-Za-z])")


def count_samples(
    source: Source, unknown: Counter | None, tallies: dict, keep: bool, keep_blank: bool
) -> None:
    """The first pass over a file: checks every row, adds each sample to its direction's tally, and
    says what the file is."""
    rows, directed = 0, False
    pairs = read_pairs(source, unknown)
    for row, samples in progress_bar(pairs, desc="reading", unit="row", leave=False, delay=3):
        rows, directed = rows + 1, directed or row.directed
        for direction, texts in samples:
            tally = tallies.setdefault(direction, Tally())
            whole = all(texts)
            tally.count += whole
            tally.blank += not whole
            if keep and (whole or keep_blank):
                tally.kept.append(texts)
    print(source[0].describe(rows, directed))


def fetch_samples(
    sources: list[Source], skip_unknown: bool, drawn: dict[Direction, array]
) -> Corpus:
    """The second pass: the samples of these numbers, in their order. Raises InputError where they
    are not there any more."""
    places = {d: {n: i for i, n in enumerate(numbers)} for d, numbers in drawn.items()}
    found, seen = {d: [None] * len(numbers) for d, numbers in drawn.items()}, Counter()
    for source in sources:
        pairs = read_pairs(source, Counter() if skip_unknown else None)
        for _, samples in progress_bar(pairs, desc="drawing", unit="row", leave=False, delay=3):
            for direction, texts in samples:
                if direction in places and all(texts):
                    place = places[direction].get(seen[direction])
                    seen[direction] += 1
                    if place is not None:
                        found[direction][place] = texts
    for direction, samples in found.items():
        sentence = f"{'-'.join(direction)}: the data changed while it was read"
        require(None not in samples, f"{sentence}; begin again when nobody writes it")
    return found


def read_pairs(
    source: Source, unknown: Counter | None
) -> Iterator[tuple[Row, list[tuple[Direction, tuple[str, str]]]]]:
    """The rows of a file, each with (direction, (source, target)) of every direction but another
    file's, blank ones too. unknown: counts rows without a certain direction, which are an error
    without it. Raises InputError."""
    file, of_another = source
    for row in file.read():
        known = row if unknown is None else known_part(row, unknown)
        samples = []
        if known:
            check_row(file.paths[0], known)
            texts = {code: clean(text) for code, text in known.texts.items()}
            codes = tuple(texts)
            directions = [codes] if known.directed else orders(codes)
            samples = [
                (direction, (texts[direction[0]], texts[direction[1]]))
                for direction in directions
                if direction != of_another or known.directed
            ]
        yield row, samples


def clean(text: str) -> str:
    """A text without blanks around it, and without the byte-order marks that stay where files are
    joined."""
    return text.replace("\ufeff", "").strip()


@functools.lru_cache
def orders(codes: tuple[str, ...]) -> list[Direction]:
    """Every pair of two languages."""
    return list(itertools.permutations(codes, 2))


def known_part(row: Row, unknown: Counter) -> Row | None:
    """A row without the languages that are not known; None where too little is left."""
    strange = sorted(row.texts.keys() - LANGUAGES.keys())
    row = row._replace(texts={c: text for c, text in row.texts.items() if c not in strange})
    if row.unknown or len(row.texts) < 2:
        unknown[row.unknown or "rows without two known languages"] += 1
        return None
    for code in strange:
        unknown[f"texts in {code}, which prompts.json does not have"] += 1
    return row


def check_row(path: str, row: Row) -> None:
    """Raise InputError unless a row has texts in two or more of the known languages."""
    skip = "or leave such rows out with --skip-unknown"
    if row.unknown:
        sentence = f"{path}, {row.where}: {row.found} is no certain pair ({row.unknown})"
        expected = "{'translation': {code: text}}, {code: text}, or an instruction like 'Translate "
        expected += "the following sentences from English to Italian.' with input and output"
        raise InputError(f"{sentence}; expected {expected}, {skip}")
    if len(row.texts) < 2 or not row.texts.keys() <= LANGUAGES.keys():
        found, expected = " ".join(row.texts), " ".join(LANGUAGES)
        for code in sorted(row.texts.keys() - LANGUAGES.keys()):
            general = re.split("[-_]", code)[0].lower()
            if general in LANGUAGES and general != code:
                found += f" ({code} is called {general} here)"
        more = f"a file of --languages with others, {skip}"
        raise InputError(f"{path}, {row.where}: found {found}; expected some of {expected}, {more}")
    for code, text in row.texts.items():
        place = f"{path}, {row.where}: the {code} side"
        require(text is not None, f"{place} is null or missing; expected text, perhaps blank")
        require(isinstance(text, str), f"{place} is {text!r:.60}; expected text")
        if not text.isprintable() and UNREADABLE.search(text):
            raise InputError(f"{place} is {text!r:.60}; expected text without NUL")


def is_supervised(direction: Direction, supervised: list[Direction] | None) -> bool:
    return direction in supervised if supervised else "en" in direction


def is_direction(codes: tuple[str, ...]) -> bool:
    """Whether they could be two languages."""
    return len(codes) == 2 and all(re.fullmatch("[a-z]{2,3}", code) for code in codes)


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
    found = ", ".join(f"{s}-{t} {n:,}" for (s, t), n in counts.items()) or "none"
    found = f"pairs found in {' '.join(map(str, paths))}: {found}"
    if wanted in keywords:
        chosen = keywords[wanted]
        there = any(counts[pair] for pair in chosen)
    else:
        chosen = [tuple(pair.strip().split("-")) for pair in wanted.split(",")]
        chosen = list(dict.fromkeys(chosen))
        strange = next((pair for pair in chosen if not is_direction(pair)), None)
        expected = f"expected the like of en-it,it-en, or {', '.join(keywords)}"
        sentence = f"--directions {wanted}: {'-'.join(strange or ())!r} is no direction; {expected}"
        require(strange is None, f"{sentence}; {found}")
        there = all(counts.get(pair) for pair in chosen)
    require(there, f"--directions {wanted}: {found}")
    return chosen


def print_count(direction: Direction, tally: Tally) -> None:
    line = f"  {'-'.join(direction)}: {tally.count:,} pairs"
    if tally.blank:
        line += f"; {tally.blank:,} with a blank side left out"
    print(line)

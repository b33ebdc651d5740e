"""A corpus out of translation files: their directions, chosen and counted aloud."""

import itertools
import os
import re
from collections import Counter
from typing import NamedTuple

from plumbing.errors import InputError, require
from plumbing.formats import PAIR_NAME, Row, TranslationFile, read_files
from plumbing.languages import LANGUAGES

UNREADABLE = re.compile("[\0\ud800-\udfff]")

Direction = tuple[str, str]  # codes of source and target


class Sample(NamedTuple):
    """A source and its translation."""

    direction: Direction
    source: str
    target: str
    others: tuple[str, ...] = ()  # further references

    @property
    def blank(self) -> bool:
        return not (self.source and self.target)


Corpus = dict[Direction, list[Sample]]


def read_corpus(
    paths: list[str],
    wanted: str = "all",
    supervised: list[Direction] | None = None,
    skip_unknown: bool = False,
    keep_blank: bool = False,
) -> tuple[Corpus, list[Direction]]:
    """({direction: samples}, the supervised ones of all directions) of data files, counted aloud.
    wanted: "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count
    as such, by default those with English. A file named en-it gives it->en too, unless another file
    is named it-en. Rows without a certain direction are an error, or with skip_unknown left out;
    pairs with a blank side are left out too, unless keep_blank. Duplicates are kept. Raises
    InputError."""
    files = read_files(list(map(os.fspath, paths)))
    names = [named_direction(file) for file in files]
    rows, unknown = {}, Counter()
    for file, name in zip(files, names, strict=True):
        print(f"{' + '.join(file.paths)}: {file.format}, {len(file.rows):,} rows")
        of_another = name[::-1] if name and name[::-1] in names else None
        pair_rows(file, of_another, rows, unknown if skip_unknown else None)
    samples = {pair: [x for x in found if not x.blank] for pair, found in rows.items()}
    in_run = [p for p in samples if (p in supervised if supervised else "en" in p)]
    chosen = choose_directions(samples, wanted, in_run, paths)
    for direction in chosen:
        print_count(direction, samples[direction], len(rows[direction]) - len(samples[direction]))
    for what, n in unknown.items():
        print(f"  {n:,} left out: {what}")
    kept = rows if keep_blank else samples
    return {pair: kept[pair] for pair in chosen if samples[pair]}, in_run


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


def pair_rows(
    file: TranslationFile, left_out: Direction | None, samples: Corpus, unknown: Counter | None
) -> None:
    """Add the file's samples of every direction but `left_out`, blank ones too. unknown: counts
    rows without a certain direction, which are an error without it. Raises InputError."""
    for row in file.rows:
        if unknown is not None and not (row := known_part(row, unknown)):
            continue
        check_row(file.paths[0], row)
        directions = [tuple(row.texts)] if row.directed else itertools.permutations(row.texts, 2)
        for direction in directions:
            if direction == left_out and not row.directed:
                continue
            source, *targets = (row.texts[code] for code in direction)
            targets = [text.strip() for text in (*targets, *row.references)]
            target, *others = [text for text in targets if text] or [""]
            sample = Sample(direction, source.strip(), target, tuple(others))
            samples.setdefault(direction, []).append(sample)


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
    sentence = f"{path}, {row.where}: {row.unknown} names no certain direction"
    require(not row.unknown, f"{sentence}; expected '... from English to Italian ...', {skip}")
    known = len(row.texts) > 1 and row.texts.keys() <= LANGUAGES.keys()
    if not known:
        found, expected = " ".join(row.texts), " ".join(LANGUAGES)
        raise InputError(f"{path}, {row.where}: found {found}; expected some of {expected}, {skip}")
    texts = [*row.texts.items(), *(("other", text) for text in row.references)]
    for code, text in texts:
        if not isinstance(text, str) or UNREADABLE.search(text):
            found = f"the {code} side is {text!r:.60}"
            raise InputError(f"{path}, {row.where}: {found}; expected text without NUL")


def choose_directions(
    samples: Corpus, wanted: str, supervised: list[Direction], paths: list[str]
) -> list[Direction]:
    """The directions that `wanted` means. Raises InputError. A keyword may mean directions without
    samples, as long as there is one that has some."""
    keywords = {
        "all": list(samples),
        "supervised": supervised,
        "zero-shot": [pair for pair in samples if pair not in supervised],
    }
    if wanted in keywords:
        chosen = keywords[wanted]
        there = any(samples[pair] for pair in chosen)
    else:
        chosen = [tuple(pair.split("-")) for pair in wanted.split(",")]
        there = all(samples.get(pair) for pair in chosen)
    counts = ", ".join(f"{s}-{t} {len(pairs):,}" for (s, t), pairs in samples.items())
    files = " ".join(map(str, paths))
    require(there, f"--directions {wanted}: pairs found in {files}: {counts or 'none'}")
    return chosen


def first_rows(samples: list[Sample], rows: int) -> list[Sample]:
    """A direction's rows up to the pair of that number; 0: all."""
    numbers = [n for n, sample in enumerate(samples, start=1) if not sample.blank]
    return samples[: numbers[rows - 1]] if 0 < rows <= len(numbers) else samples


def print_count(direction: Direction, samples: list[Sample], blank: int) -> None:
    line = f"  {'-'.join(direction)}: {len(samples):,} pairs"
    twice = len(samples) - len(set(samples))
    if twice:
        line += f", {twice:,} of them duplicates"
    if blank:
        line += f"; {blank:,} with a blank side left out"
    print(line)

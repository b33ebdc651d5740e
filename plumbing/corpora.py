"""Files of translations to samples: read a file's rows, pair their languages, choose directions."""

import glob
import itertools
import json
import os
import re
from collections import Counter
from typing import NamedTuple

from plumbing.errors import InputError, require
from plumbing.files import read_lines
from plumbing.languages import LANGUAGES

CODES = {name: code for code, name in LANGUAGES.items()}
PAIR_NAME = re.compile(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)$")
UNREADABLE = re.compile("[\0\ud800-\udfff]")

Direction = tuple[str, str]  # codes of source and target


class Sample(NamedTuple):
    """A source and its translation."""

    direction: Direction
    source: str
    target: str


Corpus = dict[Direction, list[Sample]]


class Row(NamedTuple):
    """One entry of a file."""

    where: str  # "line 3"
    texts: dict[str, str]  # by language
    directed: bool  # it may be used in the order of its texts only


class TranslationFile(NamedTuple):
    """A file, or two that belong together, as read."""

    format: str
    paths: tuple[str, ...]
    rows: list[Row]


def read_corpus(
    paths: list[str], wanted: str = "all", supervised: list[Direction] | None = None
) -> tuple[Corpus, list[Direction]]:
    """({direction: samples}, the supervised ones of all directions) of data files, counted aloud.
    wanted: "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count
    as such, by default those with English. A file named en-it gives it->en too, unless another file
    is named it-en. Pairs with a blank side are left out, duplicates are kept. Raises InputError."""
    files = {file.paths: file for file in map(read_file, map(os.fspath, paths))}  # each once
    names = {file.paths: named_direction(file) for file in files.values()}
    samples, blank = {}, Counter()
    for file in files.values():
        print(f"{' + '.join(file.paths)}: {file.format}, {len(file.rows):,} rows")
        name = names[file.paths]
        of_another = name[::-1] if name and name[::-1] in names.values() else None
        pair_rows(file, of_another, samples, blank)
    in_run = [p for p in samples if (p in supervised if supervised else "en" in p)]
    chosen = choose_directions(samples, wanted, in_run, paths)
    for direction in chosen:
        print_count(direction, samples[direction], blank[direction])
    return {pair: samples[pair] for pair in chosen if samples[pair]}, in_run


def named_direction(file: TranslationFile) -> Direction | None:
    """The direction in the name of a file, if there is one."""
    match = re.search(r"([a-z]{2})-([a-z]{2})(?![a-z])", os.path.basename(file.paths[0]))
    return match.groups() if match else None


def pair_rows(
    file: TranslationFile, left_out: Direction | None, samples: Corpus, blank: Counter
) -> None:
    """Add the file's samples of every direction but `left_out`, and count those with a blank side.
    Raises InputError."""
    for row in file.rows:
        check_row(file.paths[0], row)
        directions = [tuple(row.texts)] if row.directed else itertools.permutations(row.texts, 2)
        for direction in directions:
            if direction == left_out:
                continue
            source, target = (row.texts[code].strip() for code in direction)
            of_direction = samples.setdefault(direction, [])
            if source and target:
                of_direction.append(Sample(direction, source, target))
            else:
                blank[direction] += 1


def check_row(path: str, row: Row) -> None:
    """Raise InputError unless a row has texts in two or more of the known languages."""
    known = len(row.texts) > 1 and row.texts.keys() <= LANGUAGES.keys()
    if not known:
        found, expected = " ".join(row.texts), " ".join(LANGUAGES)
        raise InputError(f"{path}, {row.where}: found {found}; expected some of {expected}")
    for code, text in row.texts.items():
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


def print_count(direction: Direction, samples: list[Sample], blank: int) -> None:
    line = f"  {'-'.join(direction)}: {len(samples):,} pairs"
    twice = len(samples) - len(set(samples))
    if twice:
        line += f", {twice:,} of them duplicates"
    if blank:
        line += f"; {blank:,} with a blank side left out"
    print(line)


def read_file(path: str) -> TranslationFile:
    """A data file, its format recognised from its name and first character. Raises InputError."""
    lines = read_lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    if PAIR_NAME.search(path):
        return read_paired(path, lines)
    if first.startswith("["):
        return read_json_rows(path, [(1, "\n".join(lines))])
    if first.startswith("{"):
        return read_json_rows(path, enumerate(lines, start=1))
    return read_tsv(path, lines)


def read_paired(path: str, lines: list[str]) -> TranslationFile:
    """tst2017it-nl.it, train.en-it.en or generaltest2022.en-cs.ref.A.cs with its other side."""
    name = PAIR_NAME.search(path)
    source, target, kind, here = name.groups()
    there, stem = (target if here == source else source), path[: name.end(2)]
    if kind is None:
        ending = f".{there}"
    else:
        ending = f".ref*.{there}" if kind == ".src" else f".src.{there}"
    others = sorted(glob.glob(glob.escape(stem) + ending))
    require(others, f"{path}: its other side is missing; expected {stem}{ending}")
    other = read_lines(others[0])
    counts = f"{len(lines):,} lines, but {others[0]} has {len(other):,}"
    require(len(lines) == len(other), f"{path}: {counts}; expected equal")
    sides = {here: lines, there: other}
    pairs = zip(sides[source], sides[target], strict=True)
    rows = [
        Row(f"line {n}", {source: a, target: b}, directed=kind is not None)
        for n, (a, b) in enumerate(pairs, start=1)
    ]
    return TranslationFile("paired files", tuple(sorted([path, others[0]])), rows)


def read_json_rows(path: str, numbered_texts) -> TranslationFile:
    """Translation JSON or Alpaca JSON: one array, or an object a line, as (line, text) pairs."""
    rows = []
    for n, text in numbered_texts:
        try:
            value = json.loads(text or "[]")
        except (json.JSONDecodeError, RecursionError) as error:
            line = n + getattr(error, "lineno", 1) - 1
            raise InputError(f"{path}, line {line}: not valid JSON ({error})") from None
        for record in value if isinstance(value, list) else [value]:
            where = f"line {n}, entry {len(rows) + 1}"
            rows.append(read_record(path, where, record))
    alpaca = any(row.directed for row in rows)
    return TranslationFile("Alpaca JSON" if alpaca else "translation JSON", (path,), rows)


def read_record(path: str, where: str, record: object) -> Row:
    """A row of {"translation": {code: text}}, or of Alpaca's instruction, input and output."""
    fields = record if isinstance(record, dict) else {}
    if isinstance(fields.get("translation"), dict):
        return Row(where, fields["translation"], directed=False)
    words = re.findall(r"\w+", str(fields.get("instruction")))
    named = list(dict.fromkeys(CODES[word] for word in words if word in CODES))
    require(
        len(named) > 1,
        f"{path}, {where}: {str(record)[:80]}; expected {{'translation': {{code: text}}}}, or an "
        "instruction '... from English to Italian ...' with input and output",
    )
    texts = {named[0]: fields.get("input"), named[1]: fields.get("output")}
    return Row(where, texts, directed="translation" not in fields)


def read_tsv(path: str, lines: list[str]) -> TranslationFile:
    """A multi-parallel table: language codes in the first line, then a sentence a cell."""
    header, *table = [line.split("\t") for line in lines or [""]]
    first = next((line.strip() for line in lines if line.strip()), "")
    require(
        len(set(header)) >= max(2, len(header)),
        f"{path}, line 1: {first[:60]!r}; expected JSON, a TSV whose first line is different "
        "language codes, or paired files named like train.en-it.en and train.en-it.it",
    )
    rows = []
    for n, cells in enumerate(table, start=2):
        counts = f"{len(cells)} columns, expected {len(header)}: {' '.join(header)}"
        require(len(cells) == len(header), f"{path}, line {n}: {counts}")
        rows.append(Row(f"line {n}", dict(zip(header, cells, strict=True)), directed=False))
    return TranslationFile("multi-parallel TSV", (path,), rows)

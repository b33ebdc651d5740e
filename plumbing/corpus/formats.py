"""The formats of translation files: a file becomes rows of texts in two or more languages."""

import functools
import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import read_lines
from plumbing.corpus.instructions import read_direction
from plumbing.corpus.languages import LANGUAGES

JSON = "translation JSON"
PAIR_NAME = re.compile(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)(?:\.gz)?$")


class Row(NamedTuple):
    """One entry of a file."""

    where: str  # "line 3"
    texts: dict[str, str]  # by language
    directed: bool  # it may be used in the order of its texts only
    unknown: str = ""  # what it is, where its languages are not certain


class TranslationFile(NamedTuple):
    """A file, or two that belong together."""

    format: str
    paths: tuple[str, ...]
    read: Callable[[], Iterator[Row]]  # its rows, read anew each time: none is kept

    def describe(self, rows: int, directed: bool) -> str:
        """directed: whether there are rows that may be used in one order only."""
        form = "Alpaca JSON" if directed and self.format == JSON else self.format
        return f"{' + '.join(self.paths)}: {form}, {rows:,} rows"


def read_files(paths: list[str]) -> list[TranslationFile]:
    """The data files, each once, and of several references of a source the first that is named.
    Raises InputError, also for the first row of each: a missing or wrong file is said before
    another is read for minutes."""
    files = {}
    for path in map(os.path.normpath, map(os.fspath, paths)):
        file = read_file(first_reference(path))
        next(file.read(), None)
        name = PAIR_NAME.search(path)
        of_wmt = name and name[3]  # source and reference
        key = unpacked(file)[:1] if of_wmt else unpacked(file)
        first = files.setdefault(key, file)
        if unpacked(first) != unpacked(file):
            print(f"{path}: left out, as {first.paths[1]} translates the same source")
    return list(files.values())


def unpacked(file: TranslationFile) -> tuple[str, ...]:
    """The names of its files without .gz: a packed copy is the same file."""
    return tuple(path.removesuffix(".gz") for path in file.paths)


def first_reference(path: str) -> str:
    """The first reference of a WMT source, name.en-cs.src.en; any other path stays as it is.
    Raises InputError where there is none."""
    name = PAIR_NAME.search(path)
    if not name or name[3] != ".src":
        return path
    ending, stem = f".ref*.{name[2]}", glob.escape(path[: name.end(2)])
    found = sorted(glob.glob(stem + ending) + glob.glob(f"{stem}{ending}.gz"))
    require(found, f"{path}: its other side is missing; expected {path[: name.end(2)]}{ending}")
    if len(found) > 1:
        print(f"{path}: of {len(found)} references the first is used, {found[0]}")
    return found[0]


def read_file(path: str) -> TranslationFile:
    """A data file, its format recognised from its name and first character. Raises InputError."""
    if PAIR_NAME.search(path):
        return read_paired(path)
    first = next((line.strip() for line in read_lines(path) if line.strip()), "")
    if first[:1] in ("[", "{"):
        return TranslationFile(JSON, (path,), functools.partial(json_rows, path, first))
    rows = functools.partial(tsv_rows, path, first[:60])
    return TranslationFile("multi-parallel TSV", (path,), rows)


def read_paired(path: str) -> TranslationFile:
    """tst2017it-nl.it, train.en-it.en or generaltest2022.en-cs.ref.A.cs with its other side."""
    source, target, kind, here = PAIR_NAME.search(path).groups()
    there = target if here == source else source
    other = find_other_side(path, there)
    sides = {here: path, there: other}
    rows = functools.partial(
        paired_rows, {code: sides[code] for code in (source, target)}, bool(kind)
    )
    paths = (other, path) if kind else tuple(sorted([path, other]))
    return TranslationFile("paired files", paths, rows)


def find_other_side(path: str, there: str) -> str:
    """The path of the other side, in the language `there`, of a paired file, gzip or not: beside
    tst2017it-nl.it it is tst2017it-nl.nl; where that is absent the source of the other direction,
    tst2017nl-it.nl, as IWSLT's talks are the same in both. Raises InputError."""
    name = PAIR_NAME.search(path)
    source, target, kind, _ = name.groups()
    packings = [".gz", ""] if path.endswith(".gz") else ["", ".gz"]
    names = [f"{path[: name.end(2)]}{'.src' if kind else ''}.{there}"]
    if not kind:
        names.append(f"{path[: name.start(1)]}{target}-{source}.{there}")
    for other in (name + packing for name in names for packing in packings):
        if os.path.exists(other):
            return other
    raise InputError(f"{path}: its other side is missing; expected {' or '.join(names)}")


def paired_rows(paths: dict[str, str], directed: bool) -> Iterator[Row]:
    """The rows of two files, {language: path}."""
    lines = [read_lines(path) for path in paths.values()]
    for n, texts in enumerate(itertools.zip_longest(*lines), start=1):
        if None in texts:
            counts = [
                n - (text is None) + sum(1 for _ in rest)
                for text, rest in zip(texts, lines, strict=True)
            ]
            first, second = (
                f"{path}: {m:,} lines" for path, m in zip(paths.values(), counts, strict=True)
            )
            raise InputError(f"{first}, but {second}; expected equally many")
        yield Row(f"line {n}", dict(zip(paths, texts, strict=True)), directed)


def json_rows(path: str, first: str) -> Iterator[Row]:
    """Translation JSON or Alpaca JSON: one array, or a value a line. first: its first text."""
    for where, record in read_records(path, first):
        yield read_record(path, where, record)


def read_records(path: str, first: str) -> Iterator[tuple[str, object]]:
    """(where it stands, value) of the entries of a JSON array, or of the value of each line. first:
    the file's first line that is not blank. Raises InputError."""
    if first.startswith("["):
        for n, record in enumerate(load(path, 1, "\n".join(read_lines(path))), start=1):
            yield f"entry {n}", record
        return
    for n, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield f"line {n}", load(path, n, line)


def load(path: str, line: int, text: str) -> object:
    """The JSON value of a text that begins at this line. Raises InputError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        found = getattr(error, "msg", str(error))
        raise InputError(f"{path}, line {line}: not valid JSON ({found}); mend it") from None


def read_record(path: str, where: str, record: object) -> Row:
    """A row of {"translation": {code: text}} or of bare {code: text}, or of Alpaca's instruction,
    input and output."""
    fields = record if isinstance(record, dict) else {}
    if isinstance(fields.get("translation"), dict):
        return Row(where, fields["translation"], directed=False)
    named = fields.keys() & {"translation", "instruction"}
    if not named and len(fields.keys() & LANGUAGES.keys()) > 1:
        number = str(fields.get("id", "")).strip()
        beside = len(fields) > 2 and re.fullmatch(r"\S*\d\S*", number)
        wrap = "put the texts into {'translation': {code: text}}, or leave the field out"
        sentence = f"{path}, {where}: is id {number[:40]} Indonesian, or the row's name"
        require(not beside, f"{sentence}? {wrap}")
        return Row(where, fields, directed=False)
    require(
        named == {"instruction"},
        f"{path}, {where}: {plain(str(record), 100)}; expected {{'translation': {{code: text}}}}, "
        "{code: text}, or an instruction '... from English to Italian ...' with input and output",
    )
    instruction = fields["instruction"]
    direction = read_direction(instruction)
    if not direction:
        return Row(where, {}, True, unknown=f"instruction {plain(str(instruction), 100)!r}")
    source, target = direction
    return Row(where, {source: fields.get("input"), target: fields.get("output")}, directed=True)


def tsv_rows(path: str, first: str) -> Iterator[Row]:
    """A multi-parallel table: language codes in the first line, then a sentence a cell. first: how
    its text begins, for the sentence on what is no table."""
    lines = read_lines(path)
    header = next(lines, "").split("\t")
    require(
        len(set(header)) >= max(2, len(header)),
        f"{path}, line 1: {first!r}; expected JSON, a TSV whose first line is different "
        "language codes, or paired files named like train.en-it.en and train.en-it.it",
    )
    for n, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            counts = f"{len(cells)} columns, expected {len(header)}: {' '.join(header)}"
            raise InputError(f"{path}, line {n}: {counts}")
        yield Row(f"line {n}", dict(zip(header, cells, strict=True)), False)

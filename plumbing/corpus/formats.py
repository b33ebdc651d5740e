"""The formats of translation files: a file becomes rows of texts in two or more languages."""

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import read_pieces, stream_lines
from plumbing.corpus.instructions import read_direction
from plumbing.corpus.languages import LANGUAGES
from plumbing.corpus.records import PIECE, array_records, line_records

JSON = "translation JSON"
PAIR_NAME = re.compile(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)(?:\.gz)?$")


class Row(NamedTuple):
    """One entry of a file."""

    where: str  # "line 3"
    texts: dict[str, str]  # by language
    directed: bool  # it may be used in the order of its texts only
    references: tuple[str, ...] = ()  # further ones
    unknown: str = ""  # what it is, where its languages are not certain


class Rows:
    """The rows of a file, read anew each time that they are gone through: none is kept."""

    def __init__(self, read: Callable[..., Iterator[Row]], *args: object):
        self.read, self.args = read, args

    def __iter__(self) -> Iterator[Row]:
        return self.read(*self.args)


class TranslationFile(NamedTuple):
    """A file, or those that belong together."""

    format: str
    paths: tuple[str, ...]
    rows: Rows

    def describe(self, rows: int, directed: bool) -> str:
        """directed: whether there are rows that may be used in one order only."""
        form = "Alpaca JSON" if directed and self.format == JSON else self.format
        return f"{' + '.join(self.paths)}: {form}, {rows:,} rows"


def read_files(paths: list[str]) -> list[TranslationFile]:
    """The data files, each once; the references of one source together. Raises InputError, also for
    the first row of each: a missing or wrong file is said before another is read for minutes."""
    files = {}
    for path in itertools.chain.from_iterable(map(expand, map(os.path.normpath, paths))):
        file = read_file(path)
        next(iter(file.rows), None)
        names = tuple(name.removesuffix(".gz") for name in file.paths)  # a packed copy is the same
        of_wmt = len(names) > 1 and ".src." in os.path.basename(names[0])
        key = names[0] if of_wmt else names  # a source may have several references
        first, known = files.setdefault(key, (file, names))
        if names[-1] not in known:
            rows = Rows(join_references, first.rows, file.rows)
            merged = TranslationFile(first.format, (*first.paths, file.paths[-1]), rows)
            files[key] = merged, (*known, names[-1])
    return [file for file, _ in files.values()]


def join_references(rows: Rows, others: Rows) -> Iterator[Row]:
    """Rows with the target of the other rows as a further reference."""
    for row, other in zip(rows, others, strict=True):
        yield row._replace(references=(*row.references, list(other.texts.values())[1]))


def expand(path: str) -> list[str]:
    """The references of a WMT source, name.en-cs.src.en; any other path stays as it is."""
    name = PAIR_NAME.search(path)
    if not name or name[3] != ".src":
        return [path]
    source, target, _, _ = name.groups()
    ending, stem = f".ref*.{target}", glob.escape(path[: name.end(2)])
    found = glob.glob(stem + ending)
    found += [path for path in glob.glob(f"{stem}{ending}.gz") if path[:-3] not in found]
    require(found, f"{path}: its other side is missing; expected {path[: name.end(2)]}{ending}")
    return sorted(found)


def read_file(path: str) -> TranslationFile:
    """A data file, its format recognised from its name and first character. Raises InputError."""
    first = next((piece.strip() for piece in read_pieces(path, PIECE) if piece.strip()), "")
    if PAIR_NAME.search(path):
        return read_paired(path)
    if first.startswith("["):
        return TranslationFile(JSON, (path,), Rows(json_rows, path, array_records))
    if first.startswith("{"):
        return TranslationFile(JSON, (path,), Rows(json_rows, path, line_records))
    return TranslationFile("multi-parallel TSV", (path,), Rows(tsv_rows, path, first[:60]))


def read_paired(path: str) -> TranslationFile:
    """tst2017it-nl.it, train.en-it.en or generaltest2022.en-cs.ref.A.cs with its other side."""
    source, target, kind, here = PAIR_NAME.search(path).groups()
    there = target if here == source else source
    other = find_other_side(path, there)
    rows = Rows(paired_rows, (path, other), (here, there), (source, target), kind is not None)
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


def paired_rows(paths: tuple, codes: tuple, order: tuple, directed: bool) -> Iterator[Row]:
    """The rows of two files with the languages `codes`, their texts in `order`."""
    lines = [stream_lines(path) for path in paths]
    for n, texts in enumerate(itertools.zip_longest(*lines), start=1):
        if None in texts:  # the end of one
            counts = (
                n - (text is None) + sum(1 for _ in rest)
                for text, rest in zip(texts, lines, strict=True)
            )
            (path, count), (other, more) = zip(paths, counts, strict=True)
            sentence = f"{path}: {count:,} lines, but {other} has {more:,}; expected equal"
            raise InputError(sentence)
        sides = dict(zip(codes, texts, strict=True))
        yield Row(f"line {n}", {code: sides[code] for code in order}, directed)


def json_rows(path: str, read_records: Callable) -> Iterator[Row]:
    """Translation JSON or Alpaca JSON."""
    for number, (line, record) in enumerate(read_records(path), start=1):
        yield read_record(path, f"line {line}, entry {number}", record)


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
    lines = stream_lines(path)
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

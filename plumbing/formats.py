"""The formats of translation files: a file becomes rows of texts in two or more languages."""

import glob
import itertools
import json
import os
import re
from typing import NamedTuple

from plumbing.errors import InputError, plain, require
from plumbing.files import read_lines
from plumbing.instructions import read_direction

PAIR_NAME = re.compile(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)$")


class Row(NamedTuple):
    """One entry of a file."""

    where: str  # "line 3"
    texts: dict[str, str]  # by language
    directed: bool  # it may be used in the order of its texts only
    references: tuple[str, ...] = ()  # further ones
    unknown: str = ""  # what it is, where its languages are not certain


class TranslationFile(NamedTuple):
    """A file, or those that belong together, as read."""

    format: str
    paths: tuple[str, ...]
    rows: list[Row]


def read_files(paths: list[str]) -> list[TranslationFile]:
    """The data files, each once; the references of one source together. Raises InputError."""
    files = {}
    for path in itertools.chain.from_iterable(map(expand, map(os.path.normpath, paths))):
        file = read_file(path)
        first = files.setdefault(file.paths[0], file)
        if file.paths[-1] not in first.paths:
            rows = [
                row._replace(references=(*row.references, list(other.texts.values())[1]))
                for row, other in zip(first.rows, file.rows, strict=True)
            ]
            merged = TranslationFile(first.format, (*first.paths, file.paths[-1]), rows)
            files[file.paths[0]] = merged
    return list(files.values())


def expand(path: str) -> list[str]:
    """The references of a WMT source, name.en-cs.src.en; any other path stays as it is."""
    name = PAIR_NAME.search(path)
    if not name or name[3] != ".src":
        return [path]
    source, target, _, _ = name.groups()
    ending = f".ref*.{target}"
    found = sorted(glob.glob(glob.escape(path[: name.end(2)]) + ending))
    require(found, f"{path}: its other side is missing; expected {path[: name.end(2)]}{ending}")
    return found


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
    there = target if here == source else source
    other = f"{path[: name.end(2)]}{'.src' if kind else ''}.{there}"
    require(os.path.exists(other), f"{path}: its other side is missing; expected {other}")
    of_other = read_lines(other)
    counts = f"{len(lines):,} lines, but {other} has {len(of_other):,}"
    require(len(lines) == len(of_other), f"{path}: {counts}; expected equal")
    sides = {here: lines, there: of_other}
    pairs = zip(sides[source], sides[target], strict=True)
    rows = [
        Row(f"line {n}", {source: a, target: b}, directed=kind is not None)
        for n, (a, b) in enumerate(pairs, start=1)
    ]
    paths = (other, path) if kind else tuple(sorted([path, other]))
    return TranslationFile("paired files", paths, rows)


def read_json_rows(path: str, numbered_texts) -> TranslationFile:
    """Translation JSON or Alpaca JSON: one array, or an object a line, as (line, text) pairs."""
    rows = []
    for n, text in numbered_texts:
        try:
            value = json.loads(text or "[]")
        except (ValueError, RecursionError) as error:
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
    require(
        "instruction" in fields and "translation" not in fields,
        f"{path}, {where}: {plain(str(record), 100)}; expected {{'translation': {{code: text}}}}, "
        "or an instruction '... from English to Italian ...' with input and output",
    )
    instruction = fields["instruction"]
    direction = read_direction(instruction)
    if not direction:
        return Row(where, {}, True, unknown=f"instruction {plain(str(instruction), 100)!r}")
    source, target = direction
    return Row(where, {source: fields.get("input"), target: fields.get("output")}, directed=True)


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

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
from plumbing.corpus.instructions import read_direction, read_translation, what_else
from plumbing.corpus.languages import LANGUAGES

JSON = "translation JSON"
NO_TRANSLATION = "instructions that are no plain translations"
# Lines of IWSLT's train.tags files that are no sentences.
IWSLT_TAGS = re.compile(
    r"\s*(?:<(url|speaker|talkid|title|description|keywords|reviewer|translator)\b.*</\1>"
    r"|</?doc\b[^>]*>)\s*$"
)
IWSLT_TALK = re.compile(
    r"\s*<(url|talkid|speaker|keywords)>.*</\1>\s*$"
)  # how such a file may begin
XML = re.compile(
    r"\s*<(?:[?!]|/?(?:srcset|refset|tstset|mteval|dataset|doc|seg|tmx|xliff)\b)", re.I
)
# A cell that a spreadsheet could not compute; one that it put into quotes; one that nobody else
# would write.
SPREADSHEET_ERROR = re.compile(
    r"#(?:N/A|NV|NAME\?|(?:REF|BEZUG|VALUE|WERT|DIV/0|NUM|NULL|SPILL|CALC|ERROR)!|GETTING_DATA)"
    r"|Err:\d+"
)
QUOTED = re.compile(r'"(?:[^"]|"")*"')
OF_SPREADSHEET = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*""(?:[^"\t]|"")*"(?:\t|$)')
CODE = r"((?<![a-z])[a-z]{3}|[a-z]{2})"
PAIR_NAME = re.compile(rf"{CODE}-([a-z]{{2,3}})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)(?:\.gz)?$")


class Row(NamedTuple):
    """One entry of a file."""

    where: str  # "line 3"
    texts: dict[str, str]  # by language
    directed: bool  # it may be used in the order of its texts only
    unknown: str = ""  # what such rows are, where they are no certain translations
    found: str = ""  # what shows it


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
    """The data files, each once, and of several references of a source the first that is named. A
    table is searched for a spreadsheet's quotes. Raises InputError, also for the first row of each:
    a missing or wrong file is said before its samples are counted."""
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
    """The places of its files without .gz: a packed copy is the same file, and so is a link."""
    return tuple(os.path.realpath(path).removesuffix(".gz") for path in file.paths)


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
    first = first_text(path)
    if first[:1] in ("[", "{"):
        return TranslationFile(JSON, (path,), functools.partial(json_rows, path, first))
    refuse_xml(path, first)
    quoted = all(map(QUOTED.fullmatch, first.split("\t"))) or any(
        '""' in line and OF_SPREADSHEET.search(line) for line in read_lines(path)
    )
    rows = functools.partial(tsv_rows, path, first[:60], quoted)
    form = "multi-parallel TSV"
    return TranslationFile(f"{form} of a spreadsheet" if quoted else form, (path,), rows)


def first_text(path: str) -> str:
    """The first line that is not blank."""
    return next((line.strip() for line in read_lines(path) if line.strip()), "")


def refuse_xml(path: str, first: str) -> None:
    """Raise InputError where a file, of this first line, is XML or SGML."""
    sentence = f"{path}: {plain(first, 40)!r} is XML; expected a sentence a line: the texts of its "
    require(not XML.match(first), f"{sentence}<seg> elements, as sed writes them in docs/data.md")


def read_paired(path: str) -> TranslationFile:
    """tst2017it-nl.it, train.en-it.en or generaltest2022.en-cs.ref.A.cs with its other side."""
    source, target, kind, here = PAIR_NAME.search(path).groups()
    there = target if here == source else source
    other = find_other_side(path, there)
    sides = {here: path, there: other}
    tagged = ".tags." in os.path.basename(path) or IWSLT_TALK.match(first_text(path))
    for side in () if tagged else (path, other):
        refuse_xml(side, first_text(side))
    ordered = {code: sides[code] for code in (source, target)}
    rows = functools.partial(paired_rows, ordered, bool(kind), bool(tagged))
    paths = (other, path) if kind else tuple(sorted([path, other]))
    form = "paired files, without IWSLT's tags" if tagged else "paired files"
    return TranslationFile(form, paths, rows)


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


def paired_rows(paths: dict[str, str], directed: bool, tagged: bool) -> Iterator[Row]:
    """The rows of two files, {language: path}. tagged: they are IWSLT's train.tags, whose lines of
    tags are no sentences."""
    lines = [read_lines(path) for path in paths.values()]
    if tagged:
        lines = [itertools.filterfalse(IWSLT_TAGS.match, texts) for texts in lines]
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
        beside = len(fields) > 2 and re.fullmatch(r"\S+", number)
        wrap = "put the texts into {'translation': {code: text}}, or leave the field out"
        sentence = f"{path}, {where}: is id {number[:40]} Indonesian, or the row's name"
        require(not beside, f"{sentence}? {wrap}")
        return Row(where, fields, directed=False)
    if named != {"instruction"}:
        return Row(where, {}, True, "rows of another form", plain(str(record), 100))
    return read_instruction_row(path, where, fields)


def read_instruction_row(path: str, where: str, fields: dict) -> Row:
    """A row of Alpaca's instruction, input and output."""
    texts = [fields.get(name) or "" for name in ("instruction", "input", "output")]
    for name, text in zip(("instruction", "input", "output"), texts, strict=True):
        found = f"{path}, {where}: {name} is {plain(repr(text), 60)}"
        require(isinstance(text, str), f"{found}; expected text")
    if more := what_else(fields):
        shown = plain(str(fields[more]), 100)
        return Row(where, {}, True, f"instructions with {more!r} beside them", shown)
    found = read_translation(*texts)
    if not found:
        unknown, shown = NO_TRANSLATION, f"instruction {plain(texts[0], 100)!r}"
        if read_direction(texts[0]):
            unknown = "translations with hints or labels"
            shown += f", input {plain(texts[1], 60)!r}, output {plain(texts[2], 60)!r}"
        return Row(where, {}, True, unknown, shown)
    (source, target), text = found
    return Row(where, {source: text, target: texts[-1]}, directed=True)


def tsv_rows(path: str, first: str, quoted: bool) -> Iterator[Row]:
    """A multi-parallel table: language codes in the first line, then a sentence a cell. first: how
    its text begins, for the sentence on what is no table. quoted: a spreadsheet wrote it."""
    lines = read_lines(path)
    header = [cell.strip() for cell in split_cells(next(lines, ""), quoted)]
    require(
        len(set(header)) >= max(2, len(header)),
        f"{path}, line 1: {first!r}; expected JSON, a TSV whose first line is different "
        "language codes, or paired files named like train.en-it.en and train.en-it.it",
    )
    for n, line in enumerate(lines, start=2):
        cells = split_cells(line, quoted)
        if len(cells) != len(header):
            counts = f"{len(cells)} columns, expected {len(header)}: {' '.join(header)}"
            advice = "; a cell holds no line break" if line.count('"') % 2 else ""
            raise InputError(f"{path}, line {n}: {counts}{advice}")
        if n == 2:
            refuse_number(path, header, cells)
        if {*map(str.strip, cells)} == {*header}:  # another table begins
            again = f"{path}, line {n}: found {' '.join(cells)} again, in another order"
            require([*map(str.strip, cells)] == header, f"{again}; expected one table in a file")
            continue
        cells = ["" if SPREADSHEET_ERROR.fullmatch(cell) else cell for cell in cells]
        yield Row(f"line {n}", dict(zip(header, cells, strict=True)), False)


def refuse_number(path: str, header: list[str], cells: list[str]) -> None:
    """Raise InputError where a column that could be Indonesian or Norwegian numbers the rows."""
    for code, cell in zip(header, cells, strict=True):
        numbers = code in ("id", "no") and re.fullmatch(r"\S*\d\S*", cell.strip())
        sentence = f"{path}, line 2: is {code} {cell.strip()[:40]} a text, or the row's name"
        require(not numbers, f"{sentence}? Leave that column out")


def split_cells(line: str, quoted: bool) -> list[str]:
    """The cells of a line. quoted: a spreadsheet put some into quotes, and doubled their own."""
    cells = line.split("\t")
    if not quoted:
        return cells
    return [cell[1:-1].replace('""', '"') if QUOTED.fullmatch(cell) else cell for cell in cells]

"""Files of translations to samples."""

import glob
import itertools
import json
import os
import re
from collections import Counter, namedtuple

from plumbing.errors import InputError, require
from plumbing.files import read_json, read_lines

LANGUAGES, TEMPLATES = read_json(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "prompts.json")
).values()
CODES = {name: code for code, name in LANGUAGES.items()}
Sample = namedtuple("Sample", "direction source target")  # direction: (source code, target code)


def read_record(record, where):
    """{code: text} of {"translation": {code: text}}, or, in the order of the instruction, of Alpaca's three fields."""
    if isinstance(record, dict) and isinstance(record.get("translation"), dict):
        return record["translation"]
    words = re.findall(r"\w+", str(record.get("instruction"))) if isinstance(record, dict) else []
    named = list(dict.fromkeys(CODES[word] for word in words if word in CODES))
    require(
        len(named) > 1,
        f"{where}: {str(record)[:80]}; expected {{'translation': {{code: text}}}}, or an instruction "
        "'... from English to Italian ...' with input and output",
    )
    return {named[0]: record.get("input"), named[1]: record.get("output")}


def read_rows(path):
    """(format, files, rows) of a data file, recognised from its name and its first character; a row is (where,
    {code: text}, whether it may be used in that order only). Raises InputError with file and line."""
    lines, rows = read_lines(path), []
    first = next((line.strip() for line in lines if line.strip()), "")
    pair = re.search(r"([a-z]{2})-([a-z]{2})(\.src|\.ref(?:\.\w+)?)?\.(\1|\2)$", path)
    if pair:  # tst2017it-nl.it, train.en-it.en, generaltest2022.en-cs.ref.A.cs
        source, target, kind, here = pair.groups()
        ending = {None: ".", ".src": ".ref*."}.get(kind, ".src.") + (
            target if here == source else source
        )
        found = sorted(glob.glob(glob.escape(path[: pair.end(2)]) + ending))
        require(found, f"{path}: its other side is missing; expected {path[: pair.end(2)]}{ending}")
        other = read_lines(found[0])
        require(
            len(lines) == len(other),
            f"{path}: {len(lines):,} lines, but {found[0]} has {len(other):,}; expected equal",
        )
        for n, (a, b) in enumerate(
            zip(lines, other) if here == source else zip(other, lines), start=1
        ):
            rows.append((f"line {n}", {source: a, target: b}, bool(kind)))
        return "paired files", tuple(sorted([path, found[0]])), rows
    if first[:1] in ("[", "{"):  # one array, or an object a line
        for n, text in [(1, "\n".join(lines))] if first[0] == "[" else enumerate(lines, 1):
            try:
                found = json.loads(text or "[]")
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {n + getattr(error, 'lineno', 1) - 1}: not valid JSON ({error})"
                ) from None
            for record in found if isinstance(found, list) else [found]:
                where = f"line {n}, entry {len(rows) + 1}"
                rows.append(
                    (where, read_record(record, f"{path}, {where}"), "translation" not in record)
                )
        return ("Alpaca JSON" if any(row[2] for row in rows) else "translation JSON"), (path,), rows
    header, *cells = [line.split("\t") for line in lines or [""]]
    require(
        len(set(header)) >= max(2, len(header)),
        f"{path}, line 1: {first[:60]!r}; expected JSON, a TSV whose first line "
        "is different language codes, or paired files named like train.en-it.en and train.en-it.it",
    )
    for n, row in enumerate(cells, start=2):
        require(
            len(row) == len(header),
            f"{path}, line {n}: {len(row)} columns, expected {len(header)}: {' '.join(header)}",
        )
        rows.append((f"line {n}", dict(zip(header, row)), False))
    return "multi-parallel TSV", (path,), rows


def read_corpus(paths, wanted="all", supervised=None):
    """({direction: samples}, the supervised ones of all directions) of data files; prints what was found. wanted:
    "en-it,it-en", "all", "supervised" or "zero-shot". supervised: the directions that count as such, by default those with
    English. A file named en-it gives it->en too, unless another file is named it-en. Pairs with a blank side are left out,
    duplicates are kept; both are counted aloud. Raises InputError."""
    files = {used: (form, rows) for form, used, rows in map(read_rows, map(os.fspath, paths))}
    named = {
        used: re.findall(r"([a-z]{2})-([a-z]{2})(?![a-z])", os.path.basename(used[0]))[:1]
        for used in files
    }
    samples, blank = {}, Counter()
    for used, (form, rows) in files.items():
        print(f"{' + '.join(used)}: {form}, {len(rows):,} rows")
        theirs = [
            (t, s) for s, t in named[used] if [(t, s)] in named.values()
        ]  # the direction of another file
        for where, texts, directed in rows:
            if len(texts) < 2 or not texts.keys() <= LANGUAGES.keys():
                raise InputError(
                    f"{used[0]}, {where}: found {' '.join(texts)}; expected some of {' '.join(LANGUAGES)}"
                )
            for code, text in texts.items():
                if not isinstance(text, str) or re.search("[\0\ud800-\udfff]", text):
                    raise InputError(
                        f"{used[0]}, {where}: the {code} side is {text!r:.60}; expected text without NUL"
                    )
            for s, t in [
                p
                for p in ([tuple(texts)] if directed else itertools.permutations(texts, 2))
                if p not in theirs
            ]:
                sample = Sample((s, t), texts[s].strip(), texts[t].strip())
                samples.setdefault((s, t), []).extend([sample] * all(sample))
                blank[s, t] += not all(sample)
    supervised = [p for p in samples if (p in supervised if supervised else "en" in p)]
    rest = [p for p in samples if p not in supervised]
    keywords = {"all": list(samples), "supervised": supervised, "zero-shot": rest}
    chosen = keywords.get(wanted, [tuple(pair.split("-")) for pair in wanted.split(",")])
    lacking = [pair for pair in chosen if not samples.get(pair)]
    require(
        len(lacking) < len(chosen) and (not lacking or wanted in keywords),
        f"--directions {wanted}: pairs found in {' '.join(map(str, paths))}: "
        + (", ".join(f"{s}-{t} {len(x):,}" for (s, t), x in samples.items()) or "none"),
    )
    for pair in chosen:
        twice = len(samples[pair]) - len(set(samples[pair]))
        print(
            f"  {'-'.join(pair)}: {len(samples[pair]):,} pairs"
            + f", {twice:,} of them duplicates" * bool(twice)
            + f"; {blank[pair]:,} with a blank side left out" * bool(blank[pair])
        )
    return {pair: samples[pair] for pair in chosen if samples[pair]}, supervised

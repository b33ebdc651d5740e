"""Other instructions than translations, as Alpaca has them in JSON."""

from collections import Counter

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import read_lines
from plumbing.corpus.corpus import UNREADABLE, clean
from plumbing.corpus.formats import read_records
from plumbing.corpus.instructions import read_translation, what_else

EXPECTED = 'expected JSON of {"instruction": text, "input": text or "", "output": text}'


def read_general(paths: list[str]) -> list[tuple[str, str, str]]:
    """(instruction, input or "", response) of each entry of files, counted aloud. Entries without a
    response are left out, and those that are plain translations: they belong to --data, which
    gives them twins. Raises InputError."""
    samples, left_out = [], Counter()
    for path in paths:
        lines = read_lines(path, "a file of instructions")
        first = next((line.strip() for line in lines if line.strip()), "")
        require(first[:1] in ("[", "{"), f"{path}: {first[:60]!r}; {EXPECTED}")
        before = len(samples)
        for where, record in read_records(path, first):
            instruction, source, target = read_entry(f"{path}, {where}", record)
            if not (instruction and target):
                left_out["without an instruction or a response"] += 1
            elif more := what_else(record):
                left_out[f"with {more!r}, for which the prompt has no place"] += 1
            elif read_translation(instruction, source, target):
                left_out["translations, which belong to --data"] += 1
            else:
                samples.append((instruction, source, target))
        print(f"{path}: other instructions, {len(samples) - before:,} rows")
    for what, n in left_out.items():
        print(f"  {n:,} left out: {what}")
    why = "".join(f"; {n:,} {what}" for what, n in left_out.items())
    require(samples or not paths, f"{' '.join(paths)}: nothing is left{why}; {EXPECTED}")
    return samples


def read_entry(where: str, record: object) -> tuple[str, str, str]:
    """(instruction, input, output) of an entry. Raises InputError."""
    fields = record if isinstance(record, dict) else {}
    found = f"{where}: {plain(str(record), 100)}"
    require(isinstance(fields.get("instruction"), str), f"{found}; {EXPECTED}")
    texts = []
    for name in ("instruction", "input", "output"):
        text = "" if fields.get(name) is None else fields[name]
        if not isinstance(text, str) or (not text.isprintable() and UNREADABLE.search(text)):
            raise InputError(f"{where}: {name} is {text!r:.60}; expected text, without NUL")
        texts.append(clean(text))
    return tuple(texts)

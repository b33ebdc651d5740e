"""Translating standard input line by line: as many lines out as in, in their order.

script is the module evaluate.py, which is handed in: plumbing imports none of the five.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import BinaryIO, TextIO

from plumbing.corpus.corpus import Direction, Sample
from plumbing.base.processes import WORLD, progress_bar
from plumbing.base.errors import InputError, require
from plumbing.corpus.languages import LANGUAGES
from plumbing.score.systems import SystemSettings, read_systems
from plumbing.score.testset import read_shots

STDIN = "standard input"


def read_direction(text: str, flag: str = "--translate") -> Direction:
    """ "it-nl" as two codes. Raises InputError."""
    codes = tuple(text.split("-"))
    known = len(codes) == 2 and codes[0] != codes[1] and {*codes} <= LANGUAGES.keys()
    require(known, f"{flag} {text}: expected two of {' '.join(LANGUAGES)}, as in it-nl")
    return codes


def read_source_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 stream without their ends; only \\n ends one. Raises InputError."""
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.object[error.start]:#04x} is not UTF-8"
            raise InputError(f"{STDIN}, line {number}: {found}; convert it") from None
        require("\0" not in text, f"{STDIN}, line {number}: found NUL; expected text without it")
        yield text.removesuffix("\n").removesuffix("\r")


def in_batches(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of so many lines, the last one shorter. What is wrong with a line is raised behind
    those before it."""
    batch = []
    try:
        for line in lines:
            batch.append(line)
            if len(batch) == size:
                yield batch
                batch = []
    except InputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def translate_lines(script: ModuleType, s: SystemSettings) -> None:
    """Translate standard input to standard output with the one system of evaluate.py's Settings s;
    whatever else is said goes to standard error. A blank line stays blank. At most --batch-size
    lines are read before theirs are written. Raises InputError."""
    direction = read_direction(s.translate)
    require(sys.stdin and not sys.stdout.gone, "--translate: standard input or output is closed")
    sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal has
    require(WORLD == 1, "--translate is the work of one process; start it without torchrun")
    with contextlib.redirect_stdout(sys.stderr):
        systems = read_systems(s)
        require(len(systems) == 1, f"--translate needs one system; found {len(systems)}")
        own = systems[0].settings
        require(not own.contrast_source, "--contrast-source contrasts rows of a test set")
        shots = read_shots(s.shots_from, {direction: []}, own.shots, s.skip_unknown)
        prompter, positions = script.make_prompter(systems[0])
        script.encode_direction(prompter, [Sample(direction, "", "")], [], shots, positions, own)
        decoder = script.load_decoder(systems[0])
    how, lost = (own.max_new_tokens, own.batch_size, own.length_penalty), 0

    def translate(texts: list[str], bar) -> list[str]:
        nonlocal lost
        samples = [Sample(direction, text, "") for text in texts]
        prompts, variants, shorter = script.encode_direction(
            prompter, samples, [], shots, positions, own
        )
        lost += shorter.total()
        return script.translate(decoder, prompter, prompts, bar, *how, variants)

    with progress_bar(desc=systems[0].name, unit="line") as bar:
        for batch in in_batches(read_source_lines(sys.stdin.buffer), s.batch_size):
            write_translated(batch, lambda texts: translate(texts, bar), sys.stdout)
            if sys.stdout.gone:
                return
    if lost:
        print(f"{lost:,} prompts lost demonstrations, or their line's end, to fit", file=sys.stderr)


def write_translated(batch: list[str], translate, out: TextIO) -> None:
    """Write a line for each of the batch, blank where it is."""
    rows = [n for n, text in enumerate(batch) if text.strip()]
    texts = [""] * len(batch)
    outputs = translate([batch[n].strip() for n in rows]) if rows else []
    for n, text in zip(rows, outputs, strict=True):
        texts[n] = " ".join(text.split())
    out.write("".join(text + "\n" for text in texts))
    out.flush()

"""Translate standard input line by line: as many lines out as in, in their order.

    python -m tools.translate --ckpt runs/stage2 --direction it-nl < in.txt > out.txt

A blank line stays blank. Whatever else is said goes to standard error. By hand, --batch-size 1
answers every line at once.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import evaluate
from data import Direction, Sample
from evaluate import BATCH_SIZE, MAX_NEW_TOKENS, System, encode_prompts, load_for_decoding
from plumbing.base.errors import InputError, require
from plumbing.base.files import require_folder
from plumbing.base.flags import DeviceSettings, option, ours, refuse_given, run_script
from plumbing.base.processes import WORLD, progress_bar
from plumbing.checkpoint.peft import read_adapter
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import clean
from plumbing.corpus.languages import LANGUAGES, TEMPLATES, add_languages


@dataclass
class Settings(DeviceSettings):
    ckpt: str = option("", "run or model; left out: runs/stage2", "data")
    direction: str = option("", "of the lines, as in it-nl", "data")
    languages: str = option("", "file of more languages, {code: name} (docs/data.md)", "data")
    model: str = option("", "base of the adapter; left out: the one that it names", "model")
    template: str = option("", "prompt; left out: the run's", "decoding", choices=TEMPLATES)
    beam: int = option(1, "beams of beam search; 1: greedy", "decoding", least=1, most=100)
    length_penalty: float = option(1.0, "of beam search", "decoding", least=-10, most=10)
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest output", "decoding", least=1)
    batch_size: int = option(BATCH_SIZE, "lines decoded together", "decoding", least=1)


def parse_direction(text: str) -> Direction:
    """ "it-nl" as two codes. Raises InputError."""
    codes = tuple(text.split("-"))
    known = len(codes) == 2 and codes[0] != codes[1] and {*codes} <= LANGUAGES.keys()
    require(known, f"--direction {text!r}: expected two of {' '.join(LANGUAGES)}, as in it-nl")
    return codes


def read_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 stream as texts; only \\n ends one. Raises InputError."""
    for number, line in enumerate(file, start=1):
        place = f"standard input, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            found = f"byte {error.object[error.start]:#04x} is not UTF-8"
            raise InputError(f"{place}: {found}; convert it") from None
        require("\0" not in text, f"{place}: NUL; expected text, in UTF-8")
        yield clean(text)


def main(s: Settings) -> None:
    """Translate standard input to standard output. Raises InputError."""
    add_languages(s.languages)
    if s.beam == 1:
        refuse_given(s, ["length_penalty"], "--beam is 1, which is greedy decoding")
    direction = parse_direction(s.direction)
    s.ckpt = s.ckpt or ours("runs/stage2")
    require_folder(s.ckpt, "a run or a model")
    if not read_adapter(s.ckpt, s.model)[0]:
        refuse_given(s, ["model"], f"{s.ckpt} is no adapter")
    require(WORLD == 1, "tools.translate is the work of one process; start it without torchrun")
    require(sys.stdin, "standard input is closed; expected lines of text")
    sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal has
    system = System(os.path.basename(s.ckpt), s.ckpt, s)
    with contextlib.redirect_stdout(sys.stderr):
        prompter = evaluate.prepare_prompter(system, {direction: []})
        model = load_for_decoding(system)
    decoder, lines = Decoder(model, s.beam, record=True), read_lines(sys.stdin.buffer)
    cut = unfinished = 0
    positions = model.config.max_position_embeddings
    with progress_bar(desc=system.name, unit="line") as bar:
        while batch := list(itertools.islice(lines, s.batch_size)):
            samples = [Sample(direction, text, "") for text in batch if text]
            prompts, more = encode_prompts(prompter, samples, positions, s.max_new_tokens)
            limits = s.max_new_tokens, s.batch_size, s.length_penalty
            texts, ended = evaluate.translate(decoder, prompter, prompts, bar, *limits)
            texts = iter(texts)
            for line in batch:
                print(" ".join(next(texts).split()) if line else "", flush=True)
            cut, unfinished = cut + sum(more), unfinished + sum(ended)
    if cut:
        print(f"{cut:,} lines lost their end, to fit", file=sys.stderr)
    if unfinished:
        limit = f"--max-new-tokens {s.max_new_tokens}"
        print(f"{unfinished:,} outputs ended because of {limit}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

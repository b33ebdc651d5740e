"""Other instructions than translations, as Alpaca and AlpacaEval have them in JSON."""

from collections import Counter
from typing import NamedTuple

from plumbing.corpus.corpus import UNREADABLE
from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import read_pieces
from plumbing.corpus.instructions import read_direction
from plumbing.corpus.records import PIECE, array_records, line_records

GENERAL = ("general",)  # in the place of a direction
EXPECTED = 'expected JSON of {"instruction": text, "input": text or "", "output": text}'


class GeneralSample(NamedTuple):
    """An instruction with its response. What may be cut is always `source`: the input, or, where
    there is none, the instruction itself, and then `instruction` is ""."""

    instruction: str
    source: str
    target: str
    original: tuple[str, str] = ("", "")  # instruction and input, as the file has them
    dataset: str = ""

    direction = GENERAL
    others = ()

    @property
    def blank(self) -> bool:
        return not self.source

    def answered(self, output: str, generator: str) -> dict:
        """As AlpacaEval reads what a model answered."""
        instruction, source = self.original
        record = {"instruction": instruction} | ({"input": source} if source else {})
        record |= {"dataset": self.dataset} if self.dataset else {}
        return record | {"output": output, "generator": generator}


def read_general(paths: list[str], tuning: bool = True) -> list[GeneralSample]:
    """The samples of files, perhaps of no file, counted aloud. Those to tune on have a response and
    name no direction: translations belong to --data, which gives them twins. Raises InputError."""
    samples, left_out = [], Counter()
    for path in paths:
        first = next((piece.strip() for piece in read_pieces(path, PIECE) if piece.strip()), "")
        require(first[:1] in ("[", "{"), f"{path}: {first[:60]!r}; {EXPECTED}")
        read = array_records if first.startswith("[") else line_records
        before = len(samples)
        for number, (line, record) in enumerate(read(path), start=1):
            sample = read_sample(f"{path}, line {line}, entry {number}", record)
            if tuning and not (sample.source and sample.target):
                left_out["without an instruction or a response"] += 1
            elif tuning and read_direction(sample.instruction or sample.source):
                left_out["translations, which belong to --data"] += 1
            else:
                samples.append(sample)
        print(f"{path}: other instructions, {len(samples) - before:,} rows")
    for what, n in left_out.items():
        print(f"  {n:,} left out: {what}")
    why = "".join(f"; {n:,} {what}" for what, n in left_out.items())
    found = any(not x.blank for x in samples) or not paths
    require(found, f"{' '.join(paths)}: nothing is left{why}; {EXPECTED}")
    return [(x.instruction or x.source, x.source if x.instruction else '', x.target) for x in samples]


def read_sample(where: str, record: object) -> GeneralSample:
    """The sample of an entry. Raises InputError."""
    fields = record if isinstance(record, dict) else {}
    found = f"{where}: {plain(str(record), 100)}"
    require(isinstance(fields.get("instruction"), str), f"{found}; {EXPECTED}")
    texts = []
    for name in ("instruction", "input", "output", "dataset"):
        text = "" if fields.get(name) is None else fields[name]
        if not isinstance(text, str) or (not text.isprintable() and UNREADABLE.search(text)):
            raise InputError(f"{where}: {name} is {text!r:.60}; expected text, without NUL")
        texts.append(text)
    original, dataset = (texts[0], texts[1]), texts[3]
    instruction, source, target, _ = (text.strip() for text in texts)
    if not source:
        instruction, source = "", instruction
    return GeneralSample(instruction, source, target, original, dataset)


def general_part(encoded: list) -> dict[str, int]:
    """For the log: how many of a step's encoded samples are no translations, and the tokens of
    their responses; {} where none is."""
    more = [x for x in encoded if x.sample.direction == GENERAL]
    tokens = sum(len(x.response) for x in more)
    return {"general": len(more), "general_tokens": tokens} if more else {}

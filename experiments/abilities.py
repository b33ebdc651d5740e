"""Other instructions than to translate, made of the demo's corpus, and what a run makes of them.

    python -m experiments.abilities --ckpt RUN --data runs/experiments/abilities-dev.json

Four kinds, whose answers can be checked: copy, name the language, count the words, continue. They
stand for the paper's Alpaca, which is mixed into stage 1 and not into stage 2. The answers go into
RUN/eval-abilities-dev/scores.json.
"""

import json
import os
import random
import statistics
from dataclasses import dataclass

import sacrebleu

import evaluate
from data import Sample
from evaluate import System, encode_prompts, load_for_decoding, prepare_prompter, translate
from plumbing.base.errors import require
from plumbing.base.files import read_json, write_json
from plumbing.base.flags import ours, run_script
from plumbing.base.processes import progress_bar
from plumbing.compute.decoder import Decoder
from plumbing.corpus.languages import LANGUAGES

KINDS = {
    "copy": "Repeat the input word for word.",
    "language": "Name the language of the input.",
    "count": "Count the words of the input.",
    "continue": "Continue the input.",
}
# How many rows of a split; a row gives one instruction of each kind.
SPLITS = {"train": 1500, "dev": 100}


@dataclass
class Settings(evaluate.Settings):
    pass  # --data: instructions in Alpaca's JSON


def answer(kind: str, text: str, language: str) -> tuple[str, str]:
    """(input, output) of an instruction of this kind about a text."""
    words = text.split()
    if kind == "continue":
        half = len(words) // 2
        return " ".join(words[:half]), " ".join(words[half:])
    return text, {"copy": text, "language": language, "count": str(len(words))}[kind]


def make(folder: str) -> None:
    """Write abilities-train.json and abilities-dev.json, of rows of these splits."""
    for split, size in SPLITS.items():
        with open(ours(f"demo/data/{split}.tsv"), encoding="utf-8") as file:
            header, *rows = (line.rstrip("\n").split("\t") for line in file)
        rng, records = random.Random(f"abilities {split}"), []
        for row in rng.sample([row for row in rows if min(len(x.split()) for x in row) > 1], size):
            for kind, instruction in KINDS.items():
                code = rng.choice(header)
                text, output = answer(kind, row[header.index(code)], LANGUAGES[code])
                record = {"instruction": instruction, "input": text, "output": output}
                records.append(record | {"dataset": kind})
        write_json(os.path.join(folder, f"abilities-{split}.json"), records)


def main(s: Settings) -> None:
    """Answer the instructions of a file with one run. Raises InputError."""
    require(len(s.ckpt) == 1 and len(s.data) == 1, "expected one --ckpt and one --data")
    (ckpt,), (path,) = s.ckpt, s.data
    with open(path, encoding="utf-8") as file:
        records = json.load(file)
    samples = [Sample(None, x["input"], x["output"], x["instruction"]) for x in records]
    system = System(os.path.basename(os.path.normpath(ckpt)), ckpt, s)
    prompter = prepare_prompter(system, {})
    model = load_for_decoding(system)
    positions, limit = model.config.max_position_embeddings, s.max_new_tokens
    prompts, _ = encode_prompts(prompter, samples, positions, limit)
    with progress_bar(total=len(samples), desc=system.name, unit="answer") as bar:
        answers, _ = translate(Decoder(model, s.beam), prompter, prompts, bar, limit, s.batch_size)
    split, _ = os.path.splitext(os.path.basename(path))
    folder = os.path.join(ckpt, f"eval-{split}")
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "scores.json"), {"references": records, "answers": answers})


def score(scores_path: str, kind: str) -> float:
    """% of a run's answers to a kind of instructions that are right, word for word; of "continue",
    chrF++."""
    found = read_json(scores_path)
    pairs = [
        (" ".join(text.split()), " ".join(record["output"].split()))
        for text, record in zip(found["answers"], found["references"], strict=True)
        if record["dataset"] == kind
    ]
    if kind == "continue":
        texts, wanted = zip(*pairs, strict=True)
        return sacrebleu.corpus_chrf(texts, [wanted], word_order=2).score
    return 100 * statistics.fmean(a == r for a, r in pairs)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

"""Other instructions than to translate, made of the demo's corpus, and what a run makes of them.

Four kinds, whose answers can be checked: copy, name the language, count the words, continue. They
stand for the paper's Alpaca, which is mixed into stage 1 and not into stage 2.
"""

import json
import os
import random
import statistics

import sacrebleu

from plumbing.base.files import read_json, write_json
from plumbing.corpus.languages import LANGUAGES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KINDS = {
    "copy": "Repeat the input word for word.",
    "language": "Name the language of the input.",
    "count": "Count the words of the input.",
    "continue": "Continue the input.",
}
# How many rows of a split; a row gives one instruction of each kind.
SPLITS = {"train": 1500, "dev": 100}


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
        with open(os.path.join(ROOT, "demo", "data", f"{split}.tsv"), encoding="utf-8") as file:
            header, *rows = (line.rstrip("\n").split("\t") for line in file)
        rng, records = random.Random(f"abilities {split}"), []
        for row in rng.sample([row for row in rows if min(len(x.split()) for x in row) > 1], size):
            for kind, instruction in KINDS.items():
                code = rng.choice(header)
                text, output = answer(kind, row[header.index(code)], LANGUAGES[code])
                record = {"instruction": instruction, "input": text, "output": output}
                records.append(record | {"dataset": kind})
        write_json(os.path.join(folder, f"abilities-{split}.json"), records)


def score_file(scores_path: str, kind: str) -> float:
    """score() of the model_outputs.json beside a scores.json of evaluate.py --general."""
    answers = os.path.join(os.path.dirname(scores_path), "model_outputs.json")
    return score(answers, read_json(scores_path)["settings"]["general"][0], kind)


def score(answers_path: str, references_path: str, kind: str) -> float:
    """% of the answers to a kind of instructions that are right, word for word; of "continue",
    chrF++."""
    with open(answers_path, encoding="utf-8") as file:
        answers = json.load(file)
    with open(references_path, encoding="utf-8") as file:
        references = json.load(file)
    pairs = [
        (" ".join(a["output"].split()), " ".join(r["output"].split()))
        for a, r in zip(answers, references, strict=True)
        if r["dataset"] == kind
    ]
    if kind == "continue":
        texts, wanted = zip(*pairs, strict=True)
        return sacrebleu.corpus_chrf(texts, [wanted], word_order=2).score
    return 100 * statistics.fmean(a == r for a, r in pairs)

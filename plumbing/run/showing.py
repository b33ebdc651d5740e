"""`python data.py --show 3`: samples as the trainer sees them.

script is the module data.py, which is handed in: plumbing imports none of the five.
"""

import random
from dataclasses import dataclass
from types import ModuleType

from plumbing.base.flags import DeviceSettings, option
from plumbing.corpus.corpus import read_corpus
from plumbing.checkpoint.folder import ModelFolder
from plumbing.corpus.languages import TEMPLATES
from plumbing.base.streams import in_colour
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.run.settings import CONFLICTS

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"  # more likely, less likely


@dataclass
class ShowSettings(DeviceSettings):
    """Which samples are shown, and how they are encoded."""

    show: int = option(3, "how many", least=1, most=10**6)
    model: str = option("demo/base", "folder of the tokenizer and its config.json")
    data: list = option(("demo/data/train.tsv",), "files: TSV, JSON, paired files (docs/data.md)")
    directions: str = option("supervised", "en-it,it-en, supervised (with English), zero-shot, all")
    skip_unknown: bool = option(False, "leave out rows without a certain direction and language")
    template: str = option("alpaca", "prompt", choices=TEMPLATES)
    conflict: str = option("target", "twins' instruction, as in train.py", choices=CONFLICTS)
    punish_eos: bool = option(True, "the twins' responses end with EOS")
    max_length: int = option(512, "tokens of prompt and response; responses are never cut", least=1)
    seed: int = option(1, "of the samples and their twins", least=0, most=2**63 - 1)


def show(script: ModuleType, s: ShowSettings) -> None:
    """Print some samples of a tuning set with their twins. Raises InputError."""
    folder = ModelFolder(s.model)
    tokenizer = Tokenizer([folder.folder, folder.source], folder.config)
    corpus, _ = read_corpus(s.data, s.directions, None, s.skip_unknown, pairs=s.show, seed=s.seed)
    prompter = script.Prompter(tokenizer, s.template)
    tuning_set = script.TuningSet(corpus, prompter, s.max_length)
    rng = random.Random(s.seed)
    chosen = rng.sample(tuning_set.samples, min(s.show, len(tuning_set.samples)))
    pairs = tuning_set.with_twins(chosen, s.conflict, rng, s.punish_eos)
    for number, pair in enumerate(pairs, start=1):
        print(f"\n=== {number}")
        for line in describe(script.collate([pair]), pair, prompter, in_colour()):
            print(line)


def describe(batch: object, pair: object, prompter: object, coloured: bool) -> list[str]:
    """The lines of a pair, out of its Batch, so that a fault of the mask would show. Supervised
    tokens are in brackets, or in colour."""
    lines, start = [], 0
    ids, predicted = batch.ids.tolist(), {at + 1 for at in batch.at.tolist()}
    kinds = [("Eq. 1, more likely", GREEN), ("Eq. 2, less likely", RED)]
    encoded = [pair.positive, pair.twin] if pair.twin else [pair.positive]
    for one, length, (kind, colour) in zip(encoded, batch.lengths, kinds, strict=False):
        places = range(start, start + length)
        prompt = [ids[i] for i in places if i not in predicted]
        response = [ids[i] for i in places if i in predicted]
        opening, closing = (colour, PLAIN) if coloured else ("[", "]")
        texts = prompter.tokenizer.texts_of(response, prompter.way.end)
        marked = " ".join(f"{opening}{text}{closing}" for text in texts)
        source, target = one.sample.direction
        head = f"--- {source}→{target}: {len(prompt)} tokens of prompt, {len(response)} supervised"
        lines += [f"{head} ({kind})", prompter.tokenizer.decode(prompt), marked]
        start += length
    return lines

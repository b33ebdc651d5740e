"""The rows of the paper's tables: demonstrations before the prompt, prompts in the target language,
contrastive decoding. `make table` runs it for all of them.

    python -m experiments.baselines --shots-from demo/data/shots.tsv --systems mt=runs/stage1 \\
        1-shot=runs/stage1,shots=1 ptl=runs/stage1,template=ptl

Each system has a name, a folder, and perhaps options of its own. All else is as in evaluate.py.
"""

import os
import re
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

import evaluate
from data import Direction, Prompter, Sample, write_prompt
from evaluate import System, encode_prompts, translate
from plumbing.base.errors import InputError, require
from plumbing.base.flags import flag, option, require_bounds, run_script
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import read_corpus

# Options that a system may have of its own.
OWN = ("template", "shots", "beam", "length_penalty", "contrast_language", "max_new_tokens")


@dataclass
class Settings(evaluate.Settings):
    systems: list = option((), "NAME=FOLDER or NAME=FOLDER,template=ptl,shots=5,...", "data")
    shots: int = option(0, "demonstrations before the prompt", "decoding", least=0)
    shots_from: list = option((), "files of --shots: each direction's first pairs", "decoding")
    contrast_language: float = option(
        0.0, "weight of the prompts for English and for the source language", "decoding", least=0
    )

    def describe(self) -> str:
        """How a system decodes."""
        parts = [super().describe()]
        parts += [f"{self.shots} shot{'s' * (self.shots > 1)}"] if self.shots else []
        parts += [f"contrast-language {self.contrast_language:g}"] if self.contrast_language else []
        return ", ".join(parts)


def read_system(text: str, s: Settings) -> System:
    """NAME=FOLDER, perhaps followed by ,option=value. Raises InputError."""
    first, *assignments = text.split(",")
    name, _, ckpt = first.partition("=")
    expected = "expected NAME=FOLDER or NAME=FOLDER,option=value with letters, digits, . + - _"
    require(re.fullmatch(r"[\w.+-]+", name) and ckpt, f"--systems {text}: {expected}")
    own = {}
    for item in assignments:
        key, _, value = item.partition("=")
        field = next((f for f in fields(s) if f.name == key.replace("-", "_")), None)
        known = " ".join(flag(x)[2:] for x in OWN)
        require(field and field.name in OWN, f"--systems {text}: found {item!r}; known: {known}")
        try:
            own[field.name] = field.type(value)
        except ValueError:
            raise InputError(f"--systems {text}: found {item!r}; expected a number") from None
        if field.type in (int, float):
            require_bounds(flag(field.name), own[field.name], **field.metadata)
    return System(name, ckpt, replace(s, **own), name)


# Demonstrations


def read_shots(s: Settings) -> dict[Direction, list[Sample]]:
    """The samples of --shots-from, by direction. Raises InputError where one is of the test set."""
    if not s.shots_from:
        return {}
    found, _ = read_corpus(s.shots_from, skip_unknown=s.skip_unknown)
    tested, _ = read_corpus(s.data, skip_unknown=s.skip_unknown)
    for direction, pairs in found.items():
        shared = {*pairs} & {*tested.get(direction, [])}
        sentence = f"--shots-from: {'-'.join(direction)} {next(iter(shared), '')!r:.60}"
        require(not shared, f"{sentence} is in the test set too; choose other files")
    return {d: [Sample(d, *pair) for pair in pairs] for d, pairs in found.items()}


def encode_with_shots(
    prompter: Prompter, sample: Sample, room: int, shots: list[Sample]
) -> tuple[list[int], int]:
    """(the prompt of a sample behind demonstrations, as at most `room` ids, without EOS between
    them; how many demonstrations gave way from the front, so that it fits)."""
    turns = [
        text for shot in shots for text in (write_prompt(prompter.template, shot), shot.target)
    ]
    for lost in range(len(shots) + 1):
        prompt = write_prompt(prompter.template, sample)
        ids = prompter.encoder.encode_turns([*turns[2 * lost :], prompt])
        if len(ids) <= room:
            return ids, lost
    return prompter.encode(sample, room)[0], len(shots)


# Contrastive decoding, Sennrich et al. 2024, arXiv 2309.07098


class Contrasting(Decoder):
    """A Decoder that runs every prompt beside its variants over the same new tokens, and gives the
    scores log(p(real) - sum_i weight p(variant_i)), -inf where that is not positive; where no token
    is left, log p(real). variants: {prompt: those of its variants}."""

    def __init__(self, model, weight: float, variants: dict[tuple, list[list[int]]]):
        super().__init__(model)
        self.weight, self.variants = weight, variants
        self.C = 1 + max(map(len, variants.values()))  # of which all have as many

    def with_variants(self, prompts: list[list[int]]) -> list[list[int]]:
        return [ids for prompt in prompts for ids in (prompt, *self.variants[tuple(prompt)])]

    def reserve(self, prompts: list[list[int]], rows: int, max_new_tokens: int) -> None:
        super().reserve(self.with_variants(prompts), rows * self.C, max_new_tokens)

    def prefill(self, prompts: list[list[int]], after: int = 0) -> Tensor:
        return self.contrast(super().prefill(self.with_variants(prompts), after * self.C))

    def step(self, new: list[list[int]], parents: list | None = None) -> Tensor:
        return self.contrast(super().step([token for token in new for _ in range(self.C)]))

    def drop(self, sentence: int, last: int) -> None:
        for row in range(self.C):
            super().drop(sentence * self.C + row, last * self.C + row)

    def contrast(self, logits: Tensor) -> Tensor:
        """Scores [B, 1, V] of logits [B C, 1, V]."""
        log_p = logits.view(-1, self.C, *logits.shape[1:]).float().log_softmax(-1)  # [B, C, 1, V]
        p = log_p.exp()
        rest = p[:, 0] - sum(self.weight * p[:, i] for i in range(1, self.C))
        nothing = (rest <= 0).all(-1, keepdim=True)
        return torch.where(nothing, log_p[:, 0], rest.clamp(min=0).log())


def undesired(samples: list[Sample]) -> list[list[Sample]]:
    """Samples of one direction, asked for in English and in their own language instead, where that
    is not the direction."""
    source, target = samples[0].direction
    return [
        [sample._replace(direction=(source, language)) for sample in samples]
        for language in sorted({"en", source} - {target})
    ]


def make_translate_rows(shots: dict[Direction, list[Sample]]):
    """evaluate.py's translate_rows with demonstrations and contrast, as a system's settings say."""

    def translate_rows(decoder: Decoder, prompter: Prompter, samples: list, s: Settings, bar):
        columns = {}, {}, {}  # texts, which were cut, which are unfinished, by the sample's number
        for direction in dict.fromkeys(sample.direction for sample in samples):
            own = [n for n, sample in enumerate(samples) if sample.direction == direction]
            found = translate_direction(decoder, prompter, [samples[n] for n in own], s, bar)
            for column, values in zip(columns, found, strict=True):
                column |= zip(own, values, strict=True)
        return tuple([column[n] for n in range(len(samples))] for column in columns)

    def translate_direction(decoder: Decoder, prompter: Prompter, samples: list, s: Settings, bar):
        positions = decoder.model.config.max_position_embeddings
        limits = s.max_new_tokens, s.batch_size, s.length_penalty
        name, before = samples[0].name, shots.get(samples[0].direction, [])[: s.shots]
        few = f"--shots-from: {len(before)} pairs of {name}; expected {s.shots}"
        require(len(before) == s.shots, few)

        def encode(some: list[Sample]) -> tuple[list[list[int]], list[bool]]:
            if not s.shots:
                return encode_prompts(prompter, some, positions, s.max_new_tokens)
            room = positions - s.max_new_tokens
            encoded = [encode_with_shots(prompter, sample, room, before) for sample in some]
            fewer = sum(lost > 0 for _, lost in encoded)
            if fewer:
                print(f"{name}: {fewer:,} prompts with fewer shots, to fit")
            return [ids for ids, _ in encoded], [False] * len(encoded)

        prompts, cut = encode(samples)
        if not s.contrast_language:
            texts, unfinished = translate(decoder, prompter, prompts, bar, *limits)
            return texts, cut, unfinished
        columns = [encode(others)[0] for others in undesired(samples)]
        rows = zip(*columns, strict=True)
        variants = {tuple(x): list(row) for x, row in zip(prompts, rows, strict=True)}
        contrasting = Contrasting(decoder.model, s.contrast_language, variants)
        texts, unfinished = translate(contrasting, prompter, prompts, bar, *limits)
        decoder.computed += contrasting.computed
        return texts, cut, unfinished

    return translate_rows


def main(s: Settings) -> None:
    """Evaluate the systems side by side. Raises InputError."""
    systems = [read_system(text, s) for text in s.systems]
    require(systems, "nothing to evaluate: expected --systems NAME=FOLDER ...")
    for system in systems:
        own = system.settings
        require(os.path.isdir(system.ckpt), f"{system.ckpt}: no such folder; expected a run")
        require(not own.shots or s.shots_from, "shots need --shots-from FILE")
        sentence = f"{system.name}: contrastive decoding is greedy here; expected beam=1"
        require(own.beam == 1 or not own.contrast_language, sentence)
    evaluate.evaluate(s, systems, make_translate_rows(read_shots(s)))


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

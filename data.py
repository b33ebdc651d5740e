"""From samples to batches: prompts, encoded samples, conflicting twins, micro-batches.

What is random here follows the seed, or a generator that train.py makes of the seed and the step:
a step's samples and conflicting instructions are the same however the run got there.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from plumbing.corpora import Corpus, Direction, Sample
from plumbing.distributed import progress_bar
from plumbing.drawing import Drawn, draw
from plumbing.errors import require
from plumbing.languages import LANGUAGES, TEMPLATES
from plumbing.sampling import pack, visits
from plumbing.tokenizer import Tokenizer

CONFLICTS, REDUCTIONS = ["any", "target"], ["token", "sentence"]


def write_prompt(template: str, direction: Direction, source: str) -> str:
    """The prompt as text; a response follows its last character, then EOS. A template in several
    languages (ptl) speaks the target's and has its own names of the others. Raises InputError."""
    sentence = f"--template {template}: prompts.json has no such; it has {' '.join(TEMPLATES)}"
    require(template in TEMPLATES, sentence)
    names, lines = LANGUAGES, TEMPLATES[template]
    if isinstance(lines, dict):
        sentence = f"no prompt for {'-'.join(direction)}; it has {' '.join(lines)}"
        require({*direction} <= {*lines}, f"--template {template}: {sentence}")
        names, lines = lines[direction[1]]["names"], lines[direction[1]]["prompt"]
    source_name, target_name = (names[code] for code in direction)
    return "\n".join(lines).format(source=source_name, target=target_name, input=source)


class Prompter(NamedTuple):
    """Prompts of one template in prompts.json, for training and for decoding alike."""

    tokenizer: Tokenizer
    template: str

    def demonstrate(self, shots: Sequence[Sample]) -> list[int]:
        """Demonstrations as ids: prompts with their responses, in lines of their own, no EOS."""
        ids = []
        for shot in shots:
            text = write_prompt(self.template, shot.direction, shot.source)
            newline = "\n" if ids else ""
            ids += self.tokenizer.encode(newline + text) + self.tokenizer.encode(shot.target)
        return ids

    def encode(
        self, direction: Direction, source: str, room: int, before: Sequence[int] = ()
    ) -> tuple[list[int] | None, bool]:
        """(BOS, the ids `before` it and the prompt as at most `room` ids, whether the source lost
        its end for it). The ids are None where even the empty prompt is too long."""
        kept, newline = self.tokenizer.head(source, room), "\n" if before else ""
        while True:
            text = newline + write_prompt(self.template, direction, kept)
            ids = self.tokenizer.bos + [*before] + self.tokenizer.encode(text)
            if len(ids) <= room or not kept:
                break
            shorter = self.tokenizer.decode(self.tokenizer.encode(kept)[: -(len(ids) - room)])
            kept = shorter.rstrip("\ufffd")[: len(kept) - 1]  # no half character; always shorter
        return (ids if len(ids) <= room else None), kept != source


def draw_conflict(direction: Direction, instructions: dict, mode: str, rng: Random) -> Direction:
    """The instruction I~ != I of a conflicting sample (paper, section 3), drawn at random from
    those of the tuning set, {direction: number of samples}: frequent ones more often, as from the
    data itself. mode "any" is the paper's I~ != I, which may keep the target language (it->en under
    nl->en punishes a right-language output); "target" never keeps it. Raises InputError."""
    wrong = {d: n for d, n in instructions.items() if d != direction}
    if mode == "target":
        wrong = {d: n for d, n in wrong.items() if d[1] != direction[1]}
    sentence = f"no instruction in the tuning data conflicts with {'-'.join(direction)}"
    require(wrong, f"{sentence} (--conflict {mode}); add more")
    return rng.choices(list(wrong), wrong.values())[0]


class EncodedSample(NamedTuple):
    """A sample as ids; prompt and response are tokenized apart: no token straddles the border."""

    sample: Sample
    prompt: list[int]  # BOS, instruction I, input x
    response: list[int]  # output y, EOS

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.response)


class TwinPair(NamedTuple):
    """A sample and its conflicting twin: the same x (cut if I~ is long) and y under a wrong I~."""

    positive: EncodedSample
    twin: EncodedSample | None  # None where alpha is 0, or its prompt does not fit

    @property
    def tokens(self) -> int:
        return self.positive.tokens + (self.twin.tokens if self.twin else 0)


class TuningSet:
    """The encoded samples of a corpus, `pairs` of each direction, drawn without replacement (0: all
    of them) unless read_corpus has done so, that fit max_length, tokens of prompt and response.
    Raises InputError."""

    def __init__(self, corpus: Corpus, prompter: Prompter, max_length: int, pairs=0, seed=0):
        self.prompter, self.max_length = prompter, max_length
        drawn = []
        for direction, samples in corpus.items():
            if not isinstance(samples, Drawn):
                samples = [samples[n] for n in draw(len(samples), pairs, seed, direction)]
            drawn += samples
        self.samples = self._encode(drawn)
        self.instructions = Counter(encoded.sample.direction for encoded in self.samples)

    def _encode(self, samples: list[Sample]) -> list[EncodedSample]:
        """Those that fit, as ids; the others, and sources that were cut, are counted aloud. A
        response is never cut: that would teach the model to stop mid-sentence."""
        encoded, notes, tokenizer = [], Counter(), self.prompter.tokenizer
        for sample in progress_bar(samples, desc="tokenizing", unit="pair", leave=False, delay=3):
            head = tokenizer.head(sample.target, self.max_length)
            response = tokenizer.encode(head) + [tokenizer.eos]
            room = self.max_length - len(response) if head == sample.target else 0
            prompt, cut = self.prompter.encode(sample.direction, sample.source, room)
            if prompt:
                encoded.append(EncodedSample(sample, prompt, response))
            if cut:
                what = "sources cut" if prompt else "pairs left out for their response"
                notes["-".join(sample.direction), what] += 1
        sentence = f"none of {len(samples)} samples fits --max-length {self.max_length}; raise it"
        require(encoded, sentence)
        for (direction, what), n in notes.items():
            print(f"  {direction}: {n:,} over-long {what}")
        return encoded

    def of_step(self, step: int, batch_size: int, total: int, seed: int) -> list[EncodedSample]:
        """The samples of one step, out of `total` visits to samples in epochs of all of them."""
        return [self.samples[i] for i in visits(step, batch_size, total, len(self.samples), seed)]

    def with_twins(self, samples: list[EncodedSample], conflict=None, rng=None) -> list[TwinPair]:
        """Each sample, shortest first, with its twin under an instruction drawn anew. conflict: the
        mode of draw_conflict; None: no twins."""
        ordered = sorted(samples, key=lambda encoded: encoded.tokens)
        if conflict is None:
            return [TwinPair(positive, None) for positive in ordered]
        return [TwinPair(positive, self._twin(positive, conflict, rng)) for positive in ordered]

    def _twin(self, positive: EncodedSample, conflict: str, rng: Random):
        """The conflicting twin of a sample, or None where its prompt does not fit."""
        wrong = draw_conflict(positive.sample.direction, self.instructions, conflict, rng)
        room = self.max_length - len(positive.response)
        prompt, _ = self.prompter.encode(wrong, positive.sample.source, room)
        sample = positive.sample._replace(direction=wrong)
        return EncodedSample(sample, prompt, positive.response) if prompt else None


class Batch(NamedTuple):
    """A micro-batch of B sequences, positives before their twins, with R response tokens."""

    ids: Tensor  # [T], the sequences end to end
    lengths: list[int]  # B ints, sum T
    at: Tensor  # [R], the positions whose logits predict y
    y: Tensor  # [R], the tokens of the responses, each with its EOS
    weight: Tensor  # [R], of their losses; 0 where a process idles
    positives: int  # so many of the R are of positives
    samples: list[Sample]  # without twins


def collate(pairs: list[TwinPair], reduction: str = "token") -> Batch:
    """The Batch of some pairs. Weights are 1, or for a mean of "sentence" means 1 / length.

    >>> sample = Sample(("en", "it"), "open", "apri")
    >>> positive = EncodedSample(sample, prompt=[1, 50, 51], response=[60, 61, 2])
    >>> twin = EncodedSample(sample, prompt=[1, 50, 52, 53], response=[60, 61, 2])
    >>> batch = collate([TwinPair(positive, twin)])
    >>> batch.ids.tolist(), batch.lengths
    ([1, 50, 51, 60, 61, 2, 1, 50, 52, 53, 60, 61, 2], [6, 7])
    >>> batch.at.tolist(), batch.y.tolist()  # the token before each response token predicts it
    ([2, 3, 4, 9, 10, 11], [60, 61, 2, 60, 61, 2])"""
    positives = [pair.positive for pair in pairs]
    twins = [pair.twin for pair in pairs if pair.twin]
    ids, lengths, at, y, weight = [], [], [], [], []
    for _, prompt, response in positives + twins:
        first = len(ids) + len(prompt) - 1
        at += range(first, first + len(response))
        ids += prompt + response
        y += response
        weight += [1.0 if reduction == "token" else 1 / len(response)] * len(response)
        lengths.append(len(prompt) + len(response))
    ids, at, y, weight = map(torch.tensor, (ids, at, y, weight))
    of_positives = sum(len(encoded.response) for encoded in positives)
    samples = [encoded.sample for encoded in positives]
    return Batch(ids, lengths, at, y, weight, of_positives, samples)


def micro_batches(pairs: list[TwinPair], tokens: int, reduction="token", world=1) -> list:
    """A step's pairs dealt over `world` processes: for each its Batches, of similar lengths. A
    Batch has at most `tokens` tokens, or one pair. Every process has as many as the others, since
    FSDP counts forward passes: one that has fewer repeats a batch, with weight 0."""
    shares = []
    for rank in range(world):
        groups = pack(pairs[rank::world], tokens)
        shares.append([collate(group, reduction) for group in groups])
    first, most = shares[0][0], max(len(share) for share in shares)
    idle = first._replace(weight=torch.zeros_like(first.weight), samples=[])  # rank 0 has a pair
    return [share + [idle] * (most - len(share)) for share in shares]

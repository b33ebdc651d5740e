"""From samples to batches: prompts, encoded samples, conflicting twins, micro-batches.

    python data.py --show 3  # samples as the trainer sees them, and which tokens are supervised

What is random here follows the seed, or a generator that train.py makes of the seed and the step:
a step's samples and conflicting instructions are the same however the run got there.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from plumbing.checkpoint.chat import ChatTemplate
from plumbing.corpus.corpus import Corpus, Direction, Sample
from plumbing.base.processes import progress_bar
from plumbing.corpus.drawing import draw_all
from plumbing.base.errors import require
from plumbing.corpus.general import GENERAL, GeneralSample
from plumbing.corpus.languages import template_of, write_general
from plumbing.corpus.sampling import pack, visits
from plumbing.checkpoint.tokenizer import Tokenizer

REDUCTIONS = ["token", "sentence"]


def write_prompt(template: str, direction: Direction, source: str) -> str:
    """The prompt as text; a response follows its last character, then EOS. A template in several
    languages (ptl) speaks the target's and has its own names of the others. Raises InputError."""
    names, lines = template_of(template, direction)
    source_name, target_name = (names[code] for code in direction)
    return "\n".join(lines).format(source=source_name, target=target_name, input=source)


class Prompter(NamedTuple):
    """Prompts of one template in prompts.json, for training and for decoding alike."""

    tokenizer: Tokenizer
    template: str

    @property
    def way(self) -> Tokenizer | ChatTemplate:
        """How texts become ids: as they are, or by the checkpoint's own chat template."""
        return self.tokenizer.chat if self.template == "chat" else self.tokenizer

    def write(self, sample: Sample | GeneralSample, source: str) -> str:
        """The prompt of a sample with this source."""
        if sample.direction == GENERAL:
            return write_general(self.template, sample.instruction, source)
        return write_prompt(self.template, sample.direction, source)

    def encode(
        self, sample: Sample | GeneralSample, room: int, shots: Sequence[Sample] = ()
    ) -> tuple[list[int] | None, str]:
        """(the prompt of a sample behind demonstrations, as at most `room` ids; what it lost for
        that: "", "shots" or "source"). To fit, it loses demonstrations from the front, then the
        source's end, last the end of an instruction other than to translate. The ids are None where
        even the empty prompt is too long."""
        before = [text for shot in shots for text in (self.write(shot, shot.source), shot.target)]
        kept, all_of_them = self.tokenizer.head(sample.source, room), before
        while True:
            ids = self.way.encode_turns([*before, self.write(sample, kept)])
            if len(ids) <= room or not (before or kept or sample.instruction):
                break
            if before:
                before = before[2:]
            elif kept:
                kept = self.tokenizer.shorten(kept, len(ids) - room)
            else:
                shorter = self.tokenizer.shorten(sample.instruction, len(ids) - room)
                sample = sample._replace(instruction=shorter)
        lost = "source" if kept != sample.source else "shots" if before != all_of_them else ""
        return (ids if len(ids) <= room else None), lost

    def encode_response(self, text: str) -> list[int]:
        """What follows a prompt, with its end; tokenized apart: no token straddles the border."""
        return [*self.way.encode_response(text), self.way.end]


def conflicts(direction: Direction, instructions: dict, mode: str) -> dict[Direction, int]:
    """Those of the tuning set's instructions, {direction: number of samples}, that conflict with
    one. mode "any" is the paper's I~ != I, which may keep the target language (it->en under nl->en
    punishes a right-language output); "target" never keeps it; "keep-source" asks for another of
    the target languages from the same source, an instruction that may be in no sample: a zero-shot
    direction has then been asked for in tuning, with a wrong answer."""
    wrong = {d: n for d, n in instructions.items() if d != direction}
    if mode == "keep-source":
        targets = Counter()
        for (_, target), n in wrong.items():
            targets[target] += n
        wrong = {(direction[0], t): n for t, n in targets.items() if t != direction[0]}
    if mode != "any":
        wrong = {d: n for d, n in wrong.items() if d[1] != direction[1]}
    return wrong


def draw_conflict(direction: Direction, instructions: dict, mode: str, rng: Random) -> Direction:
    """The instruction I~ of a conflicting sample (paper, section 3), drawn at random from those
    that conflict: frequent ones more often, as from the data itself. Raises InputError."""
    wrong = conflicts(direction, instructions, mode)
    sentence = f"no instruction in the tuning data conflicts with {'-'.join(direction)}"
    require(wrong, f"{sentence} (--conflict {mode}); add more")
    return rng.choices(list(wrong), wrong.values())[0]


class EncodedSample(NamedTuple):
    """A sample as ids."""

    sample: Sample | GeneralSample
    prompt: list[int]  # BOS, instruction I, input x
    response: list[int]  # output y, EOS

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.response)


class TwinPair(NamedTuple):
    """A sample and its conflicting twin: the same x (cut if I~ is long) and y under a wrong I~."""

    positive: EncodedSample
    twin: EncodedSample | None  # None: alpha is 0, no translation, or it does not fit

    @property
    def tokens(self) -> int:
        return self.positive.tokens + (self.twin.tokens if self.twin else 0)


class TuningSet:
    """The encoded samples of a corpus, and general ones, which have no twins. pairs: how many of
    each direction are drawn, without replacement, unless read_corpus has done so; 0: all. Those are
    left out that have more than max_length tokens, prompt and response. Raises InputError."""

    def __init__(
        self, corpus: Corpus, prompter: Prompter, max_length: int, pairs=0, seed=0, general=()
    ):
        self.prompter, self.max_length = prompter, max_length
        self.samples = self._encode(draw_all(corpus, pairs, seed))
        self.general = self._encode(general) if general else []
        self.instructions = Counter(encoded.sample.direction for encoded in self.samples)

    def _encode(self, samples: Sequence[Sample | GeneralSample]) -> list[EncodedSample]:
        """Those that fit, as ids; the others, and sources that were cut, are counted aloud. A
        response is never cut: that would teach the model to stop mid-sentence."""
        encoded, notes, prompter = [], Counter(), self.prompter
        for sample in progress_bar(samples, desc="tokenizing", unit="pair", leave=False, delay=3):
            head = prompter.tokenizer.head(sample.target, self.max_length)
            response = prompter.encode_response(head)
            room = self.max_length - len(response) if head == sample.target else 0
            prompt, lost = prompter.encode(sample, room)
            if prompt:
                encoded.append(EncodedSample(sample, prompt, response))
            if lost:
                what = "sources cut" if prompt else "pairs left out: too long without their source"
                notes["-".join(sample.direction), what] += 1
        sentence = f"none of {len(samples)} samples fits --max-length {self.max_length}; raise it"
        require(encoded, sentence)
        for (direction, what), n in notes.items():
            print(f"  {direction}: {n:,} over-long {what}")
        return encoded

    def require_conflicts(self, mode: str) -> None:
        """Raise InputError where a direction of the samples has no conflicting instruction."""
        for direction in self.instructions:
            draw_conflict(direction, self.instructions, mode, Random(0))

    def of_step(self, step: int, size: int, total: int, seed: int, share: float = 0.0):
        """The samples of a step, the first is 0: `size` out of the run's `total` visits, of which
        each epoch is a new order of all samples. General ones come on top, as this share of all."""
        first, last = step * size, min((step + 1) * size, total)
        samples = [self.samples[i] for i in visits(range(first, last), len(self.samples), seed)]
        if self.general:
            first, last = (round(n * share / (1 - share)) for n in (first, last))
            more = visits(range(first, last), len(self.general), f"{seed} general")
            samples += [self.general[i] for i in more]
        return samples

    def with_twins(
        self, samples: list[EncodedSample], conflict=None, rng=None, punish_eos=True
    ) -> list[TwinPair]:
        """Each sample, shortest first, with its twin under an instruction drawn anew. conflict: the
        mode of draw_conflict; None: no twins. punish_eos: the twins' responses have their end."""
        ordered = sorted(samples, key=lambda encoded: encoded.tokens)
        if conflict is None:
            return [TwinPair(positive, None) for positive in ordered]
        return [TwinPair(x, self._twin(x, conflict, rng, punish_eos)) for x in ordered]

    def _twin(self, positive: EncodedSample, conflict: str, rng: Random, punish_eos: bool):
        """The conflicting twin of a sample; None where there is none, or nothing of it is left."""
        if positive.sample.direction == GENERAL:
            return None
        wrong = draw_conflict(positive.sample.direction, self.instructions, conflict, rng)
        room = self.max_length - len(positive.response)
        sample = positive.sample._replace(direction=wrong)
        prompt, _ = self.prompter.encode(sample, room)
        names = " and ".join("-".join(d) for d in (positive.sample.direction, wrong))
        sentence = f"--template {self.prompter.template} has one prompt for {names}"
        require(prompt != positive.prompt, f"{sentence}; expected one that names the target")
        response = positive.response if punish_eos else positive.response[:-1]
        return EncodedSample(sample, prompt, response) if prompt and response else None


class Batch(NamedTuple):
    """A micro-batch of B sequences, positives before their twins, with R response tokens."""

    ids: Tensor  # [T], the sequences end to end
    lengths: list[int]  # B ints, sum T
    at: Tensor  # [R], the positions whose logits predict y
    y: Tensor  # [R], the tokens of the responses, each with its EOS
    weight: Tensor  # [R], of their losses; 0 where a process idles
    positives: int  # so many of the R are of positives
    same: Tensor  # [R - positives], of each token of a twin: where it is among the positives'
    pair: Tensor  # [R - positives], which twin it is of
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
    of_positives, of_twins, same, pair = 0, 0, [], []
    for one in pairs:
        if one.twin:
            same += range(of_positives, of_positives + len(one.twin.response))
            pair += [of_twins] * len(one.twin.response)
            of_twins += 1
        of_positives += len(one.positive.response)
    samples = [encoded.sample for encoded in positives]
    numbers = torch.tensor(same, dtype=torch.long), torch.tensor(pair, dtype=torch.long)
    return Batch(ids, lengths, at, y, weight, of_positives, *numbers, samples)


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


if __name__ == "__main__":
    from plumbing.base.flags import run_script
    from plumbing.run.showing import ShowSettings, show

    run_script(lambda s: show(sys.modules[__name__], s), ShowSettings)

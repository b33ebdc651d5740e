"""From samples to batches: the prompt, the wrong instruction, the twin, the batch.

    python data.py --show 3  # samples as the trainer sees them, and which tokens have a loss

What is random here follows the seed, or a generator that train.py makes of the seed and the step:
a step's samples and conflicting instructions are the same however the run got there.
"""

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from plumbing.base.errors import require
from plumbing.base.flags import DeviceSettings, option, ours, refuse_given, run_script
from plumbing.base.processes import progress_bar
from plumbing.checkpoint.chat import ChatTemplate
from plumbing.checkpoint.folder import ModelFolder
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.corpus.corpus import draw, read_corpus
from plumbing.corpus.general import read_general
from plumbing.corpus.languages import GENERAL_PROMPTS, TEMPLATES, add_languages, template_of

Direction = tuple[str, str]  # codes of source and target language: ("en", "it")


class Sample(NamedTuple):
    """A source sentence x and its translation y; the instruction I is written from the direction.
    A sample of another task has no direction: its instruction is given in full, the source is its
    input and the target its response. It has no twin."""

    direction: Direction | None
    source: str
    target: str
    instruction: str = ""

    @property
    def name(self) -> str:
        """ "en-it", or "general"."""
        return "-".join(self.direction) if self.direction else "general"


def read_samples(
    paths: list[str], directions: str = "all", skip_unknown: bool = False, pairs: int = 0, seed=0
) -> list[Sample]:
    """The samples of data files, direction by direction, in an order that the seed draws. pairs: so
    many of each direction, 0 for all. directions: "en-it,it-en", "supervised" (those with English),
    "zero-shot" or "all". skip_unknown: leave out rows without a certain direction, which are an
    error otherwise. Raises InputError."""
    corpus, _ = read_corpus(paths, directions, None, skip_unknown, pairs=pairs, seed=seed)
    samples = []
    for direction, texts in corpus.items():
        # With pairs the corpus has drawn them already.
        order = range(len(texts)) if pairs else draw(len(texts), 0, seed, direction)
        samples += [Sample(direction, *texts[i]) for i in order]
    return samples


def read_general_samples(paths: list[str]) -> list[Sample]:
    """The samples of files of other instructions, of no file perhaps. Raises InputError."""
    texts = read_general(paths) if paths else []
    return [Sample(None, source, target, instruction) for instruction, source, target in texts]


# The prompt: instruction I and input x


def write_prompt(template: str, sample: Sample, source: str | None = None) -> str:
    """The prompt of a sample as text; its response follows the last character, then EOS. source:
    replaces the sample's own where it is given. template: one of prompts.json. A sample without a
    direction has one of Alpaca's two prompts, or with the template "chat" its instruction and input
    alone. Raises InputError."""
    source = sample.source if source is None else source
    if sample.direction:
        names, lines = template_of(template, sample.direction)
        source_name, target_name = (names[code] for code in sample.direction)
        return "\n".join(lines).format(source=source_name, target=target_name, input=source)
    if template == "chat":
        return "\n\n".join(filter(None, [sample.instruction, source]))
    lines = GENERAL_PROMPTS["with input" if sample.source else "without input"]
    return "\n".join(lines).format(instruction=sample.instruction, input=source)


class Prompter(NamedTuple):
    """Prompts of one template as ids, for training and for decoding alike."""

    tokenizer: Tokenizer
    template: str

    @property
    def encoder(self) -> Tokenizer | ChatTemplate:
        """What makes ids of texts: the tokenizer, or the checkpoint's own chat template."""
        return self.tokenizer.chat if self.template == "chat" else self.tokenizer

    def encode(self, sample: Sample, room: int) -> tuple[list[int] | None, bool]:
        """(the prompt of a sample as at most `room` ids, whether it was cut for that). To fit, it
        loses the end of its source, then that of an instruction of its own. The ids are None where
        even the empty prompt is too long."""
        kept, instruction = self.tokenizer.head(sample.source, room), sample.instruction
        while True:
            prompt = write_prompt(self.template, sample._replace(instruction=instruction), kept)
            ids = self.encoder.encode_turns([prompt])  # BOS first, or as the chat template has it
            if len(ids) <= room or not (kept or instruction):
                break
            if kept:
                kept = self.tokenizer.shorten(kept, len(ids) - room)
            else:
                instruction = self.tokenizer.shorten(instruction, len(ids) - room)
        cut = (kept, instruction) != (sample.source, sample.instruction)
        return (ids if len(ids) <= room else None), cut

    def encode_response(self, text: str) -> list[int]:
        """What follows a prompt, with its end; tokenized apart: no token straddles the border."""
        return [*self.encoder.encode_response(text), self.encoder.end]


# The wrong instruction: paper, section 3


def other_instructions(direction: Direction, tuned: Counter) -> dict[Direction, int]:
    """The paper's I~ != I: the instruction of every other direction in the tuning set. `tuned` and
    what is returned: {direction: number of samples}. I~ may keep the target language: it->en under
    nl->en punishes a right-language output."""
    return {d: n for d, n in tuned.items() if d != direction}


def other_targets(direction: Direction, tuned: Counter) -> dict[Direction, int]:
    """Every instruction that asks for another target language: the output is wrong under each."""
    return {d: n for d, n in tuned.items() if d[1] != direction[1]}


CONFLICTS = {"target": other_targets, "any": other_instructions}  # by their names in --conflict


def draw_conflict(direction: Direction, tuned: Counter, mode: str, rng: Random) -> Direction:
    """The direction whose instruction is the I~ of an instruction-conflicting sample, drawn at
    random from those that conflict: frequent ones more often, as from the data itself. Raises
    InputError."""
    wrong = CONFLICTS[mode](direction, tuned)
    sentence = f"no instruction in the tuning data conflicts with {'-'.join(direction)}"
    require(wrong, f"{sentence} (--conflict {mode}); add data of another direction")
    return rng.choices(list(wrong), wrong.values())[0]


# The sample and its twin as ids


class EncodedSample(NamedTuple):
    """A sample as ids."""

    sample: Sample
    prompt: list[int]  # BOS, instruction I, input x
    response: list[int]  # output y, EOS

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.response)


class TwinPair(NamedTuple):
    """A sample and its twin, the paper's instruction-conflicting sample: the same y and the same x,
    cut anew to fit, under a wrong instruction I~."""

    positive: EncodedSample
    twin: EncodedSample | None  # None: alpha is 0, no translation, or it does not fit

    @property
    def tokens(self) -> int:
        return self.positive.tokens + (self.twin.tokens if self.twin else 0)


class TuningSet:
    """The samples that a run is tuned on, those that fit max_length tokens of prompt and response.
    general: samples without a direction, which come on top. Raises InputError where none fits."""

    def __init__(
        self,
        samples: Sequence[Sample],
        prompter: Prompter,
        max_length: int,
        general: Sequence[Sample] = (),
    ):
        self.prompter, self.max_length = prompter, max_length
        self.samples, self.general = self._those_that_fit(samples), self._those_that_fit(general)
        self.tuned = Counter(sample.direction for sample in self.samples)
        self.encoded = {}  # {sample: EncodedSample}, of those that encode() was given

    def encode(self, samples: Iterable[Sample]) -> list[EncodedSample]:
        """The samples as ids, one for each distinct sample; sources that are cut to fit are counted
        aloud."""
        wanted = dict.fromkeys(samples)
        new, cuts = [sample for sample in wanted if sample not in self.encoded], Counter()
        for sample in progress_bar(new, desc="tokenizing", unit="sample", leave=False, delay=3):
            response = self.prompter.encode_response(sample.target)
            prompt, cut = self.prompter.encode(sample, self.max_length - len(response))
            self.encoded[sample] = EncodedSample(sample, prompt, response)
            cuts[sample.name] += cut
        for name, n in cuts.items():
            if n:
                print(f"  {name}: {n:,} over-long sources cut")
        return [self.encoded[sample] for sample in wanted]

    def _those_that_fit(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples without those whose response leaves no room for a prompt, which are counted
        aloud. A response is never cut: that would teach the model to stop mid-sentence."""
        fitting = [sample for sample in samples if self._fits(sample)]
        left_out = Counter(x.name for x in samples) - Counter(x.name for x in fitting)
        for name, n in left_out.items():
            print(f"  {name}: {n:,} over-long pairs left out: no room for a source")
        sentence = f"none of {len(samples)} samples fits --max-length {self.max_length}; raise it"
        require(fitting or not samples, sentence)
        return fitting

    def _fits(self, sample: Sample) -> bool:
        """Whether a sample's response leaves room for the prompt, whose source may be cut. No text
        has more tokens than bytes, so that most need not be tokenized to know it."""
        prompt = self._length_of_empty_prompt(sample.direction, bool(sample.source))
        room = self.max_length - prompt
        size = len(sample.target.encode()) + 8  # a space before it, and its end
        # SentencePiece normalizes to NFKC, which may make a text longer than these bytes.
        if size <= room and unicodedata.is_normalized("NFKC", sample.target):
            return True
        head = self.prompter.tokenizer.head(sample.target, self.max_length)
        return head == sample.target and len(self.prompter.encode_response(head)) <= room

    @functools.lru_cache  # noqa: B019 - a run needs its one or two sets to its end
    def _length_of_empty_prompt(self, direction: Direction | None, with_input: bool) -> int:
        """Tokens of a prompt whose source, and instruction of its own, are empty."""
        empty = Sample(direction, "x" if with_input else "", "")
        ids = self.prompter.encoder.encode_turns([write_prompt(self.prompter.template, empty, "")])
        return len(ids)

    def require_conflicts(self, mode: str) -> None:
        """Raise InputError where a direction of the samples has no conflicting instruction."""
        for direction in self.tuned:
            draw_conflict(direction, self.tuned, mode, Random(0))

    def of_step(
        self, step: int, size: int, visits: int, seed: int, share: float = 0.0
    ) -> list[Sample]:
        """The samples of a step; steps count from 0. A run makes so many visits to samples, `size`
        a step, and its last step may have fewer. Each epoch visits all samples in a new order.
        General samples come on top, as this share of all."""
        first, last = step * size, min((step + 1) * size, visits)
        order = visited(range(first, last), len(self.samples), seed)
        samples = [self.samples[i] for i in order]
        if self.general:
            first, last = (round(n * share / (1 - share)) for n in (first, last))
            order = visited(range(first, last), len(self.general), f"{seed} general")
            samples += [self.general[i] for i in order]
        return samples

    def prepare(self, steps: int, size: int, visits: int, seed: int, share: float) -> None:
        """Tokenize the samples that a run's steps will visit, and no others."""
        most = max(len(self.samples), math.ceil(len(self.general) * (1 - share) / share))
        steps = min(steps, math.ceil(most / size))  # all have been visited by then
        of_steps = (self.of_step(step, size, visits, seed, share) for step in range(steps))
        self.encode(sample for samples in of_steps for sample in samples)

    def with_twins(
        self, samples: Sequence[Sample], conflict: str | None = None, rng: Random | None = None
    ) -> list[TwinPair]:
        """Each sample with its twin under an instruction drawn anew, shortest first, so that
        neighbours fill micro-batches of similar lengths. conflict: the mode of draw_conflict; None:
        no twins."""
        ordered = [self.encoded.get(x) or self.encode([x])[0] for x in samples]
        ordered.sort(key=lambda encoded: encoded.tokens)
        if conflict is None:
            return [TwinPair(positive, None) for positive in ordered]
        return [TwinPair(x, self._twin(x, conflict, rng)) for x in ordered]

    def _twin(self, positive: EncodedSample, conflict: str, rng: Random) -> EncodedSample | None:
        """The conflicting twin of a sample: the same response under a wrong instruction. None where
        the sample is no translation, or where that instruction leaves no room."""
        direction = positive.sample.direction
        if direction is None:
            return None
        wrong = draw_conflict(direction, self.tuned, conflict, rng)
        sample = positive.sample._replace(direction=wrong)
        prompt, _ = self.prompter.encode(sample, self.max_length - len(positive.response))
        sentence = f"--template {self.prompter.template} has one prompt for {'-'.join(direction)}"
        expected = "expected one that names the target language"
        require(prompt != positive.prompt, f"{sentence} and {'-'.join(wrong)} alike; {expected}")
        return EncodedSample(sample, prompt, positive.response) if prompt else None


def visited(numbers: range, n: int, seed: object) -> list[int]:
    """Which of n samples are visited, for visits of these numbers. Every n visits are an epoch, in
    a new order."""
    return [permutation(n, f"{seed} epoch {i // n}")[i % n] for i in numbers]


@functools.lru_cache(4)
def permutation(n: int, seed: str) -> list[int]:
    return Random(seed).sample(range(n), n)


# The batch


class MicroBatch(NamedTuple):
    """A micro-batch of B sequences, positives before their twins, with R response tokens."""

    ids: Tensor  # [T], the sequences end to end
    lengths: list[int]  # B ints, sum T
    at: Tensor  # [R], the positions whose logits predict y
    y: Tensor  # [R], the tokens of the responses, each with its EOS
    weight: Tensor  # [R], of their losses; 0 where a process idles
    positives: int  # the first so many of the R are of positives, the others of twins
    pairs: list[TwinPair]  # what it is made of; none where a process idles


def collate(pairs: list[TwinPair], reduction: str = "token") -> MicroBatch:
    """The micro-batch of some pairs. A token's weight is 1; with the reduction "sentence" it is
    1 / the response's length, so that weighted sums are sums of the sentences' means.

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
    of_positives = sum(len(positive.response) for positive in positives)
    return MicroBatch(ids, lengths, at, y, weight, of_positives, pairs)


def micro_batches(
    pairs: list[TwinPair], tokens: int, reduction: str = "token", world: int = 1
) -> list[list[MicroBatch]]:
    """A step's pairs dealt over `world` processes: for each its micro-batches, of similar lengths.
    A micro-batch has at most `tokens` tokens, or one pair. Every process has as many as the others,
    since FSDP counts forward passes: one that has fewer repeats one, with weight 0."""
    shares = []
    for rank in range(world):
        groups = pack(pairs[rank::world], tokens)
        shares.append([collate(group, reduction) for group in groups])
    first, most = shares[0][0], max(len(share) for share in shares)
    idle = first._replace(weight=torch.zeros_like(first.weight), pairs=[])  # rank 0 has a pair
    return [share + [idle] * (most - len(share)) for share in shares]


def pack(pairs: list[TwinPair], tokens: int) -> list[list[TwinPair]]:
    """Neighbours in groups of at most `tokens` tokens, or of one pair."""
    groups, size = [], 0
    for pair in pairs:
        if not groups or size + pair.tokens > tokens:
            groups.append([])
            size = 0
        groups[-1].append(pair)
        size += pair.tokens
    return groups


# python data.py --show


@dataclass
class ShowSettings(DeviceSettings):
    show: int = option(3, "how many samples", "data", least=1, most=10**6)
    data: list = option((ours("demo/data/train.tsv"),), "translation files (docs/data.md)", "data")
    directions: str = option("supervised", "en-it,it-en, supervised, zero-shot or all", "data")
    template: str = option("alpaca", "prompt", "data", choices=TEMPLATES)
    languages: str = option("", "file of more languages, {code: name} (docs/data.md)", "data")
    conflict: str = option(
        "target", "twins' instruction, as in train.py", "data", choices=CONFLICTS
    )
    max_length: int = option(512, "most tokens of prompt and response", "data", least=1)
    seed: int = option(1, "of the samples and their twins", "data", least=0)
    model: str = option(ours("demo/base"), "folder of the tokenizer and its config.json", "model")


def show(s: ShowSettings) -> None:
    """Print some samples of a tuning set with their twins, read off their micro-batch: the tokens
    with a loss are in brackets. Raises InputError."""
    refuse_given(s, ["dtype", "device"], "nothing is computed")
    add_languages(s.languages)
    folder = ModelFolder(s.model)
    tokenizer = Tokenizer([folder.folder, folder.source], folder.config)
    samples = read_samples(s.data, s.directions, pairs=s.show, seed=s.seed)
    tuning_set = TuningSet(samples, Prompter(tokenizer, s.template), s.max_length)
    rng = Random(s.seed)
    chosen = rng.sample(tuning_set.samples, min(s.show, len(tuning_set.samples)))
    for number, pair in enumerate(tuning_set.with_twins(chosen, s.conflict, rng), start=1):
        print(f"\n=== {number}")
        print("\n".join(describe(collate([pair]), tuning_set.prompter)))


def describe(batch: MicroBatch, prompter: Prompter) -> list[str]:
    """The lines of a micro-batch of one pair: prompts as text, the tokens with a loss in
    brackets."""
    lines, start = [], 0
    ids, predicted = batch.ids.tolist(), {at + 1 for at in batch.at.tolist()}
    kinds = ["Eq. 1: made more likely", "Eq. 2: made less likely"]
    both = [encoded for encoded in batch.pairs[0] if encoded]
    for encoded, length, kind in zip(both, batch.lengths, kinds, strict=False):
        places = range(start, start + length)
        prompt = [ids[i] for i in places if i not in predicted]
        response = [ids[i] for i in places if i in predicted]
        texts = prompter.tokenizer.texts_of(response, prompter.encoder.end)
        tokens = f"{len(prompt)} tokens of prompt, {len(response)} with a loss"
        lines.append(f"--- {'→'.join(encoded.sample.direction)}: {tokens} ({kind})")
        lines.append(prompter.tokenizer.decode(prompt))
        lines.append(" ".join(f"[{text}]" for text in texts))
        start += length
    return lines


if __name__ == "__main__":
    run_script(show, ShowSettings, __doc__)

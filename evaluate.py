"""Translate a test set with checkpoints, report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py                                           # runs/stage2
    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2  # side by side in one table
    torchrun --nproc-per-node 4 evaluate.py --ckpt runs/stage2   # each GPU a share of the sentences

An output is off-target when the first of --lid, choosing among --candidates, does not name the
target language; an empty output is off-target too. The references' own OTR is printed as the floor:
langid errs on short text.
"""

import math
import os
import re
import time
from collections import ChainMap, Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from data import Direction, Prompter, Sample, TuningSet, micro_batches
from loss import mle
from model import LlamaForCausalLM, build_model, load_model, merge_lora
from plumbing.base.errors import require
from plumbing.base.files import require_folder
from plumbing.base.flags import (
    DTYPES,
    DeviceSettings,
    autocast,
    nondeterministic,
    option,
    ours,
    refuse_given,
    run_script,
)
from plumbing.base.processes import (
    RANK,
    WORLD,
    gather_from_processes,
    progress_bar,
    sum_over_processes,
)
from plumbing.checkpoint.peft import read_adapter
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import read_corpus
from plumbing.corpus.languages import TEMPLATES, add_languages
from plumbing.run.record import read_setting, supervised_directions
from plumbing.score.bleu import TOKENIZERS, UNSPACED, bleu_metric, compare_texts, script_of
from plumbing.score.bootstrap import read_seed, resampled_share
from plumbing.score.files import Results, directions_of, group_files, read_outputs
from plumbing.score.identify import CANDIDATES, LIDS, Identifier, make_identifiers, possible
from plumbing.score.report import Report

MAX_NEW_TOKENS, BATCH_SIZE = 128, 64
LOOP = re.compile(r"(?=(.{3,80}?)\1\1)")


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option((), "runs or models, side by side; none: runs/stage2", "data", nargs="*")
    hypotheses: list = option(
        (), "files or folders of outputs made elsewhere (docs/evaluation.md)", "data"
    )
    data: list = option((ours("demo/data/test.tsv"),), "translation files (docs/data.md)", "data")
    directions: str = option(
        "all", "en-it,it-en; supervised (that the first run was tuned on), zero-shot or all", "data"
    )
    rows: int = option(0, "the first so many pairs of each direction; 0: all", "data", least=0)
    skip_unknown: bool = option(False, "leave out rows without a certain direction", "data")
    languages: str = option("", "file of more languages, {code: name} (docs/data.md)", "data")

    model: str = option("", "base of the adapters; left out: the one that each names", "model")

    template: str = option("", "prompt; left out: the run's", "decoding", choices=TEMPLATES)
    beam: int = option(1, "beams of beam search; 1: greedy", "decoding", least=1, most=100)
    length_penalty: float = option(
        1.0, "a beam's score: its sum / length to the power of this", "decoding", least=-10, most=10
    )
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest output", "decoding", least=1)
    batch_size: int = option(BATCH_SIZE, "sentences decoded together", "decoding", least=1)

    lid: list = option(
        ("langid",), "identifiers, the first for the table; none: no OTR", "scores", choices=LIDS
    )
    candidates: str = option(
        "",
        f"what --lid may answer, besides the data's; else {CANDIDATES} and languages that are "
        "close to the data's",
        "scores",
    )
    tokenize: str = option(
        "", "SacreBLEU's tokenizer; left out: the target's", "scores", choices=TOKENIZERS
    )

    def describe(self) -> str:
        """How a system decodes."""
        parts = ["greedy" if self.beam == 1 else f"beam {self.beam}"]
        if self.beam > 1 and self.length_penalty != 1:
            parts.append(f"length penalty {self.length_penalty:g}")
        return ", ".join([*parts, f"template {self.template}"])


# Decoding


@torch.inference_mode()
def greedy(
    decoder: Decoder,
    prompts: list[list[int]],
    ends: set[int],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    bar: tqdm | None = None,
) -> list[list[int]]:
    """Greedy decoding of prompts (lists of ids, any lengths) up to one of the ids `ends`; returns
    the ids before it. At most batch_size are in work, each in a row of the cache, where it adds one
    token a step at its own position. When one ends, the last one takes its place. When half of the
    rows are free, the next prompts take them: a batch does not wait for its longest output. `bar`
    counts outputs."""
    decoder.reserve(prompts, min(batch_size, len(prompts)), max_new_tokens)
    outputs = [[] for _ in prompts]
    rows, waiting = [], [*range(len(prompts))]  # numbers of prompts
    while rows or waiting:
        logits = []
        if rows:
            logits.append(decoder.step([[outputs[number][-1]] for number in rows]))
        if waiting and len(rows) <= batch_size // 2:  # many at once begin with much in common
            free = batch_size - len(rows)
            new, waiting = waiting[:free], waiting[free:]
            logits.append(decoder.prefill([prompts[number] for number in new], after=len(rows)))
            rows += new
        logits = torch.cat(logits)[:, 0]  # [B, V]
        best = logits.argmax(-1, keepdim=True)  # [B, 1]
        require_finite(logits.gather(1, best))
        for row, token in reversed([*enumerate(best[:, 0].tolist())]):
            output = outputs[rows[row]]
            if token not in ends:
                output.append(token)
            if token in ends or len(output) == max_new_tokens:
                decoder.drop(row, last=len(rows) - 1)
                rows[row] = rows[-1]  # which has its token already
                del rows[-1]
                if bar is not None:
                    bar.update()
    return outputs


def require_finite(best: Tensor) -> None:
    """Raise InputError unless the best score of each sentence is a finite number: else no token
    means anything."""
    sentence = "the model's scores are not finite: its weights are damaged, or --dtype fp16"
    require(best.isfinite().all(), f"{sentence} overflows; try bf16 or fp32, or copy it again")


class Beam(NamedTuple):
    """A hypothesis. score: the sum of its tokens' log p while it goes on; that sum over
    length^length_penalty once it has ended."""

    score: float
    ids: list[int]


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: list[list[int]],
    ends: set[int],
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> list[Beam]:
    """The best of the decoder's n beams for each prompt, as in transformers' generate. At each step
    the continuations of all beams are ranked. Those among the first n that end are kept. The first
    n that do not end go on. A sentence is over when n are kept and the best beam that goes on, at
    its present length, is no better than the worst of them."""
    n = decoder.n
    decoder.reserve(prompts, len(prompts), max_new_tokens)
    logits = decoder.prefill(prompts)
    rows = list(range(len(prompts)))  # the sentence of a row
    kept = [[] for _ in prompts]
    live = [[Beam(0.0, [])] for _ in prompts]  # of each row
    for length in range(1, max_new_tokens + 1):
        scores = logits.float().log_softmax(-1)  # [B, n, V]; n is 1 at first
        so_far = [[beam.score for beam in beams] for beams in live]
        scores = (scores + scores.new_tensor(so_far)[:, :, None]).flatten(1)  # [B, n V]
        # [B, candidates]: enough of them that n go on even where every end is among the best
        best, index = scores.topk(min(n * max(2, 1 + len(ends)), scores.shape[1]))
        require_finite(best[:, 0])
        found = list(zip(best.tolist(), index.tolist(), strict=True))

        vocabulary, parents = logits.shape[-1], [[] for _ in rows]
        for row in reversed(range(len(rows))):
            beams, live[row], mine = live[row], [], kept[rows[row]]
            for rank, (score, i) in enumerate(zip(*found[row], strict=True)):
                if score == -math.inf:
                    break
                parent, token = divmod(i, vocabulary)
                ids = [*beams[parent].ids, token]
                if token in ends or length == max_new_tokens:
                    mine += [Beam(score / length**length_penalty, ids)] if rank < n else []
                elif len(live[row]) < n:
                    live[row].append(Beam(score, ids))
                    parents[row].append(parent)
            mine[:] = sorted(mine, key=lambda beam: -beam.score)[:n]
            best_left = live[row][0].score / length**length_penalty if live[row] else -math.inf
            while 0 < len(live[row]) < n:  # fewer tokens than beams: a dead beam in their place
                live[row].append(Beam(-math.inf, live[row][0].ids))
                parents[row].append(parents[row][0])
            if not live[row] or (len(mine) == n and best_left <= mine[-1].score):
                decoder.drop(row, last=len(rows) - 1)
                for of_rows in (rows, live, parents):
                    of_rows[row] = of_rows[-1]
                    del of_rows[-1]
        if not rows or length == max_new_tokens:
            break
        logits = decoder.step([[beam.ids[-1] for beam in beams] for beams in live], parents)
    return [beams[0] for beams in kept]


def encode_prompts(
    prompter: Prompter, samples: list[Sample], positions: int, max_new_tokens: int
) -> tuple[list[list[int]], list[bool]]:
    """(the prompts of the samples; which of them lost the end of their source, to leave room for so
    many new tokens in the model's positions). Raises InputError where no prompt has room."""
    encoded = [prompter.encode(sample, positions - max_new_tokens) for sample in samples]
    sentence = f"decoding {max_new_tokens} tokens leaves no room for the prompt in {positions}"
    advice = f"positions; lower --max-new-tokens (train.py's --dev has {MAX_NEW_TOKENS})"
    require(all(prompt for prompt, _ in encoded), f"{sentence} {advice}")
    return [prompt for prompt, _ in encoded], [cut for _, cut in encoded]


def translate(
    decoder: Decoder,
    prompter: Prompter,
    prompts: list[list[int]],
    bar: tqdm | None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    length_penalty: float = 1.0,
) -> tuple[list[str], list[bool]]:
    """(the hypotheses of the prompts in their order; which of them ended because of
    max_new_tokens). Those of similar length are decoded together, the longest first, with beams
    where the decoder has them; `bar` counts sentences."""
    ends = {prompter.encoder.end, prompter.tokenizer.eos, *decoder.model.config.eos_token_id}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    longest_first, outputs = [prompts[i] for i in order], []
    if decoder.n > 1:
        for start in range(0, len(order), batch_size):
            batch = longest_first[start : start + batch_size]
            beams = beam_search(decoder, batch, ends, max_new_tokens, length_penalty)
            outputs += [[token for token in beam.ids if token not in ends] for beam in beams]
            if bar is not None:
                bar.update(len(batch))
    elif prompts:
        outputs = greedy(decoder, longest_first, ends, max_new_tokens, batch_size, bar)
    hypotheses, unfinished = [""] * len(prompts), [False] * len(prompts)
    for i, ids in zip(order, outputs, strict=True):
        hypotheses[i] = prompter.tokenizer.decode(ids).strip()
        unfinished[i] = len(ids) == max_new_tokens
    return hypotheses, unfinished


# Scores


def off_target(texts: list[str], directions: list[Direction], identify: Identifier) -> list[str]:
    """What each text is instead of its target language: "" where it is right, else "empty",
    "english", "source" or "other" (also for a text without letters). The off-target ratio is the
    share of those that are not ""."""
    kinds = []
    for text, (source, target) in zip(texts, directions, strict=True):
        code = identify(text)
        # English comes last: an English source counts as "english".
        names = {"empty": "empty", source: "source", "en": "english"}
        kinds.append("" if code == target else names.get(code, "other"))
    return kinds


def percentage(flags: list) -> float:
    """100 * the share of those that are true."""
    return 100 * sum(map(bool, flags)) / len(flags)


def is_looping(text: str) -> bool:
    """Whether a text says something three times in a row, a stretch of 3 to 80 characters with a
    letter among them: greedy decoding of a small model gets caught in that."""
    repeated = LOOP.findall(f"{text} ")  # words at the end have a space behind them too
    return any(any(map(str.isalpha, stretch)) for stretch in repeated)


def score(
    hypotheses: list[str],
    samples: list[Sample],
    identifiers: list[Identifier],
    languages: set[str],
    tokenizer: str = "",
) -> dict:
    """The scores of a direction, for scores.json. tokenizer: SacreBLEU's, "" for the target's.
    - bleu, chrf, length_ratio, signatures: compare_texts() of plumbing/score/bleu.py;
    - otr to mixed_floor: language_scores() by the first identifier;
    - loops, loops_floor: % of the hypotheses, of the references, that repeat themselves;
    - identifiers, agreement, of several: otr and floor by each, % of hypotheses all call alike;
    - resampled: each score in bootstraps over sentences, for intervals (bootstrap.py there)."""
    hypotheses = [" ".join(text.split()) for text in hypotheses]  # as in the files
    references, target = [sample.target for sample in samples], samples[0].direction[1]
    scores, resampled = compare_texts(hypotheses, references, target, tokenizer)
    scores |= {
        "sentences": len(samples),
        "otr": None,
        "floor": None,
        "off_target": {},
        "mixed": None,
        "mixed_floor": None,
        "answered": {},
        "loops": percentage([is_looping(text) for text in hypotheses]),
        "loops_floor": percentage([is_looping(text) for text in references]),
    }
    if not identifiers:  # --lid none
        return scores | {"resampled": resampled}

    found, wrong = language_scores(hypotheses, samples, identifiers[0], languages)
    scores |= found
    resampled["otr"] = resampled_share(wrong)
    if len(identifiers) > 1:
        directions = [sample.direction for sample in samples]
        scores["identifiers"] = {
            identify.name: {
                "otr": percentage(off_target(hypotheses, directions, identify)),
                "floor": percentage(off_target(references, directions, identify)),
            }
            for identify in identifiers
        }
        answers = ({identify(text) for identify in identifiers} for text in hypotheses)
        scores["agreement"] = percentage([len(names) == 1 for names in answers])
    return scores | {"resampled": resampled}


def language_scores(
    hypotheses: list[str], samples: list[Sample], identify: Identifier, languages: set[str]
) -> tuple[dict, list[bool]]:
    """(scores by name, which of the hypotheses are off target). The scores:
    - otr, floor: % of the hypotheses, of the references, that are off target;
    - off_target: {a kind of off_target(): how many hypotheses};
    - answered: {a language: how many hypotheses are in it};
    - mixed, mixed_floor: % of the hypotheses, of the references, that are right as a whole but have
      a part in another of the languages. None in scripts without spaces: the parts are of words."""
    references = [sample.target for sample in samples]
    directions, target = [sample.direction for sample in samples], samples[0].direction[1]
    kinds = off_target(hypotheses, directions, identify)
    scores = {
        "otr": percentage(kinds),
        "floor": percentage(off_target(references, directions, identify)),
        "off_target": dict(Counter(filter(None, kinds))),
        "answered": dict(Counter(identify(text) for text in hypotheses)),
    }
    if script_of(references) not in UNSPACED:
        for name, texts in (("mixed", hypotheses), ("mixed_floor", references)):
            scores[name] = percentage(
                [identify.is_mixed(text, target, languages) for text in texts]
            )
    return scores, [bool(kind) for kind in kinds]


# A test set becomes a table


class System(NamedTuple):
    """One of the systems that are compared: a checkpoint, or outputs that something else made."""

    name: str
    ckpt: str
    settings: Settings
    suffix: str = ""  # of the folder of its files
    outputs: dict[Direction | None, str] | None = None  # files by direction; None is the only one

    def describe(self) -> str:
        """How it decodes, or where its outputs are from."""
        if self.outputs:
            first, *more = self.outputs.values()
            return f"outputs of {first}" + (f" and {len(more)} more" if more else "")
        return self.settings.describe()


class Outputs(NamedTuple):
    """What a process made of its share of a test set's rows."""

    texts: dict[tuple[Direction, int], str]  # by direction and row
    cut: Counter  # {direction: how many prompts lost the end of their source}
    unfinished: Counter  # {direction: how many outputs ended because of --max-new-tokens}
    tokens: int  # that passed the network


TestSet = dict[Direction, list[Sample]]


def read_test_set(
    s: Settings, systems: list[System]
) -> tuple[TestSet, dict[Direction, int], list[Direction]]:
    """({direction: its rows, also those with a blank side}, {direction: how many the files have
    without --rows}, the directions that count as supervised: what the first run was tuned on, else
    those with English). Raises InputError."""
    tuned = next(filter(None, (supervised_directions(x.ckpt) for x in systems)), [])
    texts, tuned = read_corpus(s.data, s.directions, tuned, s.skip_unknown, keep_blank=True)
    corpus = {}
    for direction, rows in texts.items():
        whole = [n for n, row in enumerate(rows, start=1) if all(row)]
        last = whole[s.rows - 1] if 0 < s.rows <= len(whole) else len(rows)
        corpus[direction] = [Sample(direction, *row) for row in rows[:last]]
    there = list(corpus)
    chosen = [directions_of(system.outputs or {}, there) for system in systems]
    corpus = {d: corpus[d] for d in there if all(d in some for some in chosen)}
    require(corpus, "--hypotheses: no direction is common to all systems; name files of one")
    return corpus, {direction: len(rows) for direction, rows in texts.items()}, tuned


def prepare_prompter(system: System, corpus: TestSet) -> Prompter:
    """The prompts of a system, as its run was tuned on them unless it says otherwise. Raises
    InputError for what would fail after hours: no whole weights, no room for a prompt."""
    s = system.settings
    model, _ = build_model(system.ckpt, s.model)
    s.template = s.template or read_setting(system.ckpt, "template", "alpaca")
    tokenizer = Tokenizer([system.ckpt, model.source], model.config)
    prompter = Prompter(tokenizer, s.template)
    empty = [Sample(direction, "", "") for direction in corpus]
    encode_prompts(prompter, empty, model.config.max_position_embeddings, s.max_new_tokens)
    return prompter


def load_for_decoding(system: System) -> LlamaForCausalLM:
    s = system.settings
    model = load_model(system.ckpt, DTYPES[s.dtype], s.device, s.model).to(DTYPES[s.dtype]).eval()
    if s.dtype == "fp32":  # 16 bits would round much of the adapter's small change away
        merge_lora(model)
    return model


def whole_rows(samples: list[Sample]) -> list[int]:
    """The numbers of the rows without a blank side."""
    return [n for n, sample in enumerate(samples) if sample.source and sample.target]


def translate_rows(
    decoder: Decoder, prompter: Prompter, samples: list[Sample], s: Settings, bar: tqdm
) -> tuple[list[str], list[bool], list[bool]]:
    """(the hypotheses of samples of any directions; which prompts lost the end of their source;
    which hypotheses ended because of --max-new-tokens)."""
    positions = decoder.model.config.max_position_embeddings
    prompts, cut = encode_prompts(prompter, samples, positions, s.max_new_tokens)
    limits = s.max_new_tokens, s.batch_size, s.length_penalty
    texts, unfinished = translate(decoder, prompter, prompts, bar, *limits)
    return texts, cut, unfinished


def decode(
    system: System, prompter: Prompter, corpus: TestSet, translate_fn: Callable = translate_rows
) -> Outputs:
    """A system's translations of this process's share of each direction's rows."""
    decoder, share = Decoder(load_for_decoding(system), system.settings.beam, record=True), []
    for turn, (direction, samples) in enumerate(corpus.items()):
        rows = sorted(whole_rows(samples), key=lambda n: len(samples[n].source))
        # Every WORLD-th by length. The first one changes, so that all shares are about equal.
        rows = rows[(RANK - turn) % WORLD :: WORLD]
        share += [(direction, n) for n in rows]
    samples = [corpus[direction][n] for direction, n in share]
    with progress_bar(total=len(share), desc=system.name, unit="sentence") as bar:
        found = translate_fn(decoder, prompter, samples, system.settings, bar)
    texts, cut, unfinished = {}, Counter(), Counter()
    for (direction, n), text, *flags in zip(share, *found, strict=True):
        texts[direction, n] = text
        cut[direction] += flags[0]
        unfinished[direction] += flags[1]
    return Outputs(texts, cut, unfinished, decoder.computed)


def evaluate(s: Settings, systems: list[System], translate_fn: Callable = translate_rows) -> None:
    """Every system on the same test set: files beside each checkpoint, and two tables of all, by
    direction and of averages. Raises InputError."""
    corpus, sizes, supervised = read_test_set(s, systems)
    identifiers = make_identifiers(s.lid, s.candidates, corpus)
    languages = {code for direction in corpus for code in direction}
    read_seed()  # a bad one is refused before the work
    for (_, target), samples in corpus.items():  # a package may be missing: said before the work
        bleu_metric(target, [sample.target for sample in samples], s.tokenize)
    given = [x.outputs and read_outputs(x.outputs, corpus, sizes) for x in systems]
    prompters = [None if x.outputs else prepare_prompter(x, corpus) for x in systems]
    places = [None if x.outputs else Results(x.ckpt, s.data[0], corpus, x.suffix) for x in systems]

    report = Report(list(corpus), supervised, asdict(s), identifiers)
    for system, ready, prompter, place in zip(systems, given, prompters, places, strict=True):
        started = time.perf_counter()
        if place is None:
            made = Outputs(ready, Counter(), Counter(), 0)
        else:
            made = decode(system, prompter, corpus, translate_fn)
        shares = gather_from_processes(made)
        if RANK > 0:
            continue
        texts = ChainMap(*(share.texts for share in shares))
        cost = {"tokens": sum(share.tokens for share in shares)}
        cost["seconds"] = round(time.perf_counter() - started, 1)
        scores, outputs = {}, {}
        for direction, samples in corpus.items():
            name, rows = "-".join(direction), whole_rows(samples)
            outputs[name] = [texts.get((direction, n), "") for n in range(len(samples))]
            hypotheses, scored = [outputs[name][n] for n in rows], [samples[n] for n in rows]
            scores[name] = score(hypotheses, scored, identifiers, languages, s.tokenize)
            scores[name]["sources_cut"] = sum(share.cut[direction] for share in shares)
            scores[name]["unfinished"] = sum(share.unfinished[direction] for share in shares)
        found = report.add(system.name, system.settings, system.describe(), scores, cost)
        if place:
            written = place.write(corpus, outputs, found)
            print(f"hypotheses, sources, references and scores.json: {written}")
    print(report)


# train.py's --dev


class Dev(NamedTuple):
    """The data of --dev, ready to be measured."""

    tuning_set: TuningSet
    samples: list[Sample]
    prompts: list[list[int]]
    identify: Identifier


def prepare_dev(
    model: LlamaForCausalLM, samples: list[Sample], prompter: Prompter, max_length: int
) -> Dev:
    """--dev, made ready before the first step: what is wrong with it is said then, a language that
    langid lacks or too few positions. Raises InputError."""
    tuning_set = TuningSet(samples, prompter, max_length)
    samples = tuning_set.samples
    tuning_set.encode(samples)
    directions = {sample.direction for sample in samples}
    unknown = sorted({code for pair in directions for code in pair} - possible("langid"))
    sentence = f"--dev: langid has no {' '.join(unknown)}, so OTR cannot be measured"
    require(not unknown, f"{sentence}; expected files of other languages, or no --dev")
    (identify,) = make_identifiers(["langid"], "", directions)
    positions = model.config.max_position_embeddings
    prompts, _ = encode_prompts(prompter, samples, positions, MAX_NEW_TOKENS)
    return Dev(tuning_set, samples, prompts, identify)


@torch.no_grad()
def measure_dev(model: LlamaForCausalLM, dev: Dev, s) -> dict[str, float]:
    """{"dev_mle": nats per response token, "dev_otr": % of greedy translations}. s: the settings
    device, dtype and micro_batch_tokens of train.py. Every process must call this."""
    model.eval()
    pairs = dev.tuning_set.with_twins(dev.samples)
    sums = torch.zeros(2, dtype=torch.float64, device=s.device)
    for batch in micro_batches(pairs, s.micro_batch_tokens, world=WORLD)[RANK]:
        with autocast(s.device, s.dtype):
            logits = model(batch.ids, batch.lengths, at=batch.at)  # [R, V]
        y, w = batch.y.to(s.device), batch.weight.to(s.device)
        sums += torch.stack([*mle(logits, y, w)]).double()
    mle_sum, mle_weight = sum_over_processes(sums).tolist()
    prompter = dev.tuning_set.prompter
    bar = progress_bar(total=len(dev.prompts), desc="dev", unit="sentence", leave=False)
    with (
        autocast(s.device, s.dtype),
        nondeterministic(),
        bar,
    ):  # by all processes: weights may be sharded
        texts, _ = translate(Decoder(model), prompter, dev.prompts, bar)
    texts = [" ".join(text.split()) for text in texts]
    kinds = off_target(texts, [sample.direction for sample in dev.samples], dev.identify)
    model.train()
    return {"dev_mle": mle_sum / mle_weight, "dev_otr": percentage(kinds)}


def main(s: Settings) -> None:
    """Evaluate the checkpoints of --ckpt, and the outputs of --hypotheses. Raises InputError."""
    add_languages(s.languages)
    usual = ours("runs/stage2")
    made = "make it with `python train.py --stage 2`, or name another with --ckpt"
    require(s.ckpt or s.hypotheses or os.path.isdir(usual), f"{usual}: no such run; {made}")
    s.ckpt = [os.path.normpath(ckpt) for ckpt in s.ckpt or [usual] * (not s.hypotheses)]
    names = [os.path.basename(ckpt) for ckpt in s.ckpt]
    for ckpt in s.ckpt:
        require_folder(ckpt, "a run of train.py or a model in Hugging Face format")
        require(s.ckpt.count(ckpt) == 1, f"--ckpt {ckpt}: it is named twice")
    refuse_what_cannot_count(s)
    labels = [x if names.count(name) > 1 else name for name, x in zip(names, s.ckpt, strict=True)]
    systems = [System(x, ckpt, replace(s)) for x, ckpt in zip(labels, s.ckpt, strict=True)]
    for name, files in group_files(s.hypotheses).items():
        require(name not in labels, f"--hypotheses {name}: a checkpoint has that name too")
        systems.append(System(name, "", replace(s), outputs=files))
    evaluate(s, systems)


def refuse_what_cannot_count(s: Settings) -> None:
    """Raise InputError for a flag that changes nothing beside the others."""
    if not s.ckpt:
        of_decoding = ("template", "beam", "length_penalty", "max_new_tokens", "batch_size")
        why = "nothing is decoded, as --hypotheses are given alone"
        refuse_given(s, ["model", "dtype", "device", *of_decoding], why)
    elif not any(read_adapter(ckpt, s.model)[0] for ckpt in s.ckpt):
        refuse_given(s, ["model"], "no --ckpt is an adapter")
    if s.beam == 1:
        refuse_given(s, ["length_penalty"], "--beam is 1, which is greedy decoding")
    if {*s.lid} <= {"none", "lid.176-open"}:
        refuse_given(s, ["candidates"], f"none of --lid {' '.join(s.lid)} chooses among them")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

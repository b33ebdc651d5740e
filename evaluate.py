"""Translate a test set with checkpoints, report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2  # side by side in one table
    python evaluate.py --systems mt=runs/stage1 ptl=runs/stage1,template=ptl  # by name
    torchrun --nproc-per-node 4 evaluate.py --ckpt runs/stage2  # each GPU a share of the sentences
    python evaluate.py --ckpt runs/stage2 --translate it-nl < in.txt > out.txt  # line by line
    python evaluate.py --ckpt runs/stage2 --explain it-nl "Apri il file"  # token by token

An output is off-target when the first of --lid, choosing among --candidates, does not name the
target language; an empty output is off-target too. The references' own OTR is printed as the floor:
langid errs on short text.
"""

import plumbing.base.interrupts  # noqa: F401, I001 - before the packages, whose import takes seconds

import math
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import loss
from data import EncodedSample, Prompter, TwinPair, collate, conflicts, micro_batches  # noqa: F401
from model import LlamaForCausalLM, build_model, load_model, merge_lora
from plumbing.score import evaluation
from plumbing.base.flags import DTYPES, run_script
from plumbing.corpus.corpus import Corpus, Direction, Sample
from plumbing.compute.decoder import Decoder
from plumbing.base.errors import require
from plumbing.score.explaining import explain
from plumbing.score.identify import Identifier
from plumbing.score.lines import translate_lines
from plumbing.score.metrics import score_translations
from plumbing.run.record import read_setting
from plumbing.score.systems import BATCH_SIZE, MAX_NEW_TOKENS, System, contrasting, what_is_asked
from plumbing.score.systems import SystemSettings as Settings
from plumbing.score.testset import TestSet
from plumbing.checkpoint.tokenizer import Tokenizer

REFERENCE_TOKENS = 1024  # in one forward pass of reference_loss


class Variants(NamedTuple):
    """The prompts that those of B sentences are contrasted with."""

    weight: float  # lambda
    prompts: list[list[int]]  # B


def contrast(logits: Tensor, variants: list[Variants]) -> Tensor:
    """Scores [B, n, V] from logits [B, C, n, V], of the right prompt and C - 1 variants:
    log(p(right) - sum_i lambda_i p(variant_i)), -inf where that is not positive; where no token is
    left, log p(right). Contrastive decoding, Sennrich et al. 2024, arXiv 2309.07098."""
    log_p = logits.float().log_softmax(-1)
    if not variants:
        return log_p[:, 0]
    p = log_p.exp()
    rest = p[:, 0] - sum(variant.weight * p[:, i] for i, variant in enumerate(variants, start=1))
    nothing = (rest <= 0).all(-1, keepdim=True)
    return torch.where(nothing, log_p[:, 0], rest.clamp(min=0).log())


@torch.inference_mode()
def greedy(
    decoder: Decoder,
    prompts: list[list[int]],
    ends: set[int],
    max_new_tokens: int,
    variants: Sequence[Variants] = (),
) -> list[list[int]]:
    """Greedy decoding of prompts up to one of the ids `ends`; returns the ids before it. Prompts (B
    lists of ids, any lengths) are prefilled end to end; then every sentence adds one token a step
    at its own position in the cache. When one ends, the last one takes its place."""
    logits = decoder.prefill(prompts, max_new_tokens, [v.prompts for v in variants])
    outputs, rows = [[] for _ in prompts], list(range(len(prompts)))  # the sentence of a row
    for left in reversed(range(max_new_tokens)):
        scores = contrast(logits, variants) if variants else logits[:, 0]  # [B, 1, V]
        new = scores[:, 0].argmax(-1).tolist()  # B ids
        for row in reversed(range(len(rows))):
            if new[row] in ends:  # the last row, which has been looked at, takes its place
                decoder.drop(row, last=len(rows) - 1)
                rows[row], new[row] = rows[-1], new[-1]
                del rows[-1], new[-1]
        for number, token in zip(rows, new, strict=True):
            outputs[number].append(token)
        if not rows or not left:
            break
        logits = decoder.step([[token] for token in new])  # [B, C, 1, V]
    return outputs


class Beam(NamedTuple):
    """A hypothesis: the sum of its tokens' scores, then over length^length_penalty once it ends."""

    score: float
    ids: list[int]


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: list[list[int]],
    ends: set[int],
    max_new_tokens: int,
    length_penalty: float = 1.0,
    variants: Sequence[Variants] = (),
) -> list[Beam]:
    """The best of the decoder's n beams for each prompt, by the rules of transformers' generate:
    of the best continuations of all beams those that end among the first n are kept, the first n
    that do not end go on; a sentence is over when n are kept and the best beam that goes on, at its
    present length, is no better than the worst of them."""
    n = decoder.n
    logits = decoder.prefill(prompts, max_new_tokens, [v.prompts for v in variants])
    rows = list(range(len(prompts)))  # the sentence of a row
    kept = [[] for _ in prompts]
    live = [[Beam(0.0, [])] for _ in prompts]  # of each row
    for length in range(1, max_new_tokens + 1):
        scores = contrast(logits, variants)  # [B, n, V]; n is 1 at first
        so_far = [[beam.score for beam in beams] for beams in live]
        scores = (scores + scores.new_tensor(so_far)[:, :, None]).flatten(1)  # [B, n V]
        best, index = scores.topk(min(n * max(2, 1 + len(ends)), scores.shape[1]))
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
            while 0 < len(live[row]) < n:  # fewer tokens than beams: one that is never chosen
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
    prompter: Prompter,
    samples: list[Sample],
    positions: int,
    max_new_tokens: int,
    shots: Sequence[Sample] = (),
) -> tuple[list[list[int]], Counter]:
    """(the prompts of the samples, each behind the demonstrations `shots`; how many of them lost
    "shots", or the end of their "source", to leave room for as many new tokens in the model's
    positions). Raises InputError where there is no room for a prompt."""
    room = positions - max_new_tokens
    encoded = [prompter.encode(sample, room, shots) for sample in samples]
    sentence = f"decoding {max_new_tokens} tokens leaves no room for the prompt in {positions}"
    advice = "positions; evaluate.py can lower --max-new-tokens or --shots, train.py not"
    require(all(prompt for prompt, _ in encoded), f"{sentence} {advice}")
    return [prompt for prompt, _ in encoded], Counter(lost for _, lost in encoded if lost)


def translate(
    decoder: Decoder,
    prompter: Prompter,
    prompts: list[list[int]],
    bar: tqdm | None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    length_penalty: float = 1.0,
    variants: Sequence[Variants] = (),
) -> list[str]:
    """The hypotheses of the prompts in their order, decoded in batches of similar length, with
    beams where the decoder has them; `bar` counts sentences."""
    ends = {prompter.way.end, prompter.tokenizer.eos, *decoder.model.config.eos_token_id}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    hypotheses = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = decoder, [prompts[i] for i in chosen], ends, max_new_tokens
        rest = [Variants(v.weight, [v.prompts[i] for i in chosen]) for v in variants]
        if decoder.n > 1:
            beams = beam_search(*batch, length_penalty, rest)
            outputs = [[token for token in beam.ids if token not in ends] for beam in beams]
        else:
            outputs = greedy(*batch, rest)
        for i, ids in zip(chosen, outputs, strict=True):
            hypotheses[i] = prompter.tokenizer.decode(ids).strip()
        if bar is not None:
            bar.update(len(chosen))
    return hypotheses


def off_target(texts: list[str], directions: list[Direction], identify: Identifier) -> list[str]:
    """What each text is instead of its target language: "" where it is right, else "empty",
    "english", "source" or "other". The off-target ratio is the share of those that are not ""."""
    kinds = []
    for text, (source, target) in zip(texts, directions, strict=True):
        code = identify(text)
        names = {"empty": "empty", source: "source", "en": "english"}  # an English source too
        kinds.append("" if code == target else names.get(code, "other"))
    return kinds


def score(hypotheses: list[str], samples: list[Sample], test: TestSet) -> dict:
    """The scores of a direction: BLEU, chrF++, OTR by each identifier, and what they rest on."""
    hypotheses = [" ".join(text.split()) for text in hypotheses]  # as in the files
    directions = [sample.direction for sample in samples]
    firsts = [sample.target for sample in samples]
    verdicts = {
        identify.name: [off_target(texts, directions, identify) for texts in (hypotheses, firsts)]
        for identify in test.identifiers
    }
    return score_translations(hypotheses, samples, verdicts, test.identifiers, test.languages)


def encode_direction(
    prompter: Prompter,
    samples: list[Sample],
    sources: list[str],
    shots: Corpus,
    positions: int,
    s: Settings,
) -> tuple[list[list[int]], list[Variants], Counter]:
    """(prompts of some samples of a direction, their Variants, how many prompts lost "shots" or
    "source"). sources: all of the direction. positions: of the model. Raises InputError."""
    before = shots[samples[0].direction][: s.shots] if s.shots else []
    prompts, losses = encode_prompts(prompter, samples, positions, s.max_new_tokens, before)
    variants = [
        Variants(weight, encode_prompts(prompter, others, positions, s.max_new_tokens, before)[0])
        for weight, others in contrasting(samples, sources, s)
    ]
    return prompts, variants, losses


def make_prompter(system: System) -> tuple[Prompter, int]:
    """(the prompts of a system, as its checkpoint was tuned on them unless it says otherwise; the
    positions of its model). Raises InputError, also where its weights are not whole."""
    s = system.settings
    model = build_model(system.ckpt, s.model)
    s.template = s.template or read_setting(system.ckpt, "template", "alpaca")
    tokenizer = Tokenizer([system.ckpt, model.source], model.config)
    return Prompter(tokenizer, s.template), model.config.max_position_embeddings


def load_decoder(system: System) -> Decoder:
    """The model of a system, ready to decode as it wants to."""
    s = system.settings
    model = load_model(system.ckpt, DTYPES[s.dtype], s.device, s.model).to(DTYPES[s.dtype]).eval()
    if s.dtype == "fp32":  # 16 bits would round much of the adapter's small change away
        merge_lora(model)
    return Decoder(model, s.device.startswith("cuda"), s.beam)


@torch.inference_mode()
def response_terms(
    model: LlamaForCausalLM, prompts: list[list[int]], response: list[int]
) -> tuple[Tensor, Tensor]:
    """(-log p, -log(1 - p)), both [C, R], of each of R tokens of a response under each of C
    prompts: its terms in Eq. 1 under the right instruction, in Eq. 2 under a wrong one."""
    pairs = [TwinPair(EncodedSample(None, prompt, response), None) for prompt in prompts]
    batch = collate(pairs)
    logits = model(batch.ids, batch.lengths, at=batch.at)
    y = batch.y.to(logits.device)
    shape = len(prompts), len(response)
    return -loss.log_p(logits, y).view(shape), -loss.log_not_p(logits, y).view(shape)


@torch.inference_mode()
def reference_loss(
    model: LlamaForCausalLM, prompter: Prompter, prompts: list[list[int]], samples: list
) -> tuple[float, int]:
    """(nats, tokens) of the samples' responses behind these prompts, as Eq. 1 sums them; of one
    that is longer than the model's positions, of its beginning."""
    pairs = []
    for prompt, sample in zip(prompts, samples, strict=True):
        if sample.target:
            room = model.config.max_position_embeddings - len(prompt)
            response = prompter.encode_response(prompter.tokenizer.head(sample.target, room))
            pairs.append(TwinPair(EncodedSample(sample, prompt, response[:room]), None))
    nats, tokens = 0.0, 0
    for batch in micro_batches(pairs, REFERENCE_TOKENS)[0] if pairs else ():
        logits = model(batch.ids, batch.lengths, at=batch.at)
        nats += loss.mle(logits, batch.y.to(logits.device))[0].item()
        tokens += len(batch.y)
    return nats, tokens


def evaluate(s: Settings) -> None:
    """Every system on the same test set: a report beside each checkpoint, one table of all; or
    standard input, line by line; or one sentence, token by token."""
    tasks = {"--translate": translate_lines, "--explain": explain}
    tasks.get(what_is_asked(s), evaluation.evaluate)(sys.modules[__name__], s)


if __name__ == "__main__":
    run_script(evaluate, Settings)

"""Translate a test set with checkpoints, report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2  # side by side in one table
    torchrun --nproc-per-node 4 evaluate.py --ckpt runs/stage2  # each GPU a share of the directions

An output is off-target when langid, choosing among --candidates, does not name the target language;
an empty output is off-target too. The references' own OTR is printed as the floor: langid errs on
short text.
"""

import os
import time
from collections import Counter
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from data import TEMPLATES, Prompter
from model import KVCache, LlamaForCausalLM, load_model
from plumbing.cli import DTYPES, DeviceSettings, option, run_script
from plumbing.corpora import Corpus, Direction, Sample, read_corpus
from plumbing.distributed import RANK, WORLD, gather_from_processes, progress_bar
from plumbing.errors import require
from plumbing.files import write_lines
from plumbing.metrics import Identify, bleu_metric, checked_identifier
from plumbing.report import Comparison
from plumbing.runs import read_setting, tuned_directions
from plumbing.tokenizer import Tokenizer

CANDIDATES = "cs,de,en,es,fr,hu,it,ja,nl,pl,pt,ro,ru,uk,zh"
MAX_NEW_TOKENS, BATCH_SIZE = 128, 64


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option(None, "run or model folders, compared side by side", required=True)
    model: str = option("", "base model of the adapters; left out: the one that each adapter names")
    data: list = option(("demo/data/test.tsv",), "files: TSV, JSON, paired files (docs/data.md)")
    directions: str = option("all", "en-it,it-en, supervised (the first run's), zero-shot, all")
    rows: int = option(0, "use the first so many pairs of each direction; 0: all", least=0)
    template: str = option("", "prompt; left out: that of the run, or alpaca", choices=TEMPLATES)
    candidates: str = option(CANDIDATES, "the languages langid may answer")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest output", least=1)
    batch_size: int = option(BATCH_SIZE, "sentences decoded together", least=1)


@torch.inference_mode()
def greedy(model: LlamaForCausalLM, prompts: list[list[int]], ends: set[int], max_new_tokens: int):
    """Greedy decoding of prompts up to one of the ids `ends`; returns the ids before it. Prompts (B
    lists of ids, any lengths) are prefilled end to end; then every row adds one token a step at its
    own position in the cache, and a row that ends is dropped from the batch."""
    weight, lengths = model.lm_head.weight, [len(prompt) for prompt in prompts]
    slots = max(lengths) + max_new_tokens
    cache = KVCache(model.config, len(prompts), slots, weight.device, weight.dtype)
    ids = torch.tensor([i for prompt in prompts for i in prompt], device=weight.device)  # [T]
    last = torch.tensor(lengths, device=weight.device).cumsum(0) - 1  # [B]
    logits = model(ids, lengths, cache, at=last)  # [B, V]
    outputs, rows = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(max_new_tokens):
        new = logits.argmax(-1)  # [B]
        going = [b for b, token in enumerate(new.tolist()) if token not in ends]
        rows = [rows[b] for b in going]
        if not rows:
            break
        if len(going) < len(new):
            cache.keep(torch.tensor(going, device=weight.device))
            new = new[going]
        for row, token in zip(rows, new.tolist(), strict=True):
            outputs[row].append(token)
        logits = model(new, [1] * len(rows), cache)  # [B, V]
    return outputs


def translate(
    model: LlamaForCausalLM,
    prompter: Prompter,
    samples: list[Sample],
    max_new_tokens: int,
    batch_size: int,
    bar: tqdm,
) -> tuple[list[str], int]:
    """(hypotheses of the samples in their order, how many sources were cut to fit). Decoded
    greedily, in batches of similar length; `bar` counts sentences. Raises InputError."""
    tokenizer = prompter.tokenizer
    positions = model.config.max_position_embeddings
    prompts, cuts = [], 0
    for direction, source, _ in samples:
        prompt, cut = prompter.encode(direction, source, positions - max_new_tokens)
        sentence = f"leaves no room for the prompt in {positions} positions; lower it"
        require(prompt, f"--max-new-tokens {max_new_tokens} {sentence}")
        prompts.append(prompt)
        cuts += int(cut)
    ends = {tokenizer.eos, *model.config.eos_token_id}
    order = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
    hypotheses = [""] * len(samples)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        outputs = greedy(model, [prompts[i] for i in chosen], ends, max_new_tokens)
        for i, ids in zip(chosen, outputs, strict=True):
            hypotheses[i] = " ".join(tokenizer.decode(ids).split())
        bar.update(len(chosen))
    return hypotheses, cuts


def off_target(texts: list[str], directions: list[Direction], identify: Identify):
    """(OTR in %, how many of the texts are empty, or in english, source or other languages)."""
    kinds = Counter()
    for text, (source, target) in zip(texts, directions, strict=True):
        code = identify(text)
        if code != target:
            names = {"empty": "empty", source: "source", "en": "english"}  # an English source too
            kinds[names.get(code, "other")] += 1
    return 100 * kinds.total() / len(texts), dict(kinds)


def score(hypotheses: list[str], samples: list[Sample], identify: Identify) -> dict:
    """BLEU with its signature, OTR, the references' OTR and what is off-target, of a direction."""
    directions = [sample.direction for sample in samples]
    references = [sample.target for sample in samples]
    otr, kinds = off_target(hypotheses, directions, identify)
    floor, _ = off_target(references, directions, identify)
    metric = bleu_metric(directions[0][1])
    return {
        "bleu": metric.corpus_score(hypotheses, [references]).score,
        "otr": otr,
        "floor": floor,
        "off_target": kinds,
        "sentences": len(samples),
        "signature": str(metric.get_signature()),
    }


def evaluate_checkpoint(ckpt: str, corpus: Corpus, identify: Identify, out: str, s: Settings):
    """{direction: its scores}, a share of them from each process; hypotheses are left in `out`."""
    model = load_model(ckpt, DTYPES[s.dtype], s.device, s.model).to(DTYPES[s.dtype]).eval()
    template = s.template or read_setting(ckpt, "template", "alpaca")
    prompter = Prompter(Tokenizer([ckpt, model.source], model.config), template)
    limits, results = (s.max_new_tokens, s.batch_size), {}
    mine = sorted(corpus, key=lambda direction: -len(corpus[direction]))[RANK::WORLD]
    total = sum(len(corpus[direction]) for direction in mine)
    os.makedirs(out, exist_ok=True)
    with progress_bar(total=total, desc=ckpt, unit="sentence") as bar:
        for direction in mine:
            name, samples = "-".join(direction), corpus[direction]
            hypotheses, cuts = translate(model, prompter, samples, *limits, bar)
            results[name] = score(hypotheses, samples, identify) | {"sources_cut": cuts}
            write_lines(os.path.join(out, f"{name}.txt"), hypotheses)
    for share in gather_from_processes(results):
        results |= share
    return {name: results[name] for name in map("-".join, corpus)}


def evaluate(s: Settings) -> None:
    """Every checkpoint on the same test set: a report beside each, and one table of all."""
    corpus, tuned = read_corpus(s.data, s.directions, tuned_directions(s.ckpt))
    corpus = {direction: samples[: s.rows or None] for direction, samples in corpus.items()}
    identify = checked_identifier(s.candidates, corpus)
    split = os.path.splitext(os.path.basename(s.data[0]))[0]
    comparison = Comparison(list(corpus), tuned, asdict(s))
    for ckpt in s.ckpt:
        started, out = time.time(), os.path.join(ckpt, f"eval-{split}")
        results = evaluate_checkpoint(ckpt, corpus, identify, out, s)
        comparison.add(ckpt, results, time.time() - started, out)
    print(comparison)
    print(f"Hypotheses and scores.json: eval-{split}/ in each checkpoint's folder.")


if __name__ == "__main__":
    run_script(evaluate, Settings)

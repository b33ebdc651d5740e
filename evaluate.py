"""Translate a test set with one or more checkpoints and report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2 # side by side in one table
    torchrun --nproc-per-node 4 evaluate.py --ckpt runs/stage2  # a share of the directions on each GPU

An output is off-target when langid, choosing among --candidates, does not name the target language; an empty output is
off-target too. The references' own OTR is printed as the floor: langid errs on short text."""

import os
import pathlib
import time
from collections import Counter
from dataclasses import asdict, dataclass

import langid.langid
import sacrebleu
import torch
import torch.distributed as dist

from data import Tokenizer
from model import KVCache, load_model
from plumbing.cli import DTYPES, option, run
from plumbing.corpora import TEMPLATES, read_corpus
from plumbing.distributed import RANK, WORLD, progress
from plumbing.errors import InputError, require
from plumbing.files import write_json
from plumbing.report import average, table
from plumbing.runs import run_setting

BLEU_TOKENIZER = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
}  # every other target: 13a, as in WMT


@dataclass
class Settings:
    ckpt: list = option(
        None, "run or model folders, compared side by side", type=str, nargs="+", required=True
    )
    model: str = option("", "base model of the adapters; left out: the one that each adapter names")
    data: list = option(
        ("demo/data/test.tsv",),
        "files: TSV, JSON or paired plain files (README)",
        type=str,
        nargs="+",
    )
    directions: str = option(
        "all", "en-it,it-en or supervised (those of the first run's tuning), zero-shot, all"
    )
    rows: int = option(0, "use the first so many pairs of each direction; 0: all")
    template: str = option(
        "", "prompt; left out: that of the run's tuning, or alpaca", choices=TEMPLATES
    )
    candidates: str = option(
        "cs,de,en,es,fr,hu,it,ja,nl,pl,pt,ro,ru,uk,zh", "the languages langid may answer"
    )
    max_new_tokens: int = option(128, "longest output")
    batch_size: int = option(64, "sentences decoded together")
    dtype: str = option(
        "auto", "auto: bf16 on CUDA, fp32 on CPU", choices=["auto", "fp32", "bf16", "fp16"]
    )
    device: str = option("auto", "auto: cuda where there is one")


@torch.inference_mode()
def greedy(model, prompts, ends, max_new_tokens):
    """Greedy decoding of prompts (lists of ids, any lengths) up to one of the ids `ends`; returns the ids before it.
    Prompts are prefilled end to end; then every row adds one token a step at its own position in the cache, and a row
    that ends is dropped from the batch."""
    device, lengths = model.lm_head.weight.device, [len(p) for p in prompts]
    cache = KVCache(
        model.config,
        len(prompts),
        max(lengths) + max_new_tokens,
        device,
        model.lm_head.weight.dtype,
    )
    ids = torch.tensor([i for p in prompts for i in p], device=device)  # [T]
    logits = model(
        ids, lengths, cache, at=torch.tensor(lengths, device=device).cumsum(0) - 1
    )  # [B, V]
    outputs, rows = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(max_new_tokens):
        new = logits.argmax(-1)  # [B]
        going = [b for b, token in enumerate(new.tolist()) if token not in ends]
        rows = [rows[b] for b in going]
        for row, token in zip(rows, new[going].tolist()):
            outputs[row].append(token)
        if not rows:
            break
        if len(going) < len(new):
            cache.keep(torch.tensor(going, device=device))
            new = new[going]
        logits = model(new, [1] * len(rows), cache)  # [B, V]
    return outputs


def translate(model, tokenizer, samples, s, bar):
    """(hypotheses of the samples in their order, how many sources were cut); decoded in batches of similar length."""
    room, new, ends = (
        model.config.max_position_embeddings,
        s.max_new_tokens,
        {tokenizer.eos, *model.config.eos_token_id},
    )
    prompts, cut = zip(*(tokenizer.prompt(x.direction, x.source, room - new) for x in samples))
    require(
        None not in prompts,
        f"--max-new-tokens {new} leaves no room for the prompt in {room} positions; lower it",
    )
    order = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
    hypotheses = [""] * len(samples)
    for start in range(0, len(order), s.batch_size):
        chosen = order[start : start + s.batch_size]
        for i, ids in zip(chosen, greedy(model, [prompts[i] for i in chosen], ends, new)):
            hypotheses[i] = " ".join(tokenizer.decode(ids).split())
        bar.update(len(chosen))
    return hypotheses, sum(cut)


def identifier(candidates):
    """A function text -> language code, or "empty": langid 1.1.6 choosing among `candidates`. Raises InputError."""
    model = langid.langid.LanguageIdentifier.from_modelstring(langid.langid.model, norm_probs=True)
    unknown = " ".join(sorted(set(candidates) - set(model.nb_classes)))
    require(not unknown, f"--candidates: langid has no {unknown}, but {' '.join(model.nb_classes)}")
    model.set_languages(candidates)
    return lambda text: model.classify(text)[0] if text.strip() else "empty"


def off_target(texts, direction, identify):
    """(OTR in %, what the off-target texts are: {"empty" | "english" | "source" | "other": count})."""
    source, target = direction
    kinds = {
        "empty": "empty",
        source: "source",
        "en": "english",
    }  # an English source counts as English
    found = Counter(kinds.get(code, "other") for code in map(identify, texts) if code != target)
    return 100 * sum(found.values()) / len(texts), dict(found)


def bleu_metric(target):
    """SacreBLEU with the tokenizer that suits the target language. Raises InputError where it needs a package."""
    try:
        return sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(target, "13a"))
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"SacreBLEU needs a package for target {target!r}: {' '.join(str(error).split())}"
        ) from None


def score(hypotheses, samples, direction, identify):
    """BLEU with its signature, OTR, the references' OTR and what is off-target, of one direction."""
    metric, references = bleu_metric(direction[1]), [x.target for x in samples]
    (otr, kinds), (floor, _) = (
        off_target(texts, direction, identify) for texts in (hypotheses, references)
    )
    return {
        "bleu": metric.corpus_score(hypotheses, [references]).score,
        "otr": otr,
        "floor": floor,
        "off_target": kinds,
        "sentences": len(samples),
        "signature": str(metric.get_signature()),
    }


def evaluate(s):
    for ckpt in s.ckpt:
        require(
            os.path.isdir(ckpt),
            f"{ckpt}: no such folder; expected a run of train.py or a model in Hugging Face format",
        )
    tuned = next(filter(None, (run_setting(ckpt, "supervised", []) for ckpt in s.ckpt)), [])
    samples, tuned = read_corpus(
        s.data, s.directions, [tuple(str(pair).split("-")) for pair in tuned]
    )
    samples = {pair: found[: s.rows or None] for pair, found in samples.items()}
    parts = {
        "supervised": [p for p in samples if p in tuned],
        "zero-shot": [p for p in samples if p not in tuned],
    }
    languages, candidates = {code for pair in samples for code in pair}, s.candidates.split(",")
    require(
        languages < {*candidates},
        f"--candidates {s.candidates}: expected {' '.join(languages)} and at least one more",
    )
    identify = identifier(candidates)
    for _, target in samples:
        bleu_metric(target)  # fails before hours of decoding, not after
    split, reports = os.path.splitext(os.path.basename(s.data[0]))[0], {}
    mine = sorted(samples, key=lambda pair: -len(samples[pair]))[
        RANK::WORLD
    ]  # the directions of this process
    for ckpt in s.ckpt:
        started, results = time.time(), {}
        model = load_model(ckpt, DTYPES[s.dtype], s.device, s.model).to(DTYPES[s.dtype]).eval()
        tokenizer = Tokenizer(
            [ckpt, model.source],
            model.config,
            s.template or run_setting(ckpt, "template", "alpaca"),
        )
        out = os.path.join(ckpt, f"eval-{split}")
        os.makedirs(out, exist_ok=True)
        with progress(
            total=sum(len(samples[pair]) for pair in mine), desc=ckpt, unit="sentence"
        ) as bar:
            for pair in mine:
                hypotheses, cut = translate(model, tokenizer, samples[pair], s, bar)
                results["-".join(pair)] = score(hypotheses, samples[pair], pair, identify) | {
                    "sources_cut": cut
                }
                pathlib.Path(out, "-".join(pair) + ".txt").write_text(
                    "".join(h + "\n" for h in hypotheses), encoding="utf-8"
                )
        shares = [results] * WORLD
        if WORLD > 1:
            dist.all_gather_object(shares, results)
        results = {
            name: share[name]
            for name in map("-".join, samples)
            for share in shares
            if name in share
        }
        for name in [name for name in results if results[name]["sources_cut"]]:
            print(f"{ckpt}, {name}: {results[name]['sources_cut']:,} over-long sources cut")
        name = os.path.basename(os.path.normpath(ckpt))
        reports[name if name not in reports else ckpt] = report = {
            "directions": results,
            "average": {
                title: average([results["-".join(p)] for p in pairs])
                for title, pairs in parts.items()
                if pairs
            },
            "settings": asdict(s),
            "seconds": round(time.time() - started, 1),
            "versions": {
                "sacrebleu": sacrebleu.__version__,
                "langid": "1.1.6",
                "torch": torch.__version__,
            },
        }
        if RANK == 0:
            write_json(os.path.join(out, "scores.json"), report)
    signatures = " and ".join(sorted({r["signature"] for r in results.values()}))
    print(
        f"{table(reports, parts)}\n\n{' '.join(s.data)}, greedy. SacreBLEU {signatures}. OTR in %, langid among "
        f"{s.candidates}.\nHypotheses and scores.json: eval-{split}/ in each checkpoint's folder."
    )


if __name__ == "__main__":
    run(evaluate, Settings)

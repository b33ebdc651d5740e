"""Translate a test set with one or more checkpoints and report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py --ckpt runs/stage2                       # one run
    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2 # side by side in one table

An output is off-target when langid, choosing among --candidates, does not name the target language; an
empty output is off-target too. The references' own OTR is printed as the floor: langid errs on short text.
"""
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import langid.langid
import sacrebleu
import torch
from tqdm import tqdm

from data import DTYPES, Tokenizer, check_languages, directions, option, parallel, pick_device, read_tsv, run
from model import InputError, KVCache, load_model, write_json

BLEU_TOKENIZER = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # every other target: 13a, as in WMT


@dataclass
class Settings:
    ckpt: list = field(metadata={"help": "run folders or Hugging Face folders, compared side by side", "nargs": "+", "type": str})
    data: str = option("demo/data/test.tsv", "multi-parallel TSV: a line of language codes, then sentences")
    languages: str = option("en,it,nl,ro", "columns whose pairs are evaluated: with English supervised, the rest zero-shot")
    rows: int = option(0, "use the first so many rows; 0: all")
    candidates: str = option("cs,de,en,es,fr,hu,it,ja,nl,pl,pt,ro,ru,uk,zh", "the languages langid may answer")
    max_new_tokens: int = option(128, "longest output")
    batch_size: int = option(64, "sentences decoded together")
    dtype: str = option("auto", "auto: bf16 on CUDA, fp32 on CPU", choices=["auto", "fp32", "bf16", "fp16"])
    device: str = option("auto", "auto: cuda where there is one")


@torch.inference_mode()
def greedy(model, prompts, eos, max_new_tokens):
    """Greedy decoding of a batch of prompts (lists of ids, any lengths); returns the new ids without EOS.

    Prompts are prefilled end to end; then every row adds one token a step at its own position in the cache,
    and a row that ends is dropped from the batch.
    """
    device = model.lm_head.weight.device
    lengths = [len(p) for p in prompts]
    cache = KVCache(model.config, len(prompts), max(lengths) + max_new_tokens, device, model.lm_head.weight.dtype)
    ids = torch.tensor([i for p in prompts for i in p], device=device)  # [T]
    logits = model(ids, lengths, cache, at=torch.tensor(lengths, device=device).cumsum(0) - 1)  # [B, V]
    outputs, rows = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(max_new_tokens):
        new = logits.argmax(-1)  # [B]
        going = [b for b, token in enumerate(new.tolist()) if token != eos]
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
    """Hypotheses of the samples, in their order; decoded in batches of similar length."""
    room = model.config.max_position_embeddings - s.max_new_tokens
    prompts = [tokenizer.prompt(x.direction, x.source, room) for x in samples]
    if None in prompts:
        raise InputError(f"--max-new-tokens {s.max_new_tokens} leaves no room for the prompt in the model's "
                         f"{model.config.max_position_embeddings} positions; lower it")
    order = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
    hypotheses = [""] * len(samples)
    for start in range(0, len(order), s.batch_size):
        chosen = order[start:start + s.batch_size]
        for i, ids in zip(chosen, greedy(model, [prompts[i] for i in chosen], tokenizer.eos, s.max_new_tokens)):
            hypotheses[i] = " ".join(tokenizer.decode(ids).split())
        bar.update(len(chosen))
    return hypotheses


class Identifier:
    """langid 1.1.6 restricted to a candidate set, scores normalised to probabilities; empty text has no language."""

    def __init__(self, candidates):
        self.langid = langid.langid.LanguageIdentifier.from_modelstring(langid.langid.model, norm_probs=True)
        unknown = set(candidates) - set(self.langid.nb_classes)
        if unknown:
            raise InputError(f"--candidates: langid knows no {' '.join(sorted(unknown))}; "
                             f"it knows {' '.join(self.langid.nb_classes)}")
        self.langid.set_languages(candidates)

    def __call__(self, text):
        return self.langid.classify(text)[0] if text.strip() else "empty"


def off_target(texts, direction, identify):
    """(OTR in %, what the off-target texts are: {"empty" | "english" | "source" | "other": count})."""
    source, target = direction
    kinds = {"empty": "empty", source: "source", "en": "english"}  # an English source counts as English
    found = Counter(kinds.get(code, "other") for code in map(identify, texts) if code != target)
    return 100 * sum(found.values()) / len(texts), dict(found)


def score(hypotheses, samples, direction, identify):
    """BLEU with its signature, OTR, the references' OTR and what is off-target, of one direction."""
    metric = sacrebleu.BLEU(tokenize=BLEU_TOKENIZER.get(direction[1], "13a"))
    references = [x.target for x in samples]
    bleu = metric.corpus_score(hypotheses, [references])
    otr, kinds = off_target(hypotheses, direction, identify)
    return {"bleu": bleu.score, "otr": otr, "floor": off_target(references, direction, identify)[0], "off_target": kinds,
            "sentences": len(samples), "signature": str(metric.get_signature())}


def average(results, pairs):
    """Means over directions of BLEU, OTR and floor, and the off-target outputs of all of them together."""
    rows = [results["-".join(p)] for p in pairs]
    kinds = sum((Counter(r["off_target"]) for r in rows), Counter())
    return {k: sum(r[k] for r in rows) / len(rows) for k in ("bleu", "otr", "floor")} | {
        "off_target": dict(kinds), "sentences": sum(r["sentences"] for r in rows)}


def table(reports, supervised, zero_shot):
    """The Markdown table of several checkpoints side by side, then what the zero-shot off-target outputs are."""
    names = list(reports)
    first = reports[names[0]]
    head = ["direction", "floor"] + [f"{n} {m}" for n in names for m in ("BLEU", "OTR")]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]

    def line(label, part):
        lines.append([label, f"{part(first)['floor']:.1f}"]
                     + [f"{part(reports[n])[m]:.1f}" for n in names for m in ("bleu", "otr")])
    for title, key, pairs in (("supervised", "average_supervised", supervised), ("zero-shot", "average_zero_shot", zero_shot)):
        for pair in pairs:
            line("→".join(pair), lambda r, pair=pair: r["directions"]["-".join(pair)])
        if pairs:
            line(f"**{title}, average**", lambda r, key=key: r[key])
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    text = "\n".join("| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
                     for row in lines)
    if zero_shot:
        text += "\n\nOff-target outputs in the zero-shot directions, % of all:"
        for n in names:
            a = reports[n]["average_zero_shot"]
            text += f"\n- {n}: " + ", ".join(f"{k} {100 * a['off_target'].get(k, 0) / a['sentences']:.1f}"
                                             for k in ("english", "source", "other", "empty"))
    return text


def evaluate(s):
    pick_device(s)
    languages, candidates = s.languages.split(","), s.candidates.split(",")
    supervised, zero_shot = directions(check_languages(languages, "--languages"))
    if not set(languages) < set(candidates):
        raise InputError(f"--candidates {s.candidates}: expected every evaluated language and at least one more")
    identify = Identifier(candidates)
    rows = read_tsv(s.data, languages)[:s.rows or None]
    samples = {pair: parallel(rows, pair) for pair in supervised + zero_shot}
    if not all(samples.values()):
        raise InputError(f"{s.data}: no complete sentence pair for {'->'.join(next(p for p in samples if not samples[p]))}")
    split, reports = os.path.splitext(os.path.basename(s.data))[0], {}
    for ckpt in s.ckpt:
        started, results = time.time(), {}
        model, tokenizer = load_model(ckpt, DTYPES[s.dtype], s.device).to(DTYPES[s.dtype]).eval(), Tokenizer(ckpt)
        out = os.path.join(ckpt, f"eval-{split}")
        os.makedirs(out, exist_ok=True)
        with tqdm(total=sum(map(len, samples.values())), desc=ckpt, unit="sentence", dynamic_ncols=True) as bar:
            for pair, chosen in samples.items():
                hypotheses = translate(model, tokenizer, chosen, s, bar)
                results["-".join(pair)] = score(hypotheses, chosen, pair, identify)
                with open(os.path.join(out, f"{'-'.join(pair)}.txt"), "w", encoding="utf-8") as f:
                    f.writelines(h + "\n" for h in hypotheses)
        name = os.path.basename(os.path.normpath(ckpt))
        reports[name if name not in reports else ckpt] = report = {
            "directions": results, "average_supervised": average(results, supervised), "settings": asdict(s),
            "seconds": round(time.time() - started, 1), "versions": {"sacrebleu": sacrebleu.__version__, "langid": "1.1.6", "torch": torch.__version__}}
        if zero_shot:
            report["average_zero_shot"] = average(results, zero_shot)
        write_json(os.path.join(out, "scores.json"), report)
    print(table(reports, supervised, zero_shot))
    print(f"\nSacreBLEU {results['-'.join(supervised[0])]['signature']}; OTR in %, langid among {s.candidates}; {s.data}, "
          f"{len(rows)} rows; greedy. Hypotheses and scores.json: eval-{split}/ in each checkpoint's folder.")


if __name__ == "__main__":
    run(evaluate, Settings)

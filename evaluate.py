"""Translate a test set with checkpoints, report SacreBLEU and the off-target ratio (OTR).

    python evaluate.py --ckpt demo/base runs/stage1 runs/stage2  # side by side in one table
    torchrun --nproc-per-node 4 evaluate.py --ckpt runs/stage2  # each GPU a share of the sentences

An output is off-target when langid, choosing among --candidates, does not name the target language;
an empty output is off-target too. The references' own OTR is printed as the floor: langid errs on
short text.
"""

import plumbing.interrupts  # noqa: F401, I001 - before the packages, whose import takes seconds

import os
import time
from collections import ChainMap, Counter
from dataclasses import asdict, dataclass
from itertools import zip_longest

import torch
from tqdm import tqdm

from data import TEMPLATES, Prompter
from model import LlamaForCausalLM, build_model, load_model, merge_lora
from plumbing.cli import DTYPES, DeviceSettings, option, run_script
from plumbing.corpora import Corpus, Direction, Sample, first_rows, read_corpus
from plumbing.decoding import Decoder
from plumbing.distributed import RANK, WORLD, gather_from_processes, progress_bar
from plumbing.errors import InputError, require
from plumbing.metrics import Identify, bleu_metric, checked_identifier
from plumbing.report import Comparison
from plumbing.provenance import checksum, read_setting, tuned_directions
from plumbing.results import Results
from plumbing.sampling import deal
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
    skip_unknown: bool = option(False, "leave out rows without a certain direction and language")
    template: str = option("", "prompt; left out: that of the run, or alpaca", choices=TEMPLATES)
    candidates: str = option(CANDIDATES, "what langid may answer, besides the data's languages")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "longest output", least=1)
    batch_size: int = option(BATCH_SIZE, "sentences decoded together", least=1)


@torch.inference_mode()
def greedy(
    model: LlamaForCausalLM | Decoder, prompts: list[list[int]], ends: set[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy decoding of prompts up to one of the ids `ends`; returns the ids before it. Prompts (B
    lists of ids, any lengths) are prefilled end to end; then every row adds one token a step at its
    own position in the cache. The row of a sequence that ends is taken over by the last one."""
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    logits = decoder.prefill(prompts, max_new_tokens)  # [B, V]
    outputs, rows = [[] for _ in prompts], list(range(len(prompts)))  # of whom a row is
    for left in reversed(range(max_new_tokens)):
        new = logits.argmax(-1).tolist()  # B ids
        for row in reversed(range(len(rows))):
            if new[row] in ends:  # the last row, which has been looked at, takes its place
                decoder.cache.move(len(rows) - 1, to=row)
                rows[row], new[row] = rows[-1], new[-1]
                del rows[-1], new[-1]
        for number, token in zip(rows, new, strict=True):
            outputs[number].append(token)
        if not rows or not left:
            break
        logits = decoder.step(new)  # [B, V]
    return outputs


def encode_prompts(
    prompter: Prompter, samples: list[Sample], positions: int, max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """(the prompts of the samples, how many sources were cut to leave room for as many new tokens
    in the model's positions). Raises InputError where there is no room for a prompt."""
    prompts, cuts = [], 0
    sentence = f"decoding {max_new_tokens} tokens leaves no room for the prompt in {positions}"
    advice = "positions; evaluate.py can lower --max-new-tokens, train.py not"
    for sample in samples:
        room = positions - max_new_tokens
        prompt, cut = prompter.encode(sample.direction, sample.source, room)
        require(prompt, f"{sentence} {advice}")
        prompts.append(prompt)
        cuts += int(cut)
    return prompts, cuts


def translate(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    bar: tqdm,
    static: bool = False,
) -> list[str]:
    """The hypotheses of the prompts in their order, decoded greedily in batches of similar length;
    `bar` counts sentences. static: in steps that CUDA can record."""
    decoder = Decoder(model, static)
    ends = {tokenizer.eos, *model.config.eos_token_id}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    hypotheses = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        outputs = greedy(decoder, [prompts[i] for i in chosen], ends, max_new_tokens)
        for i, ids in zip(chosen, outputs, strict=True):
            hypotheses[i] = " ".join(tokenizer.decode(ids).split())
        bar.update(len(chosen))
    return hypotheses


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
    references = [(sample.target, *sample.others) for sample in samples]
    otr, kinds = off_target(hypotheses, directions, identify)
    floor, _ = off_target([first for first, *_ in references], directions, identify)
    metric = bleu_metric(directions[0][1])
    return {
        "bleu": metric.corpus_score(hypotheses, list(zip_longest(*references))).score,
        "otr": otr,
        "floor": floor,
        "off_target": kinds,
        "sentences": len(samples),
        "signature": str(metric.get_signature()),
    }


def check(ckpt: str, corpus: Corpus, s: Settings) -> Prompter:
    """The prompts of a checkpoint: as it was tuned on them, unless --template says otherwise.
    Raises InputError for what would fail after hours, or after another checkpoint's: no whole
    weights, no tokenizer, no room for a prompt."""
    model = build_model(ckpt, s.model)
    template = s.template or read_setting(ckpt, "template", "alpaca")
    prompter = Prompter(Tokenizer([ckpt, model.source], model.config), template)
    empty = [Sample(direction, "", "") for direction in corpus]
    encode_prompts(prompter, empty, model.config.max_position_embeddings, s.max_new_tokens)
    return prompter


def evaluate_checkpoint(
    ckpt: str, prompter: Prompter, corpus: Corpus, identify: Identify, s: Settings
):
    """({direction: its scores}, {direction: a hypothesis for each row, empty where a side of the
    row is blank}). The processes share the sentences of each direction, then the scoring."""
    model = load_model(ckpt, DTYPES[s.dtype], s.device, s.model).to(DTYPES[s.dtype]).eval()
    if s.dtype == "fp32":  # 16 bits would round much of the adapter's small change away
        merge_lora(model)
    positions, limits = model.config.max_position_embeddings, (s.max_new_tokens, s.batch_size)
    static = s.device.startswith("cuda")
    found, cuts, results = {}, Counter(), {}  # found: {(direction, row): hypothesis}
    rows = {d: [n for n, x in enumerate(corpus[d]) if not x.blank] for d in corpus}
    lengths = {d: [len(corpus[d][n].source) for n in rows[d]] for d in corpus}
    shares = {d: deal(rows[d], lengths[d], WORLD, turn)[RANK] for turn, d in enumerate(corpus)}
    with progress_bar(total=sum(map(len, shares.values())), desc=ckpt, unit="sentence") as bar:
        for d, mine in shares.items():
            samples = [corpus[d][n] for n in mine]
            prompts, cuts[d] = encode_prompts(prompter, samples, positions, s.max_new_tokens)
            hypotheses = translate(model, prompter.tokenizer, prompts, *limits, bar, static)
            found |= {(d, n): text for n, text in zip(mine, hypotheses, strict=True)}
    found = ChainMap(*gather_from_processes(found))
    cuts = sum(gather_from_processes(cuts), Counter())
    for d in sorted(corpus, key=lambda d: -len(corpus[d]))[RANK::WORLD]:
        hypotheses, samples = [found[d, n] for n in rows[d]], [corpus[d][n] for n in rows[d]]
        results[d] = score(hypotheses, samples, identify) | {"sources_cut": cuts[d]}
    results = ChainMap(*gather_from_processes(results))
    texts = {d: [found.get((d, n), "") for n in range(len(corpus[d]))] for d in corpus}
    return {"-".join(d): results[d] for d in corpus}, {"-".join(d): texts[d] for d in corpus}


def evaluate(s: Settings) -> None:
    """Every checkpoint on the same test set: a report beside each, and one table of all."""
    tuned = tuned_directions(s.ckpt)
    corpus, tuned = read_corpus(s.data, s.directions, tuned, s.skip_unknown, keep_blank=True)
    corpus = {direction: first_rows(samples, s.rows) for direction, samples in corpus.items()}
    s.candidates, identify = checked_identifier(s.candidates, corpus)
    for _, target in corpus:
        bleu_metric(target)  # what it lacks is said before hours of decoding
    prompters = [check(ckpt, corpus, s) for ckpt in s.ckpt]
    split = os.path.splitext(os.path.basename(s.data[0]))[0]
    places = [Results(ckpt, split, checksum(corpus)) for ckpt in s.ckpt]
    comparison, troubles = Comparison(list(corpus), tuned, asdict(s)), []
    for ckpt, prompter, place in zip(s.ckpt, prompters, places, strict=True):
        started = time.time()
        results, texts = evaluate_checkpoint(ckpt, prompter, corpus, identify, s)
        report = comparison.add(ckpt, results, time.time() - started)
        try:
            written = place.write(corpus, texts, report) if RANK == 0 else ""
            print(f"hypotheses, sources, references and scores.json: {written}")
        except (InputError, OSError) as error:  # the table comes first
            troubles.append(str(error))
    print(comparison)
    require(not troubles, "; ".join(troubles))


if __name__ == "__main__":
    run_script(evaluate, Settings)

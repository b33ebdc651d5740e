"""Make demo/base, a tiny LLaMA that has met four languages, and no instructions.

    python demo/make_base.py --out DIR              # about 50 minutes on two cores
    python demo/make_base.py --out DIR --size tiny  # another of SIZES
    python demo/make_base.py --out DIR --more       # demo/base, gone on with: two languages more
    python demo/make_base.py --out DIR --apart      # of half the rows, and both halves as files

Every document holds messages of demo/data/train.tsv, most lines labelled with their language
("Italian: ..."). PHASES is the mixture (README.md says why it matters): one-language documents,
English-centric pairs, in the second phase mostly without labels, and a small share of pairs without
English. It sets how far stage 1 goes off target and how well stage 2 can cure that. Rows of dev and
test are never read for training.
"""

import argparse
import copy
import io
import json
import os
import random
import sys
import time
from contextlib import suppress

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import model as llama  # noqa: E402
from model import LlamaForCausalLM, load_model, save_model  # noqa: E402
from plumbing.base.errors import InputError  # noqa: E402
from plumbing.checkpoint.config import Config  # noqa: E402
from plumbing.checkpoint.folder import ModelFolder  # noqa: E402

NAMES = {"en": "English", "it": "Italian", "nl": "Dutch", "ro": "Romanian"}
MORE = {"de": "German", "es": "Spanish"}
# Only so that its words are single pieces.
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "Translate the following sentences from English to Italian.\n\n### Input:\n\n\n### Response:"
)
# Steps, of which the last so many with a falling learning rate, and the share of each kind of
# document.
PHASES = [
    (600, 0, {"one language": 0.15, "with English": 0.83, "without English": 0.02}),
    (
        600,
        450,
        {
            "one language": 0.10,
            "with English": 0.31,
            "with English, no labels": 0.50,
            "without English": 0.03,
            "without English, no labels": 0.06,
        },
    ),
]
# --more: the second mixture again, where the languages of MORE are drawn twice as often.
PHASE_MORE = (700, 600, PHASES[1][2])
# Share of documents whose lines join two messages; both against learning rows by heart.
JOINED, DROPOUT = 0.4, 0.1
VOCABULARY = 4000
# Width, layers, key/value heads: 1.3, 2.8, 5.5 and 10.0 million parameters. Every size meets the
# same documents in the same order.
SIZES = {"tiny": (128, 4, 1), "small": (192, 5, 1), "base": (256, 6, 2), "large": (320, 8, 1)}
TUNING, KNOWN = "tuning.tsv", "known.tsv"  # --apart: rows that the base never read, and has read
FILES = ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
STEP_TOKENS, MICRO_TOKENS, POOL_STEPS = 8192, 2048, 16
LEARNING_RATE, WARMUP = 3e-3, 100
SEED = 1


def read(split):
    with open(os.path.join(HERE, "data", f"{split}.tsv"), encoding="utf-8") as f:
        header, *rows = [line.rstrip("\n").split("\t") for line in f]
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_more(rows):
    """The rows with the languages of MORE, where there are translations."""
    more = {row["en"]: row for row in read("more/train")}
    return [row | more[row["en"]] for row in rows if row["en"] in more]


def apart(rows):
    """(every second row; those of the others that share no text with them in any language)."""
    first = rows[::2]
    seen = {text for row in first for text in row.values()}
    return first, [row for row in rows[1::2] if seen.isdisjoint(row.values())]


def config_of(size):
    width, layers, key_value_heads = SIZES[size]
    return Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=key_value_heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def make_tokenizer(rows):
    """The bytes of a tokenizer.model: SentencePiece BPE with byte fallback, its settings those of
    LLaMA's tokenizer."""
    lines = [f"{NAMES[code]}: {line}" for row in rows for code, line in row.items()]
    lines += [line for line in PROMPT.split("\n") if line] * 200
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=pieces,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=10000,
        num_threads=1,
        minloglevel=2,
    )
    return pieces.getvalue()


def documents(rows, tokenizer, rng, mixture):
    """Endless documents as lists of ids: BOS, lines, EOS; their kind is drawn from the mixture."""

    def message():
        row = rng.choice(rows)
        if len(rows) == 1 or rng.random() >= JOINED:
            return row
        second = rng.choice(rows)
        return {
            c: f"{row[c]} {second[c]}" if len(row["en"]) + len(second["en"]) < 120 else row[c]
            for c in row
        }

    names = NAMES | MORE
    others = [code for code in rows[0] if code != "en"]
    often = others + [code for code in others if code in MORE]
    while True:
        row, kind = message(), rng.choices(list(mixture), mixture.values())[0]
        codes = (
            [rng.choice(["en", *often])]
            if kind == "one language"
            else ["en", rng.choice(often)]
            if kind.startswith("with English")
            else rng.sample(others, 2)
        )
        rng.shuffle(codes)
        text = "\n".join(
            row[c] if kind.endswith("no labels") else f"{names[c]}: {row[c]}" for c in codes
        )
        yield [tokenizer.bos_id(), *tokenizer.encode(text), tokenizer.eos_id()]


def attend(q, k, v, layout):
    """plumbing's attend of all documents in one call, which loss_sum pads. PyTorch's own kernel is
    four times slower for short documents in bf16 on a CPU."""
    q, k, v = map(layout.whole.pad, (q, k, v))
    B, K, n, d = k.shape
    scores = (q.reshape(B, K, -1, d) @ k.transpose(-1, -2)).view(B, K, -1, n, n).float() * d**-0.5
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype)
    return layout.whole.unpad((weights.view(B, K, -1, n) @ v).view(q.shape))


def loss_sum(model, batch):
    """Summed next-token loss of a list of documents and the number of predicted tokens."""
    n = max(map(len, batch))
    # [B, n]: padded, an even layout is faster here
    ids = torch.tensor([doc + [0] * (n - len(doc)) for doc in batch])
    # [R]
    at = (
        (torch.arange(n) < torch.tensor([len(doc) - 1 for doc in batch])[:, None])
        .flatten()
        .nonzero()[:, 0]
    )
    ids = ids.flatten()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, [n] * len(batch), at=at)  # [R, V]
    return F.cross_entropy(logits.float(), ids[at + 1], reduction="sum"), len(at)


def steps(stream, rng):
    """Endless lists of micro-batches, one list a step; documents of similar length share a
    micro-batch."""
    per_step = STEP_TOKENS // MICRO_TOKENS
    while True:
        docs, total = [], 0
        while total < POOL_STEPS * STEP_TOKENS:
            docs.append(next(stream))
            total += len(docs[-1])
        docs.sort(key=len)
        ends = np.cumsum([len(d) for d in docs])
        cuts = np.searchsorted(ends, np.arange(1, POOL_STEPS * per_step) * MICRO_TOKENS)
        batches = [docs[a:b] for a, b in zip([0, *cuts], [*cuts, len(docs)], strict=True)]
        rng.shuffle(batches)
        yield from (batches[i : i + per_step] for i in range(0, len(batches), per_step))


def main(s):
    torch.manual_seed(SEED)
    llama.attend = attend
    os.makedirs(os.path.dirname(s.out) or ".", exist_ok=True)
    rows, dev = read("train"), read("dev")
    if s.more:
        rows, dev = read_more(rows), read("more/dev")
    rows, unread = apart(rows) if s.apart else (rows, [])
    halves = {TUNING: unread, KNOWN: rows} if s.apart else {}
    phases = {3: PHASE_MORE} if s.more else dict(enumerate(PHASES, start=1))
    started, first_phase = os.path.join(HERE, "base") if s.more else None, f"{s.out}.phase-1"
    if os.path.exists(first_phase):  # a run that was stopped goes on
        started = first_phase
        del phases[1]
    if started:
        with open(os.path.join(started, "tokenizer.model"), "rb") as f:
            pieces = f.read()
        model = load_model(started, torch.float32)
    else:
        pieces = make_tokenizer(rows)
        model = LlamaForCausalLM(config_of(s.size))
        for p in model.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.02)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    model.share_prefixes = False  # dropout is drawn for each document apart
    for part in [
        model.model.embed_tokens,
        *(m for b in model.model.layers for m in (b.self_attn, b.mlp.down_proj)),
    ]:
        part.register_forward_hook(lambda module, _, out: F.dropout(out, DROPOUT, module.training))
    lengths = [len(tokenizer.encode(text)) for row in rows for text in row.values()]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(rows):,} rows, {parameters:,} parameters, {np.mean(lengths):.1f} tokens a message")
    for number, phase in phases.items():
        train_phase(model, tokenizer, rows, dev, number, phase, f"{s.out}_log.jsonl")
        folder = first_phase if number == 1 else s.out
        save(model, pieces, folder, halves)
        # as a run that goes on from here would find it
        model.load_state_dict(load_model(folder, torch.float32).state_dict())
    with suppress(OSError):  # none, or with other files
        for name in [*FILES, *halves]:
            os.remove(os.path.join(first_phase, name))
        os.rmdir(first_phase)


def save(model, pieces, folder, halves):
    """Make the folder of a base, whole or not at all. pieces: of its tokenizer.model. halves: rows
    by the file that gets them."""
    partial = f"{folder}.partial"
    os.makedirs(partial, exist_ok=True)
    save_model(copy.deepcopy(model).bfloat16(), partial)
    with open(os.path.join(partial, "tokenizer.model"), "wb") as f:
        f.write(pieces)
    for name, rows in halves.items():
        lines = ["\t".join(texts) for texts in (rows[0], *(row.values() for row in rows))]
        with open(os.path.join(partial, name), "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
    with open(os.path.join(partial, "tokenizer_config.json"), "w") as f:  # for transformers
        json.dump(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": False,
            },
            f,
            indent=2,
        )
        f.write("\n")
    os.rename(partial, folder)


def train_phase(model, tokenizer, rows, dev, number, phase, log_path):
    """One phase with fresh optimizers: warm-up, a constant learning rate, a linear decay to zero if
    it has one."""
    total, decay, mixture = phase
    rng = random.Random(SEED + number - 1)
    held = {
        kind: [
            next(documents([row], tokenizer, random.Random(i), {kind: 1}))
            for i, row in enumerate(dev)
        ]
        for kind in mixture
    }
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    stream, started = steps(documents(rows, tokenizer, rng, mixture), rng), time.time()
    log = open(log_path, "a")
    bar = tqdm(range(1, total + 1), desc=f"phase {number}", dynamic_ncols=True)
    for step in bar:
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = LEARNING_RATE * min(
                1, step / WARMUP, (total - step + 1) / decay if decay else 1
            )
        batches = next(stream)
        count, loss = sum(len(doc) - 1 for batch in batches for doc in batch), 0.0
        for batch in batches:
            part = loss_sum(model, batch)[0] / count
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}")
        if step % 100 == 0:
            model.eval()
            with torch.no_grad():
                scores = {
                    k: (lambda s, n: s.item() / n)(*loss_sum(model, docs))
                    for k, docs in held.items()
                }
            model.train()
            log.write(
                json.dumps(
                    {
                        "phase": number,
                        "step": step,
                        "minutes": round((time.time() - started) / 60, 1),
                        "loss": round(loss, 3),
                        "dev": {k: round(v, 3) for k, v in scores.items()},
                    }
                )
                + "\n"
            )
            log.flush()


def arguments(args=None):
    """The command line's; --out is never a folder that is there, demo/base above all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--size", default="base", choices=SIZES, help="of the model")
    parser.add_argument("--more", action="store_true", help="go on with demo/base, six languages")
    parser.add_argument("--apart", action="store_true", help="read every second row alone")
    s = parser.parse_args(args)
    s.out = os.path.normpath(s.out)
    if os.path.lexists(s.out):
        parser.error(f"--out {s.out} is there; expected another folder, or delete it")
    if s.more and (s.apart or s.size != "base"):
        parser.error("--more goes on with demo/base; expected no --size and no --apart beside it")
    for folder in (f"{s.out}.partial", f"{s.out}.phase-1.partial"):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            parser.error(f"{folder} is no folder; move it, or choose another --out")
    first_phase = f"{s.out}.phase-1"
    if os.path.lexists(first_phase):
        advice = f"delete {first_phase}, or choose another --out"
        if s.more or not all(os.path.isfile(os.path.join(first_phase, name)) for name in FILES):
            parser.error(f"{first_phase} is not of the first phase of this base; {advice}")
        if s.apart != os.path.isfile(os.path.join(first_phase, TUNING)):
            parser.error(f"{first_phase} has read other rows; {advice}")
        if ModelFolder(first_phase).config.hidden_size != config_of(s.size).hidden_size:
            parser.error(f"{first_phase} is of another size than {s.size}; {advice}")
    return s


if __name__ == "__main__":
    try:
        main(arguments())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)

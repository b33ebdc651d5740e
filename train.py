"""Tune a LLaMA on translation pairs: stage 1 with Eq. 1, stage 2 with Eq. 3, one loop for both.

python train.py --stage 1                  # MLE on English-centric pairs; makes runs/stage1
python train.py --stage 2 --alpha 0.05     # + unlikelihood of conflicting twins; makes runs/stage2
python train.py --stage 2 --resume         # goes on with a stopped run from its last checkpoint
torchrun --nproc-per-node 4 train.py ...   # on several GPUs, every weight split over them (FSDP2)
python train.py --merge --init runs/stage2 # no tuning: the adapter in its base, a full model for vLLM and others"""

import glob
import json
import math
import os
import pathlib
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass, fields

import torch
import torch.distributed as dist
from safetensors import SafetensorError

import loss
from data import Encoded, Tokenizer
from model import add_lora, load_model, merge_lora, save_model
from plumbing.cli import DTYPES, option, run
from plumbing.corpora import TEMPLATES, read_corpus
from plumbing.distributed import RANK, WORLD, progress, shard, whole
from plumbing.errors import InputError, require
from plumbing.files import publish, read_json, remove, write_json
from plumbing.runs import run_setting
from plumbing.weights import read_tensors, write_tensors

PEAK = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # bf16 FLOP/s
FREE = {
    "out",
    "resume",
    "save_every",
    "keep",
    "device",
    "recompute",
    "micro_batch_tokens",
    "lr",
    "dtype",
    "versions",
}


@dataclass
class Settings:
    stage: int = option(
        1,
        "1: MLE; 2: MLE + alpha * unlikelihood; a default like 2 / 3 is 2 in stage 1",
        choices=[1, 2],
    )
    alpha: float = option(
        0.05, "weight of the unlikelihood in stage 2 (Eq. 3); 0 is the control", least=0
    )
    conflict: str = option(
        "target", "twins' instructions: any other, or of another target", choices=["any", "target"]
    )
    loss_reduction: str = option(
        "token", "mean over a step's tokens, or of sentence means", choices=["token", "sentence"]
    )
    model: str = option(
        "", "base model, a Hugging Face folder; left out: demo/base, or the base that --init names"
    )
    data: list = option(
        ("demo/data/train.tsv",),
        "files: TSV, JSON, paired plain files (README)",
        type=str,
        nargs="+",
    )
    directions: str = option(
        "supervised", "en-it,it-en or supervised (those with English), zero-shot, all"
    )
    template: str = option("", "prompt; left out: that of --init, or alpaca", choices=TEMPLATES)
    pairs: int = option((1200, 0), "sentence pairs per direction, 0 all", least=0)
    init: str = option("", "run to start from; left out: none in stage 1, runs/stage1 in stage 2")
    out: str = option("", "run folder to make; left out: runs/stage1 or runs/stage2")
    merge: bool = option(
        False, "no tuning: fold the adapter of --init into its base, a full model in --out"
    )
    resume: bool = option(False, "go on with the stopped run of --out from its last checkpoint")
    save_every: int = option(100, "steps between checkpoints; 0: none", least=0)
    keep: int = option(2, "how many checkpoints stay, the newest", least=1)
    dev: list = option(
        (),
        "files like --data; at each checkpoint: loss and OTR in all their directions",
        type=str,
        nargs="+",
    )
    best: str = option(
        "",
        "end with the checkpoint best by this figure of --dev; left out: the last",
        choices=["mle", "otr"],
    )
    full: bool = option(False, "tune every weight instead of LoRA")
    lora_rank: int = option(64, "rank r of LoRA", least=1)
    lora_alpha: float = option(128.0, "LoRA's scale is lora_alpha / lora_rank")
    lora_dropout: float = option(0.0, "dropout before lora_A")
    lora_targets: str = option(
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "linear layers that get LoRA"
    )
    lr: float = option((2e-3, 5e-4), "peak learning rate", least=0)
    batch_size: int = option(
        (128, 32), "samples per optimizer step over all GPUs, twins not counted", least=1
    )
    epochs: float = option((1.0, 0.0), "passes over the samples, where --steps is 0", least=0)
    steps: int = option((0, 100), "optimizer steps; 0: from --epochs", least=0)
    warmup: float = option(0.03, "share of the steps with rising learning rate, before the cosine")
    clip: float = option(1.0, "largest gradient norm; 0: any", least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay")
    max_length: int = option(
        512, "tokens of prompt and response; longer sources are cut, never responses", least=1
    )
    micro_batch_tokens: int = option(
        4096, "tokens, twins included, in one forward pass of one GPU", least=1
    )
    recompute: bool = option(
        False, "activation checkpointing: less memory, about a third more time"
    )
    dtype: str = option(
        "auto", "auto: bf16 on CUDA, fp32 on CPU", choices=["auto", "fp32", "bf16", "fp16"]
    )
    device: str = option("auto", "auto: cuda where there is one")
    seed: int = option(1, "of the pairs, their order, the twins, LoRA's start and dropout")

    def __post_init__(self):
        for f in fields(self):
            if (
                isinstance(getattr(self, f.name), tuple) and f.type is not list
            ):  # (default of stage 1, of stage 2)
                setattr(self, f.name, getattr(self, f.name)[self.stage - 1])
        self.init = self.init or ("runs/stage1" if self.stage == 2 else "")
        self.out = (
            self.out or (f"{self.init}-merged" if self.merge else f"runs/stage{self.stage}")
        ).rstrip("/")
        self.model = self.model or ("" if self.init else "demo/base")
        self.template = self.template or run_setting(self.init, "template", "alpaca")
        require(
            (self.dev or not self.best) and (self.save_every or not self.dev),
            "--best needs --dev; --dev, --save-every",
        )


def learning_rate(step, steps, s):
    """Linear warm-up over the first share of the steps, then half a cosine to zero."""
    rise = max(1, math.ceil(s.warmup * steps))
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return s.lr * ((step + 1) / rise if step < rise else fall)


def checkpoints(s):
    return sorted(glob.glob(os.path.join(glob.escape(s.out + ".partial"), "step-" + "[0-9]" * 6)))


def save_checkpoint(s, state, model, tokenizer, moments):
    """OUT.partial/step-N: the run so far (model or adapter, logs, settings), AdamW's moments, and `state`, which is all the
    rest: order, twins and dropout masks are functions of the seed and the step, so no generator has a state."""
    out, name = s.out + ".partial", f"step-{state['step']:06}"
    folder, partial = os.path.join(out, name), os.path.join(out, name + ".partial")
    try:
        save_model(model, partial, tokenizer.folder)
        write_tensors(partial, "optimizer", moments)
        if RANK == 0:
            for file in ("settings.json", "log.jsonl", "speed.jsonl"):
                shutil.copy(os.path.join(out, file), partial)
            state = {"lora": model.lora} | state
            write_json(
                os.path.join(partial, "state.json"),
                state | {"crc32": zlib.crc32(repr(state).encode())},
            )
            publish(partial, folder)
            for old in [
                path for path in checkpoints(s)[: -s.keep] if int(path[-6:]) != state["best"][-1]
            ]:
                remove(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"{folder} was not written ({error}); older ones are untouched: make room, then --resume"
        ) from None
    return folder


def find_checkpoint(s, story):
    """(folder, state) of the newest whole checkpoint of the stopped run of --out; (None, {}) to start at the first step."""
    out, found = s.out + ".partial", checkpoints(s)
    for path in glob.glob(os.path.join(glob.escape(out), "step-*.*")):
        print(f"{path}: an incomplete checkpoint, ignored")
        shutil.rmtree(path, ignore_errors=True)
    if not found:
        return None, {}
    state, then = (
        read_json(os.path.join(found[-1], name)) for name in ("state.json", "settings.json")
    )
    good = state.pop("crc32", None) == zlib.crc32(repr(state).encode())
    require(
        good,
        f"{found[-1]}/state.json: damaged (wrong checksum); delete that checkpoint to go on from the one before it",
    )
    changed = [
        f"{n} is {story[n]}, was {then.get(n)}"
        for n in story
        if n not in FREE and then.get(n) != story[n]
    ]
    require(
        not changed, f"--resume: {'; '.join(changed)} when {out} was begun; choose another --out"
    )
    print(f"resuming from {found[-1]}")
    return found[-1], state


def prepare(s, checkpoint=None):
    """The model (trainable parameters chosen, sharded) and its tokenizer: of a checkpoint, of --init or of --model."""

    def choose(model):
        require(
            bool(model.lora) or not s.merge,
            f"{start} is a full model; expected --init with a LoRA run for --merge",
        )
        require(
            not model.lora or not s.full,
            f"{start} is a LoRA run; expected a full model for --full (--merge makes one)",
        )
        require(
            s.max_length <= model.config.max_position_embeddings,
            f"--max-length {s.max_length}: the model has {model.config.max_position_embeddings} positions",
        )
        if not s.full and not model.lora:
            add_lora(model, s.lora_rank, s.lora_alpha, s.lora_targets.split(","), s.lora_dropout)
        if WORLD > 1 and not s.merge:
            shard(model, s.device)

    torch.manual_seed(s.seed)
    start, stored = (
        s.init or s.model,
        None if s.merge else torch.float32 if s.full else DTYPES[s.dtype],
    )  # fp32 master weights
    model = load_model(checkpoint or start, stored, "cpu" if s.merge else s.device, s.model, choose)
    model.source, model.recompute = (
        model.source if model.lora else os.path.abspath(start),
        s.recompute,
    )  # checkpoints go
    return model, Tokenizer([start, model.source], model.config, s.template)


def finish(s, model, tokenizer, story, best=0):
    """Make --out of the model as it is, or of the checkpoint after step `best`."""
    partial = s.out + ".partial"
    if not best:
        save_model(model, partial, tokenizer.folder)
    elif RANK == 0:
        shutil.copytree(
            os.path.join(partial, f"step-{best:06}"),
            partial,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("optimizer*", "state.json", "*.jsonl"),
        )
    if RANK == 0:
        write_json(os.path.join(partial, "settings.json"), story)
        publish(partial, s.out)
    print(f"saved {s.out}" + f", which is step {best}, the best by {s.best} of --dev" * bool(best))


def autocast(s):
    return torch.autocast(s.device.split(":")[0], DTYPES[s.dtype], enabled=s.dtype != "fp32")


def forward(model, batch, s):
    """The two sums of losses of a micro-batch, positives and twins in one forward pass."""
    ids, at, y, w = (tensor.to(s.device) for tensor in (batch.ids, batch.at, batch.y, batch.weight))
    with autocast(s):
        logits = model(ids, batch.lengths, at=at)  # [R, V]
    n = batch.positives
    return loss.mle(logits[:n], y[:n], w[:n])[0], loss.unlikelihood(logits[n:], y[n:], w[n:])[
        0
    ]  # under I, under I~


@torch.no_grad()
def look(model, dev, s):
    """{"dev_mle": nats per response token, "dev_otr": % of greedy translations} over all directions of --dev."""
    from evaluate import (
        Settings,
        identifier,
        translate,
    )  # here, since only this needs decoding and langid

    model.eval()
    samples, how = [item[0] for item in dev.items], Settings(ckpt=[])
    identify = identifier(
        sorted({*how.candidates.split(",")} | {code for x in samples for code in x.direction})
    )
    batches = dev.micro_batches(dev.items, s.micro_batch_tokens, world=WORLD)[RANK]
    terms = sum(
        torch.tensor([forward(model, b, s)[0], b.weight.sum()], dtype=torch.float64)
        for b in batches
    ).to(s.device)
    if WORLD > 1:
        dist.all_reduce(terms)
    with autocast(s), progress(total=len(samples), desc="dev", unit="sentence", leave=False) as bar:
        texts, _ = translate(
            model, dev.tokenizer, samples, how, bar
        )  # by every process, since weights are sharded
    model.train()
    wrong = sum(identify(text) != x.direction[1] for text, x in zip(texts, samples))
    return {"dev_mle": (terms[0] / terms[1]).item(), "dev_otr": 100 * wrong / len(samples)}


def train(s):
    partial, ours = (
        s.out + ".partial",
        not os.path.exists(s.out) or os.path.exists(os.path.join(s.out, "settings.json")),
    )
    require(ours, f"{s.out} exists and is no run of train.py; choose another --out")
    require(
        os.path.isdir(s.init or "."),
        f"{s.init}: no such run; make it with `python train.py --stage 1`, or choose --init",
    )
    stopped = checkpoints(s) and (s.merge or not s.resume)
    require(
        not stopped,
        f"{partial}: a stopped run; --resume goes on with it, deleting the folder starts anew",
    )
    if s.merge:
        model, tokenizer = prepare(s)
        merge_lora(model)
        remove(partial)
        return finish(
            s, model, tokenizer, asdict(s) | {"supervised": run_setting(s.init, "supervised", [])}
        )
    if s.resume and os.path.exists(s.out) and not os.path.exists(partial):
        return print(f"{s.out} is finished, there is nothing to resume")
    corpus, dev = read_corpus(s.data, s.directions)[0], s.dev and read_corpus(s.dev)[0]
    story = json.loads(json.dumps(asdict(s))) | {
        "supervised": ["-".join(pair) for pair in corpus],
        "data_crc32": {
            "-".join(pair): zlib.crc32(repr(found).encode()) for pair, found in corpus.items()
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "processes": WORLD,
            "git": subprocess.getoutput(
                f"git -C '{os.path.dirname(__file__)}' describe --always --dirty --abbrev=40"
            ),
        },
    }
    checkpoint, state = find_checkpoint(s, story)
    model, tokenizer = prepare(s, checkpoint)
    require(
        not checkpoint or state["lora"] == model.lora,
        f"{checkpoint}/adapter_config.json: damaged; delete {checkpoint}",
    )
    encoded = Encoded(corpus, tokenizer, s.max_length, s.pairs, s.seed)
    dev = dev and Encoded(dev, tokenizer, s.max_length)
    unlikely, cuda = s.stage == 2 and s.alpha > 0, s.device.startswith("cuda")
    total = s.steps * s.batch_size or math.ceil(s.epochs * len(encoded.items))  # samples to visit
    steps = math.ceil(total / s.batch_size)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    print(
        f"stage {s.stage}: {s.init or s.model} -> {s.out}, {len(encoded.items):,} samples, template {s.template}, "
        + (f"twins with alpha {s.alpha:g}, --conflict {s.conflict}" if unlikely else "MLE alone")
        + f"\n{sum(p.numel() for p in trainable.values()):,} of {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{'full' if s.full else 'LoRA'}, {s.dtype} on {WORLD} {s.device}, {steps} steps of {s.batch_size}, rate {s.lr:g}"
    )
    optimizer = torch.optim.AdamW(
        trainable.values(), lr=s.lr, weight_decay=s.weight_decay, fused=cuda
    )
    scaler = torch.amp.GradScaler(s.device.split(":")[0], enabled=s.dtype == "fp16")
    state = state or {
        "step": 0,
        "updates": 0,
        "seen": 0,
        "best": [1e30, 1e30, 0],
        "scaler": scaler.state_dict(),
    }
    scaler.load_state_dict(state["scaler"] or scaler.state_dict())
    moments = {
        f"{name}.{m}": torch.zeros_like(p)
        for name, p in trainable.items()
        for m in ("exp_avg", "exp_avg_sq")
    }
    moments |= read_tensors(checkpoint, "optimizer", moments, None, s.device) if checkpoint else {}
    for (
        name,
        p,
    ) in (
        trainable.items()
    ):  # AdamW's state is there before the first step, so that every checkpoint has it
        optimizer.state[p] = {
            "step": torch.tensor(float(state["updates"]), device=s.device if cuda else "cpu"),
            "exp_avg": moments[f"{name}.exp_avg"],
            "exp_avg_sq": moments[f"{name}.exp_avg_sq"],
        }
    if RANK == 0:
        os.makedirs(partial, exist_ok=True)
        write_json(os.path.join(partial, "settings.json"), story)
    logs = {
        n: open(os.path.join(partial, n) if RANK == 0 else os.devnull, "wb", 0)
        for n in ("log.jsonl", "speed.jsonl")
    }
    for name, file in (
        logs.items() if checkpoint else ()
    ):  # what a stopped run did after its checkpoint is done again
        file.write(pathlib.Path(checkpoint, name).read_bytes())
    # Model FLOPs of a token and parameter: 2 forward, 2 for the gradients of activations, 2 for those of weights if trained
    flops, gpu = 6 if s.full else 4, torch.cuda.get_device_name(s.device) if cuda else ""
    peak = next((peak * WORLD for name, peak in PEAK.items() if name in gpu), None)
    body, head = (
        sum(p.numel() for p in part.parameters()) for part in (model.model.layers, model.lm_head)
    )
    model.train()
    bar = progress(
        range(state["step"], steps),
        initial=state["step"],
        total=steps,
        desc=f"stage {s.stage}",
        unit="step",
    )
    for step in bar:
        started = time.time()
        torch.manual_seed(random.Random(f"{s.seed} dropout {step} {RANK}").getrandbits(63))
        optimizer.param_groups[0]["lr"] = learning_rate(state["updates"], steps, s)
        # One global batch: its response tokens are counted first, so that any split gives the same gradient.
        shares = encoded.micro_batches(
            encoded.step_items(step, s.batch_size, total, s.seed),
            s.micro_batch_tokens,
            s.conflict if unlikely else None,
            random.Random(f"{s.seed} twins {step}"),
            s.loss_reduction,
            WORLD,
        )
        batches = [batch for share in shares for batch in share]
        T_mle = sum(b.weight[: b.positives].double().sum().item() for b in batches)
        T_ul = sum(b.weight[b.positives :].double().sum().item() for b in batches)
        terms = torch.zeros(
            len(batches), 2, dtype=torch.float64, device=s.device
        )  # a process fills its own rows
        for i, batch in enumerate(shares[RANK], start=RANK * len(shares[RANK])):
            mle_sum, ul_sum = forward(model, batch, s)
            scaler.scale(
                loss.language_aware(mle_sum, T_mle, ul_sum, T_ul, s.alpha if unlikely else 0.0)
            ).backward()
            terms[i] = torch.stack([mle_sum, ul_sum]).detach()
        if WORLD > 1:
            dist.all_reduce(terms)
        scaler.unscale_(optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(trainable.values(), s.clip or math.inf)).item()
        bad = [b for b, fine in zip(batches, terms.isfinite().all(1).tolist()) if not fine]
        if (
            bad or not math.isfinite(norm) and scaler.get_scale() <= 1
        ):  # above 1, fp16 only has to try a smaller scale
            fine = all(
                whole(t.detach().isfinite().all()) for t in [*trainable.values(), *moments.values()]
            )
            saved = (
                save_checkpoint(s, state, model, tokenizer, moments) if fine else "no checkpoint"
            )
            texts = [
                f"{'-'.join(x.direction)} {x.source:.40}" for b in bad or batches for x in b.samples
            ]
            raise InputError(
                f"step {step + 1}: loss {terms.sum().item()}, gradient norm {norm}; {saved} holds the state "
                f"before it; lower --lr {s.lr:g} or leave fp16, then --resume; samples: {' | '.join(texts)[:300]}"
            )
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        real = [b for b in batches if b.samples]
        tokens, responses = sum(len(b.ids) for b in real), sum(len(b.y) for b in real)
        state = {
            "step": step + 1,
            "updates": state["updates"] + (scaler.get_scale() >= scale),  # fp16 may skip a step
            "seen": state["seen"] + tokens,
            "best": state["best"],
            "scaler": scaler.state_dict(),
        }
        mle, ul = (
            terms[:, 0].sum().item() / T_mle,
            terms[:, 1].sum().item() / T_ul if T_ul else None,
        )
        row = {
            "step": step + 1,
            "loss": mle + s.alpha * (ul or 0),
            "mle": mle,
            "ul": ul,
            "grad_norm": norm if math.isfinite(norm) else None,
            "lr": optimizer.param_groups[0]["lr"],
            "response_tokens": sum(b.positives for b in real),
            "tokens": state["seen"],
        }
        seconds, due = (
            time.time() - started,
            s.save_every and ((step + 1) % s.save_every == 0 or step + 1 == steps),
        )
        if dev and due:
            row |= look(model, dev, s)
            state["best"] = min(
                state["best"], [row["dev_otr"] if s.best == "otr" else 0, row["dev_mle"], step + 1]
            )
        used = (
            torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(0).ru_maxrss << 10 * (sys.platform != "darwin")
        )
        pace = {
            "step": step + 1,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "peak_memory_gib": used / 2**30,
            "mfu": peak and flops * (body * tokens + head * responses) / seconds / peak,
        }
        for file, line in zip(logs.values(), (row, pace)):
            file.write((json.dumps(line) + "\n").encode())
        bar.set_postfix_str(
            f"mle {mle:.3f}, "
            + (f"ul {ul:.3f}, " if T_ul else "")
            + f"{tokens / seconds:,.0f} tokens/s"
        )
        if due and (step + 1 < steps or s.best):
            save_checkpoint(s, state, model, tokenizer, moments)
    finish(s, model, tokenizer, story, s.best and state["best"][-1])


if __name__ == "__main__":
    run(train, Settings)

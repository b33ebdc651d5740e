"""Tune a LLaMA on translation pairs: stage 1 with Eq. 1, stage 2 with Eq. 3, one loop for both.

    python train.py --stage 1                  # MLE on English-centric pairs; makes runs/stage1
    python train.py --stage 2 --alpha 0.05     # + unlikelihood of conflicting twins; makes runs/stage2
    python train.py --merge --init runs/stage2 # no tuning: the adapter in its base, a full model for vLLM and others
"""
import json
import math
import os
import platform
import random
import shutil
import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

import loss
from data import DTYPES, TEMPLATES, Encoded, Tokenizer, draw_pairs, option, pick_device, read_corpus, run, run_setting
from model import InputError, add_lora, load_model, merge_lora, save_model, write_json

STAGE = {1: {"lr": 2e-3, "batch_size": 128, "epochs": 1.0, "steps": 0, "pairs": 1200},  # what a setting left out means
         2: {"lr": 5e-4, "batch_size": 32, "epochs": 0.0, "steps": 100, "pairs": 0}}

def staged(name, type, help):
    return option(None, f"{help} (default: {STAGE[1][name]} in stage 1, {STAGE[2][name]} in stage 2)", type=type)

@dataclass
class Settings:
    stage: int = option(1, "1: MLE; 2: MLE + alpha * unlikelihood, from the stage-1 run", choices=[1, 2])
    alpha: float = option(0.05, "weight of the unlikelihood in stage 2 (Eq. 3); 0 is the control")
    conflict: str = option("target", "twins' instructions: any other, or of another target", choices=["any", "target"])
    model: str = option("", "base model, a Hugging Face folder; left out: demo/base, or the base that --init names")
    data: list = option(("demo/data/train.tsv",), "files: TSV, JSON, paired plain files (README)", type=str, nargs="+")
    directions: str = option("supervised", "en-it,it-en or supervised (those with English), zero-shot, all")
    template: str = option("", "prompt; left out: that of --init, or alpaca", choices=TEMPLATES)
    pairs: int = staged("pairs", int, "sentence pairs per direction, 0 all")
    init: str = option("", "run to start from; left out: none in stage 1, runs/stage1 in stage 2")
    out: str = option("", "run folder to make; left out: runs/stage1 or runs/stage2")
    merge: bool = option(False, "no tuning: fold the adapter of --init into its base, a full model in --out")
    full: bool = option(False, "tune every weight instead of LoRA")
    lora_rank: int = option(64, "rank r of LoRA")
    lora_alpha: float = option(128.0, "LoRA's scale is lora_alpha / lora_rank")
    lora_dropout: float = option(0.0, "dropout before lora_A")
    lora_targets: str = option("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "linear layers that get LoRA")
    lr: float = staged("lr", float, "peak learning rate")
    batch_size: int = staged("batch_size", int, "samples per optimizer step, twins not counted")
    epochs: float = staged("epochs", float, "passes over the samples, where --steps is 0")
    steps: int = staged("steps", int, "optimizer steps; 0: from --epochs")
    warmup: float = option(0.03, "share of the steps with rising learning rate, before the cosine")
    clip: float = option(1.0, "largest gradient norm")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    max_length: int = option(512, "tokens of prompt and response; longer sources are cut, never responses")
    micro_batch_tokens: int = option(4096, "tokens, twins included, in one forward pass")
    dtype: str = option("auto", "auto: bf16 on CUDA, fp32 on CPU", choices=["auto", "fp32", "bf16", "fp16"])
    device: str = option("auto", "auto: cuda where there is one")
    seed: int = option(1, "of the pairs, their order, the twins, LoRA's start and dropout")

    def __post_init__(self):
        for name, default in STAGE[self.stage].items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        self.init = self.init or ("runs/stage1" if self.stage == 2 else "")
        self.out = self.out or (f"{self.init.rstrip('/')}-merged" if self.merge else f"runs/stage{self.stage}")
        self.model = self.model or ("" if self.init else "demo/base")
        self.template = self.template or run_setting(self.init, "template", "alpaca")
        pick_device(self)
        for name, least in {"alpha": 0, "batch_size": 1, "lr": 0, "steps": 0, "pairs": 0, "micro_batch_tokens": 1,
                            "lora_rank": 1, "max_length": 1, "clip": 0, "epochs": 0}.items():
            if not getattr(self, name) >= least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least {least}")

def learning_rate(step, steps, s):
    """Linear warm-up over the first share of the steps, then half a cosine to zero."""
    rise = max(1, math.ceil(s.warmup * steps))
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return s.lr * ((step + 1) / rise if step < rise else fall)

def new_folder(out):
    """OUT.partial, empty, to write into: a run appears under its name, by publish(), only when it is whole."""
    partial = out.rstrip("/") + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    return partial

def publish(partial, out):
    shutil.rmtree(out, ignore_errors=True)
    os.rename(partial, out)
    print(f"saved {out}")

def prepare(s):
    """The model (trainable parameters chosen) and its tokenizer, from --init if there is one, else from --model."""
    stored = torch.float32 if s.full else DTYPES[s.dtype]  # --full needs fp32 master weights; a frozen base does not
    model = load_model(s.init or s.model, stored, s.device, s.model)
    if s.full and model.lora:
        raise InputError(f"{s.init} is a LoRA run; expected a full model for --full")
    if not s.full and not model.lora:
        add_lora(model, s.lora_rank, s.lora_alpha, s.lora_targets.split(","), s.lora_dropout)
    if s.max_length > model.config.max_position_embeddings:
        raise InputError(f"--max-length {s.max_length}: the model has {model.config.max_position_embeddings} positions")
    return model, Tokenizer([s.init or s.model, model.source], model.config, s.template)

def merge(s):
    """--merge: the adapter of --init folded into its base, as a full model in the dtype of the base."""
    model = load_model(s.init or s.model, base=s.model)
    if not model.lora:
        raise InputError(f"{s.init or s.model} is a full model; expected a LoRA run, which --init names, for --merge")
    tokenizer = Tokenizer([s.init, model.source], model.config, s.template)
    merge_lora(model)
    out = new_folder(s.out)
    save_model(model, out, tokenizer.folder)
    write_json(os.path.join(out, "settings.json"), asdict(s) | {
        "supervised": run_setting(s.init, "supervised", []), "base": model.source})
    publish(out, s.out)

def train(s):
    if os.path.exists(s.out) and not os.path.exists(os.path.join(s.out, "settings.json")):
        raise InputError(f"{s.out} exists and is no run of train.py; choose another --out")
    if s.init and not os.path.isdir(s.init):
        raise InputError(f"{s.init}: no such run; make it with `python train.py --stage 1`, or name one with --init")
    if s.merge:
        return merge(s)
    torch.manual_seed(s.seed)
    corpus, _ = read_corpus(s.data, s.directions)
    model, tokenizer = prepare(s)
    encoded = Encoded(draw_pairs(corpus, s.pairs, s.seed), tokenizer, s.max_length)
    unlikely, compute = s.stage == 2 and s.alpha > 0, DTYPES[s.dtype]
    total = s.steps * s.batch_size or math.ceil(s.epochs * len(encoded.items))  # samples to visit
    steps = math.ceil(total / s.batch_size)
    trainable = [p for p in model.parameters() if p.requires_grad]
    print(f"stage {s.stage}: {s.init or s.model} -> {s.out}, {len(encoded.items):,} samples, template {s.template}, "
          + (f"twins with alpha {s.alpha:g}, --conflict {s.conflict}" if unlikely else "MLE alone"))
    print(f"{sum(p.numel() for p in trainable):,} of {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{'full' if s.full else 'LoRA'}, {s.dtype} on {s.device}, {steps} steps of {s.batch_size}, rate {s.lr:g}")
    cuda = s.device.startswith("cuda")
    optimizer = torch.optim.AdamW(trainable, lr=s.lr, weight_decay=s.weight_decay, fused=cuda)
    scaler = torch.amp.GradScaler(s.device.split(":")[0], enabled=cuda and s.dtype == "fp16")
    out = new_folder(s.out)
    log = open(os.path.join(out, "log.jsonl"), "w", encoding="utf-8")
    updates, started, seen = 0, time.time(), 0
    model.train()
    bar = tqdm(range(steps), desc=f"stage {s.stage}", unit="step", dynamic_ncols=True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(updates, steps, s)
        # One global batch: its response tokens are counted first, so that any split gives the same gradient.
        batches = encoded.micro_batches(encoded.step_items(step, s.batch_size, total, s.seed), s.micro_batch_tokens,
                                        s.conflict if unlikely else None, random.Random(f"{s.seed} twins {step}"))
        T_mle = sum(b.positives for b in batches)
        T_ul = sum(len(b.y) - b.positives for b in batches)
        mle_total = ul_total = 0.0
        for batch in batches:
            ids, at, y = (tensor.to(s.device) for tensor in (batch.ids, batch.at, batch.y))
            with torch.autocast(s.device.split(":")[0], compute, enabled=compute != torch.float32):
                logits = model(ids, batch.lengths, at=at)  # [R, V], positives and twins in one forward
            mle_sum, _ = loss.mle(logits[:batch.positives], y[:batch.positives])          # under I
            ul_sum, _ = loss.unlikelihood(logits[batch.positives:], y[batch.positives:])  # under I~
            scaler.scale(loss.language_aware(mle_sum, T_mle, ul_sum, T_ul, s.alpha if unlikely else 0.0)).backward()
            mle_total, ul_total = mle_total + mle_sum.item(), ul_total + ul_sum.item()
        if not math.isfinite(mle_total + ul_total):
            raise InputError(f"step {step + 1}: the loss is {mle_total + ul_total}; lower --lr {s.lr:g} or leave fp16")
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trainable, s.clip or math.inf).item()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        updates += scaler.get_scale() >= scale  # a step that fp16 skipped does not advance the schedule
        seen += sum(len(b.ids) for b in batches)
        mle, ul = mle_total / T_mle, ul_total / T_ul if T_ul else None
        row = {"step": step + 1, "loss": mle + s.alpha * (ul or 0), "mle": mle, "ul": ul, "grad_norm": norm,
               "lr": optimizer.param_groups[0]["lr"], "response_tokens": T_mle, "tokens": seen,
               "seconds": round(time.time() - started, 2)}
        log.write(json.dumps(row) + "\n")
        log.flush()
        bar.set_postfix_str(f"mle {mle:.3f}, " + (f"ul {ul:.3f}, " if T_ul else "")
                            + f"{seen / (time.time() - started):,.0f} tokens/s")
    log.close()
    save_model(model, out, tokenizer.folder)
    write_json(os.path.join(out, "settings.json"), asdict(s) | {
        "supervised": ["-".join(pair) for pair in corpus],
        "versions": {"python": platform.python_version(), "torch": torch.__version__}})
    publish(out, s.out)

if __name__ == "__main__":
    run(train, Settings)

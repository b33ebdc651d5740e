"""Tune a LLaMA on translation pairs: stage 1 with Eq. 1, stage 2 with Eq. 3, one loop for both.

python train.py --stage 1                   # MLE on English-centric pairs; makes runs/stage1
python train.py --stage 2 --alpha 0.05      # + unlikelihood of twins; makes runs/stage2
python train.py --stage 2 --resume          # goes on with a stopped run from its checkpoint
torchrun --nproc-per-node 4 train.py ...    # on several GPUs, weights split over them (FSDP2)
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from data import (
    CONFLICTS,
    MicroBatch,
    Prompter,
    Sample,
    TuningSet,
    micro_batches,
    read_general_samples,
    read_samples,
)
from evaluate import measure_dev, prepare_dev
from loss import language_aware, mle, unlikelihood
from model import LlamaForCausalLM, add_lora, build_model, save_model
from plumbing.base.flags import (
    DTYPES,
    DeviceSettings,
    autocast,
    make_deterministic,
    option,
    ours,
    run_script,
)
from plumbing.base.processes import RANK, WORLD, shard, sum_over_processes
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.optimizer import Optimizer, learning_rate
from plumbing.corpus.languages import TEMPLATES, add_languages
from plumbing.run.folder import Run
from plumbing.run.log import describe
from plumbing.run.record import make_record
from plumbing.run.settings import (
    PAPER,
    by_stage,
    describe_preset,
    fill_by_model,
    fill_by_stage,
    lora_of,
    require_init,
    settings_in_use,
    visits_and_steps,
)

WARMUP = 0.03  # share of the steps in which the learning rate rises, before the cosine (paper)
CLIP = 1.0  # largest norm of a step's gradient; the paper names none
LINEARS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass
class Settings(DeviceSettings):
    PRESETS = {"paper": PAPER}

    stage: int = option(1, "1: MLE; 2: MLE + alpha * unlikelihood", "method", choices=[1, 2])
    alpha: float = option(by_stage(0.0, 0.05), "weight of L_UL in Eq. 3", "method", least=0)
    conflict: str = option(
        "target", "twins' instruction: another target, or any other", "method", choices=CONFLICTS
    )
    loss_reduction: str = option(
        "token", "mean over tokens, or over sentences", "method", choices=["token", "sentence"]
    )
    template: str = option(
        "", "prompt; left out: that of --init, or alpaca", "method", choices=TEMPLATES
    )
    preset: str = option(
        "", "the paper's settings; other flags still count", "method", choices=["paper"]
    )
    full: bool = option(
        False, "tune every weight, not LoRA", "method", action=argparse.BooleanOptionalAction
    )
    lora_rank: int = option(64, "rank r of LoRA", "method", least=1)
    lora_alpha: float = option(128.0, "LoRA's scale is lora_alpha / lora_rank", "method")
    lora_dropout: float = option(0.0, "dropout before lora_A", "method", least=0, most=1)
    lora_targets: str = option(LINEARS, "linear layers that get LoRA", "method")

    data: list = option((ours("demo/data/train.tsv"),), "translation files (docs/data.md)", "data")
    directions: str = option("supervised", "en-it,it-en, supervised, zero-shot or all", "data")
    pairs: int = option(by_stage(1200, 0), "pairs of each direction, 0: all", "data", least=0)
    skip_unknown: bool = option(False, "leave out rows without a certain direction", "data")
    languages: str = option("", "file of more languages, {code: name} (docs/data.md)", "data")
    general: list = option((), "files of other instructions, Alpaca JSON: no twins", "data")
    general_share: float = option(
        0.2, "their share of a step, on top of --batch-size", "data", least=1e-4, most=0.95
    )
    max_length: int = option(512, "tokens of prompt and response", "data", least=1)
    dev: list = option((), "files whose loss and OTR are measured at each checkpoint", "data")
    best: str = option("", "end with the best checkpoint by --dev", "data", choices=["mle", "otr"])

    model: str = option("", "base, a Hugging Face folder; left out: demo/base", "model")
    init: str = option("", "run to go on from; left out in stage 2: runs/stage1", "model")
    recompute: bool = option(False, "activation checkpointing: less memory, more time", "model")

    out: str = option("", "run to make; left out: runs/stage1 or runs/stage2", "run")
    lr: float = option(0.0, "peak learning rate; 0: by the base's size", "run", least=0)
    batch_size: int = option(
        0, "samples a step, all GPUs, no twins; 0: by the base's size", "run", least=0, most=10**6
    )
    epochs: float = option(by_stage(1.0, 0.0), "passes over the samples", "run", least=0, most=1e6)
    steps: int = option(by_stage(0, 100), "optimizer steps, instead of --epochs", "run", least=0)
    micro_batch_tokens: int = option(4096, "tokens in one forward pass of one GPU", "run", least=1)
    seed: int = option(
        1, "of pairs, order, twins, LoRA's start, dropout", "run", least=0, most=2**63 - 1
    )
    save_every: int = option(100, "steps between checkpoints; 0: none", "run", least=0)
    resume: bool = option(False, "go on with the stopped run of --out", "run")

    def __post_init__(self):
        fill_by_stage(self)


# One step


def loss_sums(logits: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The sums of L_MLE and of L_UL over a micro-batch, from its logits [R, V]: positives, which
    are under the right instruction I, come before their twins, under a wrong one, I~."""
    y, w = (x.to(logits.device, non_blocking=True) for x in (batch.y, batch.weight))
    n = batch.positives
    mle_sum, _ = mle(logits[:n], y[:n], w[:n])  # of [n, V]
    ul_sum, _ = unlikelihood(logits[n:], y[n:], w[n:])  # of [R - n, V]
    return mle_sum, ul_sum


class StepResult(NamedTuple):
    """What one step found."""

    figures: dict[str, float | None]  # "loss", "mle", "ul" (None without twins), "grad_norm"
    computed: int  # tokens of the forward passes; what several sequences begin with counts once
    updated: bool  # False where something is blamed, or where fp16's loss scale was too large
    blamed: list[MicroBatch]  # where something is not finite; then nothing is updated


def train_step(
    model: LlamaForCausalLM,
    shares: list[list[MicroBatch]],
    optimizer: Optimizer,
    s: Settings,
    loss_fn: Callable = loss_sums,
) -> StepResult:
    """One update from one global batch; shares[rank] are the micro-batches of a process.
    loss_fn: loss_sums, or what takes its place (experiments/penalties.py)."""
    batches = [batch for share in shares for batch in share]
    # The whole batch's response tokens are counted first: any split gives the same gradient.
    mle_weight = sum(b.weight[: b.positives].double().sum().item() for b in batches)
    ul_weight = sum(b.weight[b.positives :].double().sum().item() for b in batches)

    # A row for each micro-batch of every process: sums of L_MLE and L_UL, tokens computed.
    sums = torch.zeros(len(batches), 3, dtype=torch.float64, device=s.device)
    for row, batch in enumerate(shares[RANK], start=RANK * len(shares[RANK])):
        with autocast(s.device, s.dtype):  # mixed precision: matrix products in 16 bits
            logits = model(batch.ids, batch.lengths, at=batch.at)  # [R, V]
        mle_sum, ul_sum = loss_fn(logits, batch)  # in fp32
        objective = language_aware(mle_sum, mle_weight, ul_sum, ul_weight, s.alpha)  # Eq. 3
        # Gradient accumulation: backward() adds to what is there. Over processes FSDP2 adds up too.
        # It does not average, since each loss is already divided by the whole batch's weight.
        optimizer.scale(objective).backward()
        sums[row, :2] = torch.stack([mle_sum, ul_sum]).detach()
        sums[row, 2] = model.computed if batch.pairs else 0
    sum_over_processes(sums)  # each has filled its own rows

    norm = optimizer.clip(CLIP)  # of the true gradient: fp16's loss scale is taken out first
    blamed = find_blame(batches, sums, norm, optimizer)
    updated = not blamed and optimizer.step()  # AdamW; then gradients are zeroed
    figures = summarize(sums[:, :2], mle_weight, ul_weight, norm, s.alpha)
    return StepResult(figures, int(sums[:, 2].sum()), updated, blamed)


def summarize(sums: Tensor, mle_weight: float, ul_weight: float, norm: float, alpha: float) -> dict:
    """The figures of a step for its log, from the sums [micro-batches, 2] of its two losses."""
    mle_mean = sums[:, 0].sum().item() / mle_weight
    ul_mean = sums[:, 1].sum().item() / ul_weight if ul_weight else None
    loss = language_aware(mle_mean, 1, ul_mean or 0.0, 1, alpha)
    return {"loss": loss, "mle": mle_mean, "ul": ul_mean, "grad_norm": norm}


def find_blame(
    batches: list[MicroBatch], sums: Tensor, norm: float, optimizer: Optimizer
) -> list[MicroBatch]:
    """The micro-batches whose losses are not finite. Where the gradient alone is not finite: all of
    them, or none if a too large loss scale of fp16 can explain it. Empty: all is well."""
    finite = sums.isfinite().all(1).tolist()
    blamed = [batch for batch, fine in zip(batches, finite, strict=True) if not fine]
    if not blamed and not math.isfinite(norm) and not optimizer.may_be_scale():
        return batches
    return blamed


# The run


def prepare_model(s: Settings, checkpoint: str | None) -> tuple[LlamaForCausalLM, Tokenizer]:
    """(the model, its trainable parameters chosen; its tokenizer) of a checkpoint, of --init or of
    --model. Raises InputError."""
    start = s.init or s.model
    model, files = build_model(checkpoint or start, s.model)

    torch.manual_seed(s.seed)
    if not s.full and not model.lora:  # stage 2 goes on with the adapter of stage 1
        with torch.device(s.device):
            add_lora(model, lora_of(s))
    if WORLD > 1:
        shard([*model.model.layers, model], s.device)
    # --full: fp32 master weights. LoRA: the frozen base in --dtype, the adapter in fp32.
    files.fill(model, torch.float32 if s.full else DTYPES[s.dtype], s.device)
    if not model.lora:
        model.source = os.path.abspath(start)  # not the checkpoint, which will be deleted
    model.recompute = s.recompute
    return model, Tokenizer([start, model.source], model.config)


def read(s: Settings) -> dict[str, list[Sample]]:
    """The samples of --data, --general and --dev by these names. Raises InputError."""
    return {
        "data": read_samples(s.data, s.directions, s.skip_unknown, s.pairs, s.seed),
        "general": read_general_samples(s.general),
        "dev": read_samples(s.dev, skip_unknown=s.skip_unknown) if s.dev else [],
    }


def batches_of_step(
    tuning_set: TuningSet, step: int, visits: int, s: Settings, world: int = WORLD
) -> list[list[MicroBatch]]:
    """The micro-batches of a step for each of `world` processes: its samples, and unless alpha is 0
    their twins."""
    samples = tuning_set.of_step(step, s.batch_size, visits, s.seed, s.general_share)
    conflict = s.conflict if s.alpha else None
    pairs = tuning_set.with_twins(samples, conflict, Random(f"{s.seed} twins {step}"))
    return micro_batches(pairs, s.micro_batch_tokens, s.loss_reduction, world)


def train(s: Settings, run: Run, loss_fn: Callable = loss_sums) -> None:
    """A run of either stage: read, begin or go on, take the steps, finish."""
    data = read(s)
    record = make_record(settings_in_use(s), data)
    if s.resume and not run.find(record):  # without a checkpoint the run begins at step 0
        return print(f"{s.out} is finished, there is nothing to resume")

    model, tokenizer = prepare_model(s, run.checkpoint)
    prompter = Prompter(tokenizer, s.template)
    tuning_set = TuningSet(data["data"], prompter, s.max_length, data["general"])
    visits, steps = visits_and_steps(s, len(tuning_set.samples))
    tuning_set.prepare(steps, s.batch_size, visits, s.seed, s.general_share)
    if s.alpha:
        tuning_set.require_conflicts(s.conflict)
    dev = prepare_dev(model, data["dev"], prompter, s.max_length) if s.dev else None

    optimizer = Optimizer(model.named_parameters(), s.dtype, s.device)
    print(describe(s, model, len(tuning_set.samples), len(tuning_set.general), steps))
    run.begin(record, model, optimizer, lambda out: save_model(model, out, tokenizer.folder), steps)
    if dev and run.save_is_due(True):  # a checkpoint is written before its --dev is measured
        run.compare(measure_dev(model, dev, s))

    model.train()
    for step in run.steps(f"stage {s.stage}"):
        seed_dropout(s.seed, step)
        rate = learning_rate(run.updates, steps, s.lr, WARMUP)  # skipped updates do not count
        optimizer.set_rate(rate)
        shares = batches_of_step(tuning_set, step, visits, s)
        result = train_step(model, shares, optimizer, s, loss_fn)
        if result.blamed:
            raise run.explosion(result.figures, result.blamed, s.lr)
        run.log(result, shares, rate)
        if run.save_is_due(bool(dev)):
            saved = run.save()  # False: a weight is not finite, and the next step will say so
            if dev and saved:
                run.compare(measure_dev(model, dev, s))
    run.finish()


def seed_dropout(seed: int, step: int) -> None:
    """Dropout of a step is the same however the run got there."""
    torch.manual_seed(Random(f"{seed} dropout {step} {RANK}").getrandbits(63))


def main(s: Settings, loss_fn: Callable = loss_sums) -> None:
    """Train in the run's folder, which nobody else writes meanwhile. Raises InputError."""
    add_languages(s.languages)
    require_init(s)
    _, files = build_model(s.init or s.model, s.model)  # refuses one that is not whole
    fill_by_model(s, files)
    if s.preset:
        print(describe_preset(s))
    make_deterministic(s.device)
    run = Run(s.out, s.save_every, s.best)
    with run.held([s.init, s.model, files.base], s.resume):
        train(s, run, loss_fn)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

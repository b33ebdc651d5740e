"""Tune a LLaMA on translation pairs: stage 1 with Eq. 1, stage 2 with Eq. 3, one loop for both.

python train.py --stage 1                   # MLE on English-centric pairs; makes runs/stage1
python train.py --stage 2 --alpha 0.05      # + unlikelihood of twins; makes runs/stage2
python train.py --stage 2 --resume          # goes on with a stopped run from its checkpoint
torchrun --nproc-per-node 4 train.py ...    # on several GPUs, weights split over them (FSDP2)
python train.py --merge --init runs/stage2  # no tuning: the adapter in its base, a full model
"""

import plumbing.base.interrupts  # noqa: F401, I001 - before the packages, whose import takes seconds

import os
import random
import sys
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

import loss
from data import REDUCTIONS, Batch, Prompter, TuningSet, TwinPair, micro_batches
from model import LlamaForCausalLM, add_lora, build_model, merge_lora, save_model
from plumbing.base import flags as cli
from plumbing.base import processes as distributed
from plumbing.checkpoint.peft import read_adapter
from plumbing.base.flags import option
from plumbing.corpus.corpus import Corpus, read_corpus
from plumbing.run.dev import Dev
from plumbing.base.processes import RANK, WORLD
from plumbing.base.errors import require
from plumbing.corpus.general import general_part, read_general
from plumbing.corpus.languages import TEMPLATES
from plumbing.run.log import SpeedMeter, brief, describe
from plumbing.compute.optimizer import Optimizer, learning_rate
from plumbing.run.progress import Checkpoint, Progress
from plumbing.run.record import checksum, merged_provenance, provenance, read_setting
from plumbing.run.rehearsal import plan
from plumbing.run.folder import Run
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.run.settings import CONFLICTS, TuningSettings, by_stage

FIRST_RUN = "runs/stage1"  # where stage 2 starts
MODES = "any other, another target, or keep the source with another target"
PENALTIES = ["unlikelihood", "preference", "hinge"]


@dataclass
class Settings(TuningSettings):
    stage: int = option(1, "1: MLE; 2: MLE + alpha * unlikelihood", choices=[1, 2])
    alpha: float = option(by_stage(0.0, 0.05), "weight of L_UL (Eq. 3), or of --penalty", least=0)
    conflict: str = option("target", f"twins' instruction: {MODES}", choices=CONFLICTS)
    penalty: str = option("unlikelihood", "L_UL, or instead of it: see loss.py", choices=PENALTIES)
    punish_eos: bool = option(True, "the twins' responses end with EOS")
    loss_reduction: str = option("token", "mean over tokens, or over sentences", choices=REDUCTIONS)
    template: str = option("", "prompt; left out: that of --init, or alpaca", choices=TEMPLATES)
    pairs: int = option(by_stage(1200, 0), "sentence pairs per direction, 0 all", least=0)
    lr: float = option(2e-3, "peak learning rate", least=0)
    batch_size: int = option(
        by_stage(128, 32), "samples a step over all GPUs, no twins", least=1, most=10**6
    )
    epochs: float = option(
        by_stage(1.0, 0.0), "passes over the samples, instead of --steps", least=0, most=1e6
    )
    steps: int = option(by_stage(0, 100), "optimizer steps, instead of --epochs", least=0)
    warmup: float = option(
        0.03, "share of the steps with rising learning rate, before the cosine", least=0, most=1
    )
    max_length: int = option(512, "tokens of prompt and response; responses are never cut", least=1)
    seed: int = option(
        1, "of the pairs, their order, the twins, LoRA's start and dropout", least=0, most=2**63 - 1
    )

    def __post_init__(self):
        self.resolve(FIRST_RUN)


def loss_sums(model: LlamaForCausalLM, batch: Batch, s: Settings) -> tuple:
    """The two sums of losses of a micro-batch, L_MLE and L_UL or what --penalty has in its place;
    positives and twins are in one forward pass."""
    at, y, w = (t.to(s.device) for t in (batch.at, batch.y, batch.weight))
    with cli.autocast(s.device, s.dtype):
        logits = model(batch.ids, batch.lengths, at=at)  # [R, V]
    n = batch.positives
    mle_sum, _ = loss.mle(logits[:n], y[:n], w[:n])  # under I
    wrong = logits[n:], y[n:], w[n:]  # under I~
    if s.penalty == "unlikelihood":
        ul_sum, _ = loss.unlikelihood(*wrong)
    else:  # of the same tokens under both
        same, pair = batch.same.to(s.device), batch.pair.to(s.device)
        ul_sum, _ = getattr(loss, s.penalty)(logits[same], *wrong, pair)
    return mle_sum, ul_sum


class StepResult(NamedTuple):
    """What one step found."""

    # "loss", "mle", "ul" or the penalty's name (None without twins), "grad_norm"
    figures: dict[str, float | None]
    computed: int  # tokens that passed the network; what sequences share does so once
    updated: bool  # False: fp16's loss scale was too large
    blamed: list  # the samples where something is not finite; then nothing is updated


def train_step(model, shares: list, optimizer: Optimizer, s: Settings) -> StepResult:
    """One update from one global batch; shares[rank] are the micro-batches of a process. The
    response tokens of the whole batch are counted first: any split gives the same gradient."""
    batches = [batch for share in shares for batch in share]
    mle_weight = sum(b.weight[: b.positives].double().sum().item() for b in batches)
    ul_weight = sum(b.weight[b.positives :].double().sum().item() for b in batches)

    sums = torch.zeros(len(batches), 3, dtype=torch.float64, device=s.device)
    for row, batch in enumerate(shares[RANK], start=RANK * len(shares[RANK])):  # each has as many
        mle_sum, ul_sum = loss_sums(model, batch, s)
        objective = loss.language_aware(mle_sum, mle_weight, ul_sum, ul_weight, s.alpha)
        optimizer.scale(objective).backward()  # gradients add up, over processes too (FSDP2)
        sums[row, :2] = torch.stack([mle_sum, ul_sum]).detach()
        sums[row, 2] = model.computed if batch.samples else 0  # else idle
    distributed.sum_over_processes(sums)  # each has filled its own rows
    norm = optimizer.clip(s.clip)

    to_blame = optimizer.rows_to_blame(sums, norm)
    blamed = [sample for row in to_blame for sample in batches[row].samples]
    updated = False if to_blame else optimizer.step()
    mle = sums[:, 0].sum().item() / mle_weight
    ul = sums[:, 1].sum().item() / ul_weight if ul_weight else None
    mean = loss.language_aware(mle, 1, ul or 0.0, 1, s.alpha)
    name = "ul" if s.penalty == "unlikelihood" else s.penalty
    figures = {"loss": mean, "mle": mle, name: ul, "grad_norm": norm}
    return StepResult(figures, int(sums[:, 2].sum()), updated, blamed)


def prepare_dev(model: LlamaForCausalLM, corpus: Corpus, prompter: Prompter, s: Settings) -> Dev:
    """--dev, made ready. Raises InputError."""
    import evaluate  # here, since only this needs decoding and langid

    return Dev(sys.modules[__name__], evaluate, model, corpus, prompter, s)


def prepare(s: Settings, checkpoint: Checkpoint | None = None):
    """(the model, its trainable parameters chosen; its tokenizer) of a checkpoint, of --init or of
    --model. Raises InputError."""
    start = s.init or s.model
    model = build_model(checkpoint.folder if checkpoint else start, s.model)
    if s.merge:
        require(model.lora, f"{start} is a full model; expected --init with a LoRA run for --merge")
    s.refuse_misfit(start, model)

    torch.manual_seed(s.seed)
    device, dtype = ("cpu", None) if s.merge else (s.device, cli.DTYPES[s.dtype])
    if not s.full and not model.lora:
        with torch.device(device):
            add_lora(model, s.adapter())
    if WORLD > 1 and not s.merge:
        distributed.shard([*model.model.layers, model], device)
    weights_dtype = torch.float32 if s.full else dtype  # fp32 master weights
    model.files.fill(model, weights_dtype, device, checksum=not (s.full or s.merge))
    if not model.lora:
        model.source = os.path.abspath(start)  # not a checkpoint, which will be deleted
    model.recompute = s.recompute
    return model, Tokenizer([start, model.source], model.config)


def merge(s: Settings, run: Run) -> None:
    """Fold the adapter of --init into its base: a full model in --out."""
    model, tokenizer = prepare(s)
    merge_lora(model)
    run.begin(merged_provenance(asdict(s)))
    save_model(model, run.partial, tokenizer.folder)
    run.publish()


def pairs_of_step(tuning_set: TuningSet, step: int, visits: int, s: Settings) -> list[TwinPair]:
    """A step's samples, where alpha is not 0 with their twins."""
    samples = tuning_set.of_step(step, s.batch_size, visits, s.seed, s.general_share)
    conflict = s.conflict if s.alpha else None
    rng = random.Random(f"{s.seed} twins {step}")
    return tuning_set.with_twins(samples, conflict, rng, s.punish_eos)


def train(s: Settings, run: Run) -> None:
    """A run of either stage: read, begin or go on, take the steps, finish."""
    corpus, _ = read_corpus(s.data, s.directions, None, s.skip_unknown, pairs=s.pairs, seed=s.seed)
    dev_corpus = read_corpus(s.dev, skip_unknown=s.skip_unknown)[0] if s.dev else None
    general = read_general(s.general, tuning=True)
    record = provenance(asdict(s), corpus, dev_corpus, general)
    if s.resume and run.is_finished(record):
        return print(f"{s.out} is finished, there is nothing to resume")
    checkpoint = run.find_checkpoint(record) if s.resume else None

    model, tokenizer = prepare(s, checkpoint)
    prompter = Prompter(tokenizer, s.template)
    tuning_set = TuningSet(corpus, prompter, s.max_length, s.pairs, s.seed, general)
    if s.alpha:
        tuning_set.require_conflicts(s.conflict)
    dev = prepare_dev(model, dev_corpus, prompter, s) if s.dev else None
    visits, steps = s.visits(len(tuning_set.samples))
    ids = [x[1:] for x in tuning_set.samples + tuning_set.general]
    made_of = model.lora, model.files.crc32, checksum(ids)  # another tokenizer gives other ids
    progress = Progress.resume(checkpoint, *made_of, s.best)
    print(describe(s, model, len(tuning_set.samples), len(tuning_set.general), steps))

    optimizer = Optimizer(model.named_parameters(), s.weight_decay, s.dtype, s.device, checkpoint)
    run.begin(record, checkpoint)
    run.open(checkpoint, lambda out: save_model(model, out, tokenizer.folder), optimizer)
    if dev and checkpoint:  # perhaps it was killed between the checkpoint and its --dev
        progress.compare(run.logs.extend(dev.measure(model)), s.best)
    meter = SpeedMeter(model.model.layers, model.lm_head, s.full, s.device)
    bar = distributed.progress_steps(progress.step, steps, f"stage {s.stage}")

    model.train()
    for step in bar:
        meter.start()
        torch.manual_seed(random.Random(f"{s.seed} dropout {step} {RANK}").getrandbits(63))
        rate = learning_rate(progress.updates, steps, s.lr, s.warmup)
        optimizer.set_rate(rate)
        pairs = pairs_of_step(tuning_set, step, visits, s)
        shares = micro_batches(pairs, s.micro_batch_tokens, s.loss_reduction, WORLD)
        result = train_step(model, shares, optimizer, s)
        if result.blamed:
            raise run.explosion(progress, result.figures, result.blamed, s.lr)

        run.prune(progress)
        batches = [batch for share in shares for batch in share if batch.samples]  # none idle
        tokens, supervised = sum(len(b.ids) for b in batches), sum(len(b.y) for b in batches)
        progress.advance(tokens, result.updated)
        row = {"step": progress.step} | result.figures | {"lr": rate}
        row |= {"response_tokens": sum(b.positives for b in batches), "tokens": progress.seen}
        row |= general_part([pair.positive for pair in pairs])
        speed = meter.stop(progress.step, tokens, supervised, result.computed)
        run.logs.write(row, speed)
        bar.set_postfix_str(brief(row, speed))

        due = s.save_every > 0 and (progress.step % s.save_every == 0 or progress.step == steps)
        # The last step's serves --dev: without it run.finish writes the same weights.
        saved = due and (progress.step < steps or dev) and run.save(progress)
        if saved and dev:  # in this order, since decoding may run out of memory
            progress.compare(run.logs.extend(dev.measure(model)), s.best)
    run.finish(progress, s.best)


def main(s: Settings) -> None:
    """What the flags ask for: a run of either stage, or a merged model."""
    if s.plan:
        s.template = s.template or read_setting(s.init, "template", "alpaca")
        return plan(s, sys.modules[__name__])
    made = "make it with `python train.py --stage 1`, or choose --init"
    require(os.path.isdir(s.init or "."), f"{s.init}: no such run; {made}")
    run = Run(s.out, s.keep)
    with run.held():
        run.refuse_to_overwrite(resume=s.resume and not s.merge)
        _, base = read_adapter(s.init or s.model, s.model)
        run.refuse_to_destroy([s.init, s.model, base])
        s.template = s.template or read_setting(s.init, "template", "alpaca")
        (merge if s.merge else train)(s, run)


if __name__ == "__main__":
    cli.run_script(main, Settings)

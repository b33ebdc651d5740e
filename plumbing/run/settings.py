"""Settings of a tuning run that the method does not decide; defaults by stage; presets."""

import argparse
import math
import os
from dataclasses import dataclass, fields

from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.flags import DeviceSettings, flag, option
from plumbing.base.errors import require
from plumbing.run.log import PEAK

CONFLICTS = ["any", "target", "keep-source"]
LINEARS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass(frozen=True)
class by_stage:
    """A default that the setting `stage`, 1 or 2, decides."""

    first: float
    second: float

    def __str__(self):
        return f"{self.first} in stage 1, {self.second} in stage 2"


def of_stage(value: object, stage: int) -> object:
    """The one of two defaults that belongs to a stage; any other value as it is."""
    if isinstance(value, by_stage):
        return value.first if stage == 1 else value.second
    return value


def resolve_stage(s: object) -> None:
    """Put the right one of two defaults into the settings that were left to the stage."""
    for f in fields(s):
        setattr(s, f.name, of_stage(getattr(s, f.name), s.stage))


def spell(name: str, value: object) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else f"--no-{flag(name)[2:]}"
    return f"{flag(name)} {value}"


# The paper's own settings, and what its authors' code does; both tune in full.
PAPER = {
    "full": True,
    "lr": by_stage(2e-5, 2e-6),
    "batch_size": by_stage(128, 8),
    "epochs": by_stage(3.0, 0.0),
    "steps": by_stage(0, 100),
    "pairs": 2000,
    "warmup": 0.03,
    "weight_decay": 0.0,
    "max_length": 512,
    "alpha": by_stage(0.0, 0.05),
    "conflict": "any",
    "loss_reduction": "sentence",
}


@dataclass
class RunSettings(DeviceSettings):
    """Settings of every script that trains: its run's folder, its update, its memory."""

    out: str = option("", "run folder to make; left out: runs/stage1, runs/stage2 or INIT-merged")
    resume: bool = option(False, "go on with the stopped run of --out from its last checkpoint")
    save_every: int = option(100, "steps between checkpoints; 0: none", least=0)
    keep: int = option(2, "how many checkpoints stay, the newest", least=1)
    clip: float = option(1.0, "largest gradient norm; 0: any", least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    micro_batch_tokens: int = option(
        4096, "tokens, twins included, in one forward pass of one GPU", least=1
    )
    recompute: bool = option(
        False, "activation checkpointing: less memory, about a third more time"
    )
    plan: bool = option(False, "no training: print memory, FLOPs and time that it would take")
    gpus: int = option(1, "of --plan: how many share the work", least=1, most=100_000)
    gpu: str = option("", "of --plan: which", choices=list(PEAK))
    mfu: float = option(
        0.35, "of --plan: the share of its peak that is reached", least=0.01, most=1
    )


@dataclass
class TuningSettings(RunSettings):
    """What train.py starts from, and which of its weights it tunes."""

    PRESETS = {"paper": PAPER}

    model: str = option("", "base, a Hugging Face folder; left out: demo/base, or that of --init")
    data: list = option(("demo/data/train.tsv",), "files: TSV, JSON, paired files (docs/data.md)")
    directions: str = option("supervised", "en-it,it-en, supervised (with English), zero-shot, all")
    skip_unknown: bool = option(False, "leave out rows without a certain direction and language")
    general: list = option((), "files of other instructions, Alpaca JSON: samples without twins")
    general_share: float = option(
        0.2, "of a step's samples, with --general: on top of --batch-size", least=1e-4, most=0.95
    )
    preset: str = option(
        "", "paper: its settings for the stage; other flags still count", choices=["paper"]
    )
    init: str = option(
        "", "run or model to start from; left out: none in stage 1, runs/stage1 in stage 2"
    )
    merge: bool = option(False, "no tuning: fold the adapter of --init into its base, in --out")
    dev: list = option((), "files like --data: at each checkpoint loss and OTR in all directions")
    best: str = option("", "end with the checkpoint best by this of --dev", choices=["mle", "otr"])
    full: bool = option(
        False, "tune every weight instead of LoRA", action=argparse.BooleanOptionalAction
    )
    lora_rank: int = option(64, "rank r of LoRA", least=1)
    lora_alpha: float = option(128.0, "LoRA's scale is lora_alpha / lora_rank")
    lora_dropout: float = option(0.0, "dropout before lora_A")
    lora_targets: str = option(LINEARS, "linear layers that get LoRA")

    def resolve(self, first_run: str) -> None:
        """Put in what depends on other settings; first_run: where stage 2 starts. InputError."""
        by_steps, by_epochs = (
            bool(x) and not isinstance(x, by_stage) for x in (self.steps, self.epochs)
        )
        require(not (by_steps and by_epochs), "--steps and --epochs: choose one of them")
        self.steps = 0 if by_epochs else self.steps
        resolve_stage(self)
        self.init = self.init.rstrip("/") or (first_run if self.stage == 2 else "")
        made = f"{self.init}-merged" if self.merge else f"runs/stage{self.stage}"
        self.out = os.path.normpath(self.out or made)
        self.model = self.model or ("" if self.init else "demo/base")
        if self.gpu and self.dtype == "auto":
            self.dtype = "bf16"  # wherever the plan is made
        require(self.dev or not self.best, "--best needs --dev")
        other = self.merge or self.resume
        require(not (self.plan and other), "--plan is of a whole run; leave out --merge, --resume")
        require(self.save_every or not self.dev, "--dev needs --save-every")
        require(self.steps or self.epochs or self.merge, "--epochs 0 without --steps: no training")

    def visits(self, samples: int) -> tuple[int, int]:
        """(visits to samples in the whole run, steps), for so many samples."""
        total = self.steps * self.batch_size if self.steps else math.ceil(self.epochs * samples)
        return total, math.ceil(total / self.batch_size)

    def adapter(self) -> LoraSettings:
        """The LoRA that the settings ask for. Raises InputError."""
        targets = self.lora_targets.split(",")
        return LoraSettings(self.lora_rank, self.lora_alpha, targets, self.lora_dropout)

    def refuse_misfit(self, start: str, found: object) -> None:
        """Raise InputError for settings that do not go with what a run starts from, a model or its
        folder."""
        if self.full and not self.merge:
            asked = f"--preset {self.preset}" if self.preset else "--full"
            expected = f"expected a full model for {asked} (--merge makes one), or --no-full"
            require(not found.lora, f"{start} is a LoRA run; {expected}")
        most = found.config.max_position_embeddings
        fits = self.merge or self.max_length <= most
        require(fits, f"--max-length {self.max_length}: the model has {most} positions")

    def describe_preset(self) -> str:
        """A preset's settings in full, for a run's first lines; "" without one."""
        if not self.preset:
            return ""
        values = {name: of_stage(x, self.stage) for name, x in self.PRESETS[self.preset].items()}
        del values["epochs" if self.steps else "steps"]  # of which the other decides
        said = [spell(name, value) for name, value in values.items()]
        own = {name: getattr(self, name) for name in values}
        changed = [spell(name, value) for name, value in own.items() if value != values[name]]
        text = f"--preset {self.preset}: {', '.join(said)}"
        return text + (f"; but {', '.join(changed)}" if changed else "")

"""What train.py's settings mean beyond their flags: defaults by stage, the paper's preset."""

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

from plumbing.base.errors import InputError, require
from plumbing.base.files import FROM_HUB
from plumbing.base.flags import flag, ours, refuse_given
from plumbing.base.folders import SETTINGS
from plumbing.checkpoint.folder import ModelFolder
from plumbing.checkpoint.peft import LoraSettings, errors_of
from plumbing.corpus.languages import TEMPLATES
from plumbing.run.record import read_setting

LORA_FLAGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


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


# The paper's own settings, and what its authors' code does; both tune in full.
PAPER = {
    "full": True,
    "lr": by_stage(2e-5, 2e-6),
    "batch_size": by_stage(128, 8),
    "epochs": by_stage(3.0, 0.0),
    "steps": by_stage(0, 100),
    "pairs": 2000,
    "max_length": 512,
    "alpha": by_stage(0.0, 0.05),
    "conflict": "any",
    "loss_reduction": "sentence",
}


class Usual(NamedTuple):
    """What is taken for bases of up to so many parameters."""

    parameters: float
    lr: by_stage
    batch_size: by_stage


# With LoRA, up to 20 million: the demo's. In stage 2 three rates were tried, and batches of 8 and
# 32; in stage 1 no others. Up to 200 million: SmolLM2-135M's, the best of four rates in stage 1 and
# of two in stage 2; no other batch. In full: the better of two rates on the demo's base
# (experiments/README.md, demo/README.md).
USUAL = [
    Usual(20e6, by_stage(2e-3, 2e-3), by_stage(128, 32)),
    Usual(200e6, by_stage(2e-3, 2e-4), by_stage(16, 16)),
]
USUAL_FULL = [Usual(20e6, by_stage(1e-3, 1e-3), by_stage(128, 32))]


def fill_usual_rate(s, parameters: int) -> None:
    """Put what is usual for a base of so many parameters where the settings have no learning rate
    or no batch. Raises InputError where nothing was measured."""
    if s.lr and s.batch_size:
        return
    known = next((x for x in (USUAL_FULL if s.full else USUAL) if parameters <= x.parameters), None)
    if not known:
        missing = [flag(name) for name in ("lr", "batch_size") if not getattr(s, name)]
        kind, they = "full tuning" if s.full else "LoRA", "they" if len(missing) > 1 else "it"
        sentence = f"{' and '.join(missing)}: nothing was measured for {kind} of a base of "
        sentence += f"{parameters / 1e6:,.0f} million parameters, so {they} must be given"
        raise InputError(f"{sentence}; a start is {proposal_of(s)}")
    s.lr = s.lr or of_stage(known.lr, s.stage)
    s.batch_size = s.batch_size or of_stage(known.batch_size, s.stage)


def proposal_of(s) -> str:
    """A learning rate and a batch to begin with, where nothing was measured."""
    lr = read_setting(s.init, "lr", 0.0)
    if s.stage == 2 and lr:
        rate = f"--lr {lr / 10:g} --batch-size 8"
        return f"{rate}, a tenth of the rate with which {s.init} was tuned, and the paper's batch"
    if s.full:
        return "--preset paper, whose rates are 2e-5 in stage 1 and 2e-6 in stage 2"
    usual = "--lr 2e-4 --batch-size 128" if s.stage == 1 else "--lr 2e-5 --batch-size 8"
    return f"{usual}, which was not measured either (docs/checkpoints.md)"


def fill_by_stage(s) -> None:
    """Put into train.py's settings what depends on others of them. Raises InputError."""
    by_steps, by_epochs = (bool(x) and not isinstance(x, by_stage) for x in (s.steps, s.epochs))
    require(not (by_steps and by_epochs), "--steps and --epochs: choose one of them")
    s.steps = 0 if by_epochs else s.steps
    for f in fields(s):
        setattr(s, f.name, of_stage(getattr(s, f.name), s.stage))
    first = f"--alpha {s.alpha:g} with --stage 1, which is MLE alone; expected --stage 2"
    require(s.stage == 2 or not s.alpha > 0, first)
    usual = ours("runs/stage1") if s.stage == 2 else ""
    s.init = os.path.normpath(s.init) if s.init else usual
    s.model = s.model or ("" if s.init else ours("demo/base"))
    s.out = os.path.normpath(s.out or ours(f"runs/stage{s.stage}"))
    if os.path.islink(s.out) or os.path.basename(s.out) in (".", ".."):
        s.out = os.path.realpath(s.out)  # whose neighbour OUT.partial is
    require(s.dev or not s.best, "--best needs --dev")
    require(s.save_every or not s.dev, "--dev needs --save-every")
    require(s.steps or s.epochs, "--epochs 0 without --steps: no training")


def unused(s) -> dict[str, str]:
    """{name: why} of train.py's settings that do not count beside the others. Their flags are
    refused, and settings.json leaves them out."""
    reasons = {}
    if s.full:
        reasons |= dict.fromkeys(LORA_FLAGS, "every weight is tuned (--full)")
    if not s.alpha:
        reasons["conflict"] = "alpha is 0, so there are no twins"
    if not s.general:
        reasons["general_share"] = "there is no --general"
    return reasons


def refuse_unused(s) -> None:
    """Raise InputError where the command line gave a setting that does not count."""
    for name, why in unused(s).items():
        refuse_given(s, [name], why)


def settings_in_use(s) -> dict[str, object]:
    """train.py's settings but for those that do not count."""
    return {name: value for name, value in asdict(s).items() if name not in unused(s)}


def adopt(s, lora: LoraSettings) -> None:
    """Put the LoRA that a run goes on with into train.py's settings. Raises InputError for a flag
    that asks for another one."""
    theirs = lora.target_modules
    targets = theirs if isinstance(theirs, str) else ",".join(theirs)
    with errors_of(s.init or s.model):
        values = (int(lora.r), float(lora.lora_alpha), float(lora.lora_dropout), targets)
    for name, value in zip(LORA_FLAGS, values, strict=True):
        asked = getattr(s, name)
        same = asked == value or (name == "lora_targets" and {*asked.split(",")} == {*theirs})
        sentence = (
            f"{flag(name)} {asked}, but the adapter of {s.init or s.model} has {value}, and is "
            "continued"
        )
        require(same or name not in s.given, f"{sentence} as it is; leave the flag out")
        setattr(s, name, value)


def require_init(s) -> None:
    """Raise InputError where the run to go on from is not there."""
    how = f"--stage 1 --out {s.init}" if s.stage == 2 else f"--out {s.init}"
    how += f" --model {s.model}" if s.model else ""
    advice = f"make it with `python train.py {how}`, or choose another --init"
    if "init" in s.given:
        advice += f"; {FROM_HUB}"
    require(os.path.isdir(s.init or "."), f"{s.init}: no such run; {advice}")


def fill_by_model(s, files: ModelFolder) -> None:
    """Put into train.py's settings what was left out, and what the folder decides that the run
    starts from: LoRA that is gone on with, template, learning rate, batch. Raises InputError for
    what does not go with that folder, or does not count."""
    refuse_unused(s)
    refuse_misfit(s, files)
    if files.lora:
        adopt(s, files.lora)
    s.template = s.template or read_setting(files.folder, "template", "alpaca")
    known = f"prompts.json has no template {s.template}; it has {' '.join(TEMPLATES)}"
    require(s.template in TEMPLATES, known)
    if s.resume:
        fill_begun_rate(s)
    fill_usual_rate(s, files.config.parameters)


def fill_begun_rate(s) -> None:
    """Put the learning rate and the batch of the run that is gone on with in the place of those
    that the command line left out."""
    partial = f"{s.out}.partial"
    begun = partial if os.path.exists(os.path.join(partial, SETTINGS)) else s.out
    for name in {"lr", "batch_size"} - s.given:
        value = getattr(s, name)
        setattr(s, name, read_setting(begun, name, type(value)()) or value)


def visits_and_steps(s, samples: int) -> tuple[int, int]:
    """(visits to samples in the whole run, steps), for so many samples."""
    total = s.steps * s.batch_size if s.steps else math.ceil(s.epochs * samples)
    return total, math.ceil(total / s.batch_size)


def lora_of(s) -> LoraSettings:
    """The LoRA that the settings ask for. Raises InputError."""
    return LoraSettings(s.lora_rank, s.lora_alpha, s.lora_targets.split(","), s.lora_dropout)


def refuse_misfit(s, files: ModelFolder) -> None:
    """Raise InputError for settings that do not go with what a run starts from: an adapter or none,
    its base, the model's positions."""
    asked = f"--preset {s.preset}" if s.preset else "--full"
    expected = f"expected a full model for {asked} (tools.merge makes one), or --no-full"
    require(not (s.full and files.lora), f"{files.folder} is a LoRA run; {expected}")
    other = os.path.realpath(s.model or s.init) != os.path.realpath(s.init)
    if s.init and not files.lora and other:
        refuse_given(s, ["model"], f"{s.init} is a whole model, which has no other base")
    positions = files.config.max_position_embeddings
    sentence = f"--max-length {s.max_length}: the model has {positions} positions"
    require(s.max_length <= positions, sentence)


def describe_preset(s) -> str:
    """A preset's settings in full, for a run's first lines; "" without one."""
    if not s.preset:
        return ""
    values = {name: of_stage(x, s.stage) for name, x in s.PRESETS[s.preset].items()}
    del values["epochs" if values["steps"] else "steps"]  # of which the other decides
    values = {name: value for name, value in values.items() if name not in unused(s)}
    said = [spell(name, value) for name, value in values.items()]
    counting = [name for name in values if name not in ("epochs", "steps")]
    counting.append("steps" if s.steps else "epochs")
    changed = [spell(x, getattr(s, x)) for x in counting if getattr(s, x) != values.get(x)]
    text = f"--preset {s.preset}: {', '.join(said)}"
    return text + (f"; but {', '.join(changed)}" if changed else "")


def spell(name: str, value: object) -> str:
    """A setting as it is written on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else f"--no-{flag(name)[2:]}"
    return f"{flag(name)} {value}"

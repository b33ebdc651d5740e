"""A LoRA adapter's folder in PEFT's format: its settings, and the layers that they mean."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

from plumbing.base.errors import (
    InputError,
    require,
    require_positive,
    require_supported,
    require_type,
)
from plumbing.base.files import FROM_HUB, read_json, require_folder, write_json

PREFIX = "base_model.model."  # of every tensor name in the files
# Fields of adapter_config.json that do not change what is computed ...
UNUSED_FIELDS = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path"}
UNUSED_FIELDS |= {"revision", "inference_mode", "megatron_core", "qalora_group_size"}
# ... and those that may have these values alone; any other field must be empty.
SUPPORTED_VALUES = {
    "peft_type": ["LORA"],
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian"],
}
NEEDED_FIELDS = ("r", "lora_alpha", "target_modules")
MERGED = "PEFT's merge_and_unload() and save_pretrained(), of the model and of its tokenizer, make "
MERGED += "a whole model's folder: name that one"
EMPTY = [None, False, "", [], {}]


@dataclass
class LoraSettings:
    """The fields of adapter_config.json that shape LoRA, named as in the file. target_modules is a
    list of last names (q_proj) or a regular expression of whole names; the patterns, {regular
    expression: value}, set r and lora_alpha of the layers whose names end so. The scale is
    lora_alpha / r, with use_rslora lora_alpha / sqrt(r). Raises InputError."""

    r: int
    lora_alpha: float
    target_modules: list[str] | str
    lora_dropout: float = 0.0
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    def __post_init__(self):
        names = self.target_modules
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        sentence = f"target_modules {names!r}: expected names or a regular expression"
        require(listed or isinstance(names, str), sentence)
        number = type(self.lora_dropout) in (int, float)
        sentence = f"LoRA dropout {self.lora_dropout!r}: expected 0 to 1"
        require(number and 0 <= self.lora_dropout <= 1, sentence)
        self.rank_pattern = self.rank_pattern or {}  # the file may say null
        self.alpha_pattern = self.alpha_pattern or {}
        for name in ("rank_pattern", "alpha_pattern"):
            require_type(name, getattr(self, name), dict)
        require_type("use_rslora", self.use_rslora, bool)


class LoraTarget(NamedTuple):
    """A linear layer that gets LoRA."""

    name: str
    r: int
    alpha: float


def config_path(folder: str) -> str:
    return os.path.join(folder, "adapter_config.json")


def read_adapter(folder: str, base: str | None = None) -> tuple[LoraSettings | None, str]:
    """(the settings, the folder of the base) of an adapter; (None, folder) of a whole model. `base`
    replaces the folder that the adapter names. What would change the computation in another way is
    refused by name. Raises InputError."""
    require_folder(folder, "a model in Hugging Face format, an adapter or a run")
    if not os.path.exists(config_path(folder)):
        whole = os.path.exists(os.path.join(folder, "config.json"))
        weights = os.path.exists(os.path.join(folder, "adapter_model.safetensors"))
        sentence = f"{config_path(folder)}: no such file; adapter_model.safetensors needs it"
        require(whole or not weights, sentence)
        return None, folder
    path, known = config_path(folder), {f.name for f in fields(LoraSettings)}
    raw = {"peft_type": None} | read_json(path)
    strange = sorted(raw.keys() - known - UNUSED_FIELDS, key=lambda name: name != "peft_type")
    for name in strange:  # another kind of adapter is said before its fields
        advice = MERGED if name != "peft_type" else ""
        require_supported(path, name, raw[name], SUPPORTED_VALUES.get(name, EMPTY), advice)
    for name in NEEDED_FIELDS:
        require(name in raw, f"{path}: {name} is missing; expected a LoRA adapter in PEFT's format")
    source = base or raw.get("base_model_name_or_path")
    sentence = f"{path}: base model {source!r} is no folder here; name the folder with --model"
    require(os.path.isdir(str(source)), f"{sentence}; {FROM_HUB}")
    twice = os.path.exists(config_path(source)) and not os.path.samefile(source, folder)
    alone = not os.path.exists(os.path.join(source, "config.json"))
    sentence = f"{source} is an adapter, and no base model: continue it with --init, or merge it "
    sentence += "with tools.merge; expected a whole model"
    require(not (twice or alone and os.path.exists(config_path(source))), sentence)
    with errors_of(folder):
        return LoraSettings(**{name: raw[name] for name in known & raw.keys()}), source


def write_adapter_config(folder: str, settings: LoraSettings, base: str) -> None:
    """Write adapter_config.json, so that PEFT reads the same adapter."""
    extra = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(config_path(folder), asdict(settings) | extra)


@contextmanager
def errors_of(folder: str) -> Iterator[None]:
    """Within it, what is wrong with an adapter's settings becomes an InputError naming the file."""
    try:
        yield
    except (InputError, TypeError, ValueError, AttributeError) as error:
        sentence = f"{config_path(folder)}: {error}; expected the settings of a LoRA adapter"
        raise InputError(f"{sentence} in PEFT's format") from None


def lora_targets(linears: list[str], settings: LoraSettings) -> list[LoraTarget]:
    """The layers among `linears`, in their order, that the settings mean. Raises InputError."""
    ends = settings.target_modules
    if isinstance(ends, str):
        chosen = [matching(ends, linears)]
    else:
        chosen = [[name for name in linears if f".{name}".endswith(f".{end}")] for end in ends]
    last_names = ", ".join(sorted({name.split(".")[-1] for name in linears}))
    sentence = f"LoRA targets {ends!r}: expected some of {last_names}"
    require(chosen and all(chosen), sentence)
    ranks, alphas = settings.rank_pattern, settings.alpha_pattern
    in_rank, in_alpha = by_pattern(ranks, linears), by_pattern(alphas, linears)
    targets = []
    for name in linears:
        if any(name in names for names in chosen):
            rank = in_rank.get(name, settings.r)
            alpha = in_alpha.get(name, settings.lora_alpha)
            require_positive(f"rank of {name}", rank, int)
            require_positive(f"lora_alpha of {name}", alpha, float)
            targets.append(LoraTarget(name, rank, alpha))
    return targets


def by_pattern(values: dict[str, float], names: list[str]) -> dict[str, float]:
    """{layer: its value}: that of the first pattern that the end of its name matches."""
    found = {}
    for pattern, value in values.items():
        matched = matching(rf"(.*\.)?({pattern})", names)
        found = dict.fromkeys(matched, value) | found
    return found


def matching(pattern: str, names: list[str]) -> list[str]:
    """The names that the whole of a regular expression matches. Raises InputError."""
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{pattern!r} is no regular expression ({error})") from None

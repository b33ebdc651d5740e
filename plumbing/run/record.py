"""What a run is made of, as its settings.json says it, and what of it --resume may change."""

import json
import os
import platform
import subprocess
import zlib

import torch

from plumbing.base.errors import plain, require
from plumbing.base.files import ROOT, read_json
from plumbing.base.folders import SETTINGS
from plumbing.base.processes import WORLD, require_agreement
from plumbing.checkpoint.card import base_of
from plumbing.checkpoint.folder import base_checksum, model_files, weights_of
from plumbing.checkpoint.peft import read_adapter
from plumbing.checkpoint.tensors import checksum_of
from plumbing.corpus.languages import LANGUAGES, TEMPLATES

# What may be another when a run is gone on with ...
MAY_CHANGE = {"resume", "save_every", "device", "recompute", "micro_batch_tokens"}
MAY_CHANGE |= {"lr", "dtype", "versions"}
# ... and where things lie: what lies there is compared.
MAY_CHANGE |= {"out", "model", "init", "data", "dev", "general", "base", "languages"}


def read_setting(folder: str, name: str, default: object) -> object:
    """What settings.json of a run says of `name`; the default where it says nothing of its type. A
    folder "" is no run."""
    path = os.path.join(folder, SETTINGS)
    if not folder or not os.path.exists(path):
        return default
    value = read_json(path).get(name)
    return value if isinstance(value, type(default)) else default


def make_record(settings: dict, data: dict[str, list]) -> dict:
    """What a run is made of: settings, checksums of its samples, {"data": samples, "dev": ...}, and
    of the model that it starts from, versions. Raises InputError where a node has other files."""
    start = settings["init"] or settings["model"]
    lora, source = read_adapter(start, settings["model"])
    sums = {f"{name}_crc32": checksum(samples) for name, samples in data.items()}
    of_base, of_model = base_checksum(source), model_files(start, settings["model"])
    others = of_model[len(weights_of(source)) :]  # those come first
    sums["start_crc32"] = checksum_of(others, of_base)
    sums |= {"adapter_crc32": checksum(lora)} if lora else {}
    for name, value in sums.items():
        require_agreement(name, value)
    return (
        json.loads(json.dumps(settings))
        | sums
        | {
            "base": base_of(start, settings["model"], bool(lora or settings["full"]))
            | {"crc32": of_base},
            "names": names_of(data),
            "supervised": list(dict.fromkeys(sample.name for sample in data["data"])),
            "prompt": TEMPLATES[settings["template"]],
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "processes": WORLD,
                "git": git_commit(),
            },
        }
    )


def names_of(data: dict[str, list]) -> dict[str, str]:
    """{code: name} of the languages of some samples, as the prompts have them."""
    directions = (sample.direction or () for samples in data.values() for sample in samples)
    return {code: LANGUAGES[code] for code in sorted({x for pair in directions for x in pair})}


def checksum(value: object) -> int:
    """CRC-32 of what Python prints for a value."""
    return zlib.crc32(repr(value).encode())


def refuse_changes(folder: str, begun: dict, record: dict) -> None:
    """Raise InputError where a run was begun with another record, but for what may change."""
    older = f"{folder} is no training that this version of train.py began"
    require("start_crc32" in begun and "prompt" in begun, f"{older}: choose another --out")
    changed = [
        f"{name} is {plain(str(value), 100)}, was {plain(str(begun.get(name)), 100)}"
        for name, value in record.items()
        if name not in MAY_CHANGE and begun.get(name) != value
    ]
    sentence = f"--resume: {'; '.join(changed)} when {folder} was begun"
    if "crc32" in sentence:
        sentence += " (crc32: a checksum of the contents)"
    require(not changed, f"{sentence}; choose another --out")


def supervised_directions(folder: str) -> list[tuple[str, str]]:
    """What a model was tuned on, as its settings.json says; what is no direction is left out."""
    names = (str(name).split("-") for name in read_setting(folder, "supervised", []))
    return [(x[0], x[1]) for x in names if len(x) == 2 and {*x} <= LANGUAGES.keys()]


def git_commit() -> str:
    """The commit of this code, with -dirty where files were changed."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"

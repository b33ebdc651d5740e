"""What a run is made of, as its settings.json says it."""

import json
import os
import platform
import re
import subprocess
import zlib

import torch

from plumbing.checkpoint.peft import read_adapter
from plumbing.corpus.corpus import Corpus
from plumbing.base.processes import WORLD, require_agreement
from plumbing.corpus.drawing import Checksum, Drawn
from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import ROOT, read_json
from plumbing.checkpoint.folder import fingerprint
from plumbing.corpus.languages import LANGUAGES

SETTINGS, CARD = "settings.json", "README.md"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+")  # of huggingface_hub
LICENSE = re.compile(r"^(license(?:_name|_link)?): *[\"']?([\w.:/+-]+)[\"']? *$", re.M | re.ASCII)
FRONT = re.compile(r"\s*---\r?\n(.*?)\n---\s*(\n|$)", re.S)
# What may be another when a run is gone on with ...
MAY_CHANGE = {"resume", "save_every", "keep", "device", "recompute", "micro_batch_tokens"}
MAY_CHANGE |= {"lr", "dtype", "versions", "plan", "gpus", "gpu", "mfu"}
# ... and where things lie: what lies there is compared.
MAY_CHANGE |= {"out", "model", "init", "data", "dev", "general", "base"}


def read_setting(folder: str, name: str, default: object) -> object:
    """What settings.json of a run says of `name`; the default where it says nothing of its type. A
    folder "" is no run."""
    path = os.path.join(folder, SETTINGS)
    if not folder or not os.path.exists(path):
        return default
    value = read_json(path).get(name)
    return value if isinstance(value, type(default)) else default


def tuned_directions(folders: list[str]) -> list[tuple[str, str]]:
    """What the first of these models that says so was tuned on; none of them: an empty list.
    Raises InputError where one is no folder."""
    for folder in folders:
        expected = "expected a run of train.py or a model in Hugging Face format"
        require(os.path.isdir(folder), f"{folder}: no such folder; {expected}")
    return next(filter(None, map(supervised_directions, folders)), [])


def supervised_directions(folder: str) -> list[tuple[str, str]]:
    """What a model was tuned on, as its settings.json says; what is no direction is left out."""
    names = (str(name).split("-") for name in read_setting(folder, "supervised", []))
    return [(x[0], x[1]) for x in names if len(x) == 2 and {*x} <= LANGUAGES.keys()]


def tuning_setting(folder: str, name: str, default: object) -> object:
    """As read_setting, but of a merged model what the run that tuned it was told."""
    tuned = read_setting(folder, "tuned", {})
    if not tuned:
        return read_setting(folder, name, default)
    return tuned[name] if isinstance(tuned.get(name), type(default)) else default


def provenance(settings: dict, corpus: Corpus, dev: Corpus | None, general: list) -> dict:
    """What a run is made of: settings, directions, checksums of their data, of other instructions
    and of the model that it starts from, versions. Raises InputError where a node has other data
    or another model."""
    record = json.loads(json.dumps(settings)) | {
        "start_crc32": fingerprint(settings["init"] or settings["model"], settings["model"]),
        "base": describe_base(settings["init"] or settings["model"], settings["model"]),
        "supervised": ["-".join(direction) for direction in corpus],
        "data_crc32": corpus_checksums(corpus),
        "dev_crc32": corpus_checksums(dev or {}),
        "general_crc32": Checksum(general).value(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "processes": WORLD,
            "git": git_commit(),
        },
    }
    for name in ("start_crc32", "data_crc32", "dev_crc32", "general_crc32"):
        require_agreement(name, record[name])
    return record


def merged_provenance(settings: dict) -> dict:
    """What a merged model is made of: the settings of merging, and of the run that tuned it."""
    path = os.path.join(settings["init"], SETTINGS)
    tuned = read_json(path) if os.path.exists(path) else {}
    return settings | {
        "base": describe_base(settings["init"], settings["model"]),
        "supervised": tuned.get("supervised", []),
        "tuned": tuned,
    }


def describe_base(start: str, model: str) -> dict:
    """{"name": on the Hub, "folder": its last name, "license": lines of its card} of the base of a
    run that starts from a folder, for settings.json; what is not known is left out. model:
    replaces the base that an adapter names."""
    if os.path.exists(os.path.join(start, SETTINGS)):
        known = read_json(os.path.join(start, SETTINGS)).get("base")
        if isinstance(known, dict):
            return known
    _, folder = read_adapter(start, model)
    folder = os.path.realpath(folder)
    found = {"name": hub_name(folder), "folder": os.path.basename(folder)}
    found["license"] = licence_lines(os.path.join(folder, CARD))
    return {name: value for name, value in found.items() if value}


def hub_name(folder: str) -> str:
    """The Hub's name of a model, by the cache that its folder lies in or by its config.json; ""
    where neither says it: another text, a path perhaps, is not one."""
    if in_cache := IN_CACHE.search(folder):
        return "/".join(in_cache.groups())
    try:
        name = str(read_json(os.path.join(folder, "config.json")).get("_name_or_path"))
    except InputError:
        return ""
    return name if HUB_NAME.fullmatch(name) and not os.path.exists(name) else ""


def licence_lines(path: str) -> dict[str, str]:
    """What the front matter of a card says of the licence."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            front = FRONT.match(file.read(1 << 16))
    except OSError:
        return {}
    found = dict(LICENSE.findall(front[1])) if front else {}
    public = re.match(r"https?://|LICENSE", found.get("license_link", ""))  # else a path perhaps
    return found if public else {k: v for k, v in found.items() if k != "license_link"}


def corpus_checksums(corpus: Corpus) -> dict[str, int]:
    """Of all samples of each direction, also where some of them were drawn."""
    crcs = (x.crc32 if isinstance(x, Drawn) else Checksum(x).value() for x in corpus.values())
    return dict(zip(map("-".join, corpus), crcs, strict=True))


def checksum(value: object) -> int:
    """CRC-32 of what Python prints for a value."""
    return zlib.crc32(repr(value).encode())


def refuse_changes(folder: str, begun: dict, record: dict) -> None:
    """Raise InputError where a run was begun with another record, but for what may change."""
    older = f"{folder} is no training that this version of train.py began"
    require("start_crc32" in begun, f"{older}: choose another --out")
    changed = [
        f"{name} is {plain(str(value), 100)}, was {plain(str(begun.get(name)), 100)}"
        for name, value in record.items()
        if name not in MAY_CHANGE and begun.get(name) != value
    ]
    sentence = f"--resume: {'; '.join(changed)} when {folder} was begun"
    if "crc32" in sentence:
        sentence += " (crc32: a checksum of the contents)"
    require(not changed, f"{sentence}; choose another --out")


def git_commit() -> str:
    """The commit of this code, with -dirty where files were changed."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"

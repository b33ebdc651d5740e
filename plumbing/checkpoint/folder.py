"""A model's folder in Hugging Face format, or an adapter's and its base's: checked, read, written.

Weights are found whole on the disk, in the right shapes, before memory is taken for them.
"""

import functools
import math
import os
import shutil

import torch
from torch import nn

from plumbing.base.errors import require
from plumbing.base.files import read_json, require_file
from plumbing.base.folders import SETTINGS
from plumbing.base.processes import RANK
from plumbing.checkpoint import peft, tensors
from plumbing.checkpoint.config import GENERATION, Config
from plumbing.checkpoint.peft import LoraSettings

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
# Files that go with the weights.
COMPANIONS = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
COMPANIONS += ["special_tokens_map.json", "chat_template.jinja", GENERATION]


class ModelFolder:
    """A folder with a whole model, or with an adapter on a base, whose configuration was read.
    base: replaces the folder that the adapter names. Raises InputError."""

    def __init__(self, folder: str, base: str | None = None):
        self.folder = folder
        self.lora, self.base = peft.read_adapter(folder, base)
        if self.lora:
            refuse_other_base(folder, self.base)
        self.config = Config.load(self.base)
        self.source = os.path.abspath(self.base)  # as an adapter's configuration names it
        for name in COMPANIONS:
            path = os.path.join(self.base, name)
            if os.path.exists(path):  # said now, since it is copied when all work is done
                require_file(path, "a file that goes with the weights")

    def locate(self, network: nn.Module) -> None:
        """Find every weight of a network of this configuration, and no other, on the disk in the
        right shapes: before memory is taken for them. Raises InputError."""
        parameters = dict(network.named_parameters(remove_duplicate=False))
        base = {name: p for name, p in parameters.items() if "lora_" not in name}
        tied = [HEAD] if self.config.tie_word_embeddings else []
        self.places = tensors.locate_tensors(self.base, "model", base, tied)
        self.lora_places = {}
        if self.lora:
            lora = {name: p for name, p in parameters.items() if "lora_" in name}
            if any(name.startswith("lm_head.") for name in lora):
                lora[HEAD] = parameters[HEAD]  # PEFT saves the base weight beside it
            stem, prefix = "adapter_model", peft.PREFIX
            self.lora_places = tensors.locate_tensors(self.folder, stem, lora, [HEAD], prefix)

    def fill(self, network: nn.Module, dtype: torch.dtype | None, device: str) -> None:
        """Read every weight of a network that was given to locate(), in `dtype` (None: as stored;
        LoRA is fp32). LoRA that is not the folder's stays as it is. Raises InputError."""
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self.check_head()
        read = tensors.read_tensors(self.places, parameters, dtype, device)
        state = dict(read)
        if self.config.tie_word_embeddings:
            equal = torch.equal(state.setdefault(HEAD, state[TABLE]), state[TABLE])
            sentence = f"config.json ties the word embeddings, but {HEAD} differs from {TABLE}"
            require(equal, f"{self.base}: {sentence}")
        state |= tensors.read_tensors(self.lora_places, parameters, torch.float32, device)
        network.load_state_dict(state, strict=False, assign=True)
        network.tie()

    def check_head(self) -> None:
        """Raise InputError where the adapter brings another lm_head than the base has."""
        copy = self.lora_places.pop(HEAD, None)
        if copy:
            own = self.places.get(HEAD) or self.places[TABLE]
            pair = tensors.read_tensors({"own": own, "copy": copy}, {"own": None, "copy": None})
            (_, own), (_, copy) = pair
            sentence = f"its {HEAD} is not that of {self.base}; name the right base with --model"
            require(torch.equal(own.to(copy.dtype), copy), f"{self.folder}: {sentence}")


def weights_of(folder: str) -> list[str]:
    """The files of the weights of a whole model. Raises InputError where they are not there."""
    files = tensors.find_files(folder, "model")
    for path in files:
        require_file(path, "a whole safetensors file; copy it again")
    return files


def base_checksum(folder: str) -> int:
    """CRC-32 of the weights of a whole model. Raises InputError."""
    paths = weights_of(folder)
    return checksum_once(tuple(paths), tuple(os.stat(path).st_mtime_ns for path in paths))


@functools.lru_cache
def checksum_once(paths: tuple[str, ...], _changed: tuple[int, ...]) -> int:
    """Files that do not change are read once: a script may build a model several times."""
    return tensors.checksum_of(list(paths))


def refuse_other_base(folder: str, base: str) -> None:
    """Raise InputError where a run, as its settings.json says, was tuned on other weights than this
    base has. Its adapter means nothing there, even where all shapes fit."""
    path = os.path.join(folder, SETTINGS)
    known = read_json(path).get("base") if os.path.exists(path) else None
    expected = known.get("crc32") if isinstance(known, dict) else None
    if isinstance(expected, int):
        found = base_checksum(base)
        sentence = f"{base} has other weights, or other files of them (checksum {found:08x}), than "
        sentence += f"the base that {folder} was tuned on ({expected:08x}); name that with --model"
        require(found == expected, sentence)


def model_files(folder: str, base: str | None = None) -> list[str]:
    """The files that decide what a model makes of a text: weights, configuration and tokenizer,
    with those of its base if it is an adapter. Raises InputError where weights are not there."""
    lora, source = peft.read_adapter(folder, base)
    files = weights_of(source)
    if lora:
        adapters = tensors.find_files(folder, "adapter_model")
        for path in adapters:
            require_file(path, "a whole safetensors file; copy it again")
        files += adapters
    names = ["config.json", *COMPANIONS]
    others = [os.path.join(place, name) for place in (source, folder) for name in names]
    others = list(dict.fromkeys(path for path in others if os.path.exists(path)))
    for path in others:  # a pipe would never end
        require_file(path, "a file that goes with the weights")
    return files + others


def write_model(
    network: nn.Module,
    config: Config,
    lora: LoraSettings | None,
    base: str | None,
    folder: str,
    limit: float,
) -> None:
    """Write the adapter alone if there is LoRA, else a whole model in files of `limit` bytes. base:
    the folder that LoRA's weights belong to. All processes take part."""
    weights = dict(network.named_parameters())
    if lora:
        weights = {peft.PREFIX + name: p for name, p in weights.items() if "lora_" in name}
        tensors.write_tensors(folder, "adapter_model", weights, math.inf)
        if RANK == 0:
            peft.write_adapter_config(folder, lora, base)
    else:
        tensors.write_tensors(folder, "model", weights, limit)
        if RANK == 0:
            config.save(folder, network.lm_head.weight.dtype)


def copy_companions(sources: list[str | None], folder: str) -> None:
    """Copy the files that go with the weights: generation_config.json of the first source, all
    others of the last one alone, since files of two tokenizers do not fit each other."""
    sources = list(filter(None, sources))
    for file in COMPANIONS if RANK == 0 and sources else ():
        path = os.path.join(sources[0 if file == GENERATION else -1], file)
        at_home = os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)
        if os.path.exists(path) and not at_home:
            # Without its mode: what may only be read there can be replaced here.
            shutil.copyfile(path, os.path.join(folder, file))

"""A model's folder in Hugging Face format, or an adapter's and its base's: read, check, write.

config.json becomes our fields and goes back; weights are checked whole before one is read.
"""

import math
import os
import shutil
import zlib
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import nn

from plumbing.checkpoint import peft as adapters
from plumbing.base import errors
from plumbing.checkpoint import tensors as weights
from plumbing.checkpoint.peft import LoraSettings
from plumbing.base.processes import RANK
from plumbing.base.errors import InputError, require, require_supported
from plumbing.base.files import read_json, require_file, write_json

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What transformers takes where a Mistral's file is silent.
MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
LLAMA3_ROPE = ["factor", "low_freq_factor", "high_freq_factor"]
LLAMA3_ROPE += ["original_max_position_embeddings"]
# Files that go with the weights.
COMPANIONS = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
COMPANIONS += ["special_tokens_map.json", "chat_template.jinja", "generation_config.json"]


@dataclass
class Config:
    """The fields of config.json that shape the network, named as in the file. Raises InputError for
    a bad value."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = None  # null: as many as heads
    head_dim: int = None  # null: width / heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict = None  # of LLaMA-3.1, the fields LLAMA3_ROPE
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int = None  # Mistral-7B v0.1: a token sees so many tokens, itself included
    eos_token_id: list = field(default_factory=lambda: [2])  # every id that ends a text
    model_type: str = "llama"
    rest: dict = field(default_factory=dict)  # what else the file says, written back as it came

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None and f.default is None:
                continue
            if f.type in (int, float):
                errors.require_positive(f.name, value, f.type)
            else:
                errors.require_type(f.name, value, f.type)
        if self.rope_scaling:
            for name in LLAMA3_ROPE:
                errors.require_positive(f"RoPE's {name}", self.rope_scaling[name], float)
        ids = all(type(i) is int for i in self.eos_token_id)
        require(ids, f"eos_token_id = {self.eos_token_id!r}; expected id(s)")
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        grouped = self.num_attention_heads % self.num_key_value_heads == 0
        even = self.head_dim % 2 == 0
        require(
            grouped and even and self.num_hidden_layers < 1000,
            f"{self.num_hidden_layers} layers, {self.num_attention_heads} heads {self.head_dim} "
            f"wide, {self.num_key_value_heads} for keys; expected under 1,000, an even width, "
            "whole groups",
        )

    @classmethod
    def load(cls, folder: str) -> "Config":
        """Read folder/config.json. Raises InputError for what would silently be wrong."""
        path = os.path.join(folder, "config.json")
        raw = read_json(path)
        require_supported(path, "model_type", raw.get("model_type"), list(ARCHITECTURES))
        require_supported(path, "hidden_act", raw.get("hidden_act", "silu"), ["silu"])
        require_supported(path, "quantization_config", raw.get("quantization_config"), [None])
        in_file = raw | {"sliding_window": None}  # LLaMA has none
        if raw["model_type"] == "mistral":
            in_file = MISTRAL | raw
        eos = raw.get("eos_token_id", 2)
        if not isinstance(eos, list):
            eos = [] if eos is None else [eos]
        known = {f.name: in_file[f.name] for f in fields(cls) if f.name in in_file}
        known |= read_rope(path, raw) | {"eos_token_id": eos, "rest": raw}
        try:
            return cls(**known)
        except (InputError, TypeError) as error:  # TypeError: a required field is missing
            sentence = f"{path}: {error}; expected the config.json of a LLaMA or Mistral"
            raise InputError(sentence) from None

    def save(self, folder: str, dtype: torch.dtype) -> None:
        """Write config.json so that transformers reads the same network, RoPE in both schemas."""
        ours, eos = asdict(self), self.eos_token_id
        rest, name = ours.pop("rest"), str(dtype).removeprefix("torch.")
        scaling = self.rope_scaling and {"rope_type": "llama3"} | self.rope_scaling
        rope = (scaling or {"rope_type": "default"}) | {"rope_theta": self.rope_theta}
        extra = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "dtype": name,
            "torch_dtype": name,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "hidden_act": "silu",
            "rope_scaling": scaling,
            "rope_parameters": rope,
        }
        write_json(os.path.join(folder, "config.json"), rest | ours | extra)


def read_rope(path: str, raw: dict) -> dict:
    """Config's rope_theta and rope_scaling, from the newer schema or the older one. As transformers
    has it, the older one counts where a file has both: people add it by hand."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        rope = {"type": rope}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = (raw | rope).get("partial_rotary_factor")
    require_supported(path, "RoPE type", kind, ["default", "llama3"])
    require_supported(path, "partial_rotary_factor", partial, [None, 1, 1.0])
    scaling = None
    if kind == "llama3":
        trained = {LLAMA3_ROPE[-1]: raw.get("max_position_embeddings")} | rope
        scaling = {name: trained.get(name) for name in LLAMA3_ROPE}
    return {"rope_theta": (raw | rope).get("rope_theta", 10000.0), "rope_scaling": scaling}


class ModelFolder:
    """A folder with a whole model, or with an adapter on a base, whose configuration was read.
    base: replaces the folder that the adapter names. Raises InputError.

    crc32: a checksum of the base's weights, once fill() was asked for it."""

    def __init__(self, folder: str, base: str | None = None):
        self.folder = folder
        self.lora, self.base = adapters.read_adapter(folder, base)
        self.config = Config.load(self.base)
        self.source = os.path.abspath(self.base)  # as an adapter's configuration names it
        self.crc32 = None
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
        self.places = weights.locate_tensors(self.base, "model", base, tied)
        self.lora_places = {}
        if self.lora:
            lora = {name: p for name, p in parameters.items() if "lora_" in name}
            if any(name.startswith("lm_head.") for name in lora):
                lora[HEAD] = parameters[HEAD]  # PEFT saves the base weight beside it
            stem, prefix = "adapter_model", adapters.PREFIX
            self.lora_places = weights.locate_tensors(self.folder, stem, lora, [HEAD], prefix)

    def fill(
        self, network: nn.Module, dtype: torch.dtype | None, device: str, checksum: bool = False
    ) -> None:
        """Read every weight of a network that was given to locate(), in `dtype` (None: as stored;
        LoRA is fp32). LoRA that is not the folder's stays as it is. checksum: that of the base's
        weights is wanted. Raises InputError."""
        parameters = dict(network.named_parameters(remove_duplicate=False))
        self.check_head()
        crcs = {} if checksum else None
        tensors = dict(weights.read_tensors(self.places, parameters, dtype, device, crcs))
        if self.config.tie_word_embeddings:
            equal = torch.equal(tensors.setdefault(HEAD, tensors[TABLE]), tensors[TABLE])
            sentence = f"config.json ties the word embeddings, but {HEAD} differs from {TABLE}"
            require(equal, f"{self.base}: {sentence}")
        tensors |= weights.read_tensors(self.lora_places, parameters, torch.float32, device)
        network.load_state_dict(tensors, strict=False, assign=True)
        network.tie()
        if checksum:
            self.crc32 = zlib.crc32(repr(sorted(crcs.items())).encode())

    def check_head(self) -> None:
        """Raise InputError where the adapter brings another lm_head than the base has."""
        copy = self.lora_places.pop(HEAD, None)
        if copy:
            own = self.places.get(HEAD) or self.places[TABLE]
            pair = weights.read_tensors({"own": own, "copy": copy}, {"own": None, "copy": None})
            (_, own), (_, copy) = pair
            sentence = f"its {HEAD} is not that of {self.base}; name the right base with --model"
            require(torch.equal(own.to(copy.dtype), copy), f"{self.folder}: {sentence}")


def fingerprint(folder: str, base: str | None = None) -> int:
    """A checksum of the headers of a model's weights, with those of its base if it is an adapter:
    those that were written here have checksums of the weights in them. Raises InputError."""
    lora, source = adapters.read_adapter(folder, base)
    files = weights.find_files(source, "model")
    if lora:
        files += weights.find_files(folder, "adapter_model")
    return zlib.crc32(b"".join(map(weights.read_header, files)))


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
    tensors = dict(network.named_parameters())
    if lora:
        tensors = {adapters.PREFIX + name: p for name, p in tensors.items() if "lora_" in name}
        weights.write_tensors(folder, "adapter_model", tensors, math.inf)
        if RANK == 0:
            adapters.write_adapter_config(folder, lora, base)
    else:
        weights.write_tensors(folder, "model", tensors, limit)
        if RANK == 0:
            config.save(folder, network.lm_head.weight.dtype)


def copy_companions(sources: list[str | None], folder: str) -> None:
    """Copy the files that go with the weights; of two sources the later one counts."""
    for source in filter(None, sources):
        for file in COMPANIONS if RANK == 0 else ():
            path = os.path.join(source, file)
            at_home = os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)
            if os.path.exists(path) and not at_home:
                shutil.copy(path, folder)


def weight_files(folder, base=None):
    lora, source = adapters.read_adapter(folder, base)
    return weights.find_files(source, "model") + (weights.find_files(folder, "adapter_model") if lora else [])

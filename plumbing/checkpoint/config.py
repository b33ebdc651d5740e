"""config.json of a LLaMA or a Mistral: our fields, read and written, RoPE in both schemas."""

import os
from dataclasses import dataclass, field, fields

import torch

from plumbing.base.errors import (
    InputError,
    plain,
    require,
    require_positive,
    require_supported,
    require_type,
)
from plumbing.base.files import read_json, to_text, write_json

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What transformers takes where a Mistral's file is silent.
MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
GENERATION = "generation_config.json"
UNQUANTISED = "take the model's folder before it was quantised; of bitsandbytes' weights "
UNQUANTISED += "transformers makes one with model.dequantize() and model.save_pretrained()"
LARGEST = 2**50  # numbers in a weight; torch fails at 2^63 bytes
LLAMA3_ROPE = ["factor", "low_freq_factor", "high_freq_factor"]
LLAMA3_ROPE += ["original_max_position_embeddings"]


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
                require_positive(f.name, value, f.type)
            else:
                require_type(f.name, value, f.type)
        if self.rope_scaling:
            for name in LLAMA3_ROPE:
                require_positive(f"RoPE's {name}", self.rope_scaling[name], float)
            low, high = (self.rope_scaling[name] for name in LLAMA3_ROPE[1:3])
            sentence = f"RoPE's low_freq_factor = {low} is not below its high_freq_factor = {high}"
            require(low < high, f"{sentence}; expected a smaller one")
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
        heads = self.num_attention_heads * self.head_dim
        largest = self.hidden_size * max(self.vocab_size, self.intermediate_size, heads)
        sentence = f"a weight of {largest:,} numbers; expected fewer than {LARGEST:,}"
        require(largest < LARGEST, sentence)

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold, biases and LoRA apart."""
        D, heads, keys = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        attention = 2 * D * (heads + keys) * self.head_dim
        block = attention + 3 * D * self.intermediate_size + 2 * D  # the last of two norms
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * block + tables * self.vocab_size * D + D

    @classmethod
    def load(cls, folder: str) -> "Config":
        """Read folder/config.json. Raises InputError for what would silently be wrong."""
        path = os.path.join(folder, "config.json")
        raw = read_json(path)
        to_text(path, raw)  # what is read is written again when all work is done
        require_supported(path, "model_type", raw.get("model_type"), list(ARCHITECTURES))
        require_supported(path, "hidden_act", raw.get("hidden_act", "silu"), ["silu", "swish"])
        quantised = raw.get("quantization_config")
        require_supported(path, "quantization_config", quantised, [None], UNQUANTISED)
        require_supported(path, "per_layer_config", raw.get("per_layer_config"), [None, {}])
        in_file = raw
        if raw["model_type"] == "mistral":  # which has no biases
            in_file = MISTRAL | raw | {"attention_bias": False, "mlp_bias": False}
        in_file = in_file | {"sliding_window": read_window(path, in_file)}
        known = {f.name: in_file[f.name] for f in fields(cls) if f.name in in_file}
        known |= read_rope(path, raw) | {"eos_token_id": read_ends(folder, raw), "rest": raw}
        try:
            return cls(**known)
        except (InputError, TypeError) as error:  # TypeError: a required field is missing
            sentence = f"{path}: {error}; expected the config.json of a LLaMA or Mistral"
            raise InputError(sentence) from None

    def save(self, folder: str, dtype: torch.dtype) -> None:
        """Write config.json so that transformers reads the same network, RoPE in both schemas."""
        ours, eos = {f.name: getattr(self, f.name) for f in fields(self)}, self.eos_token_id
        rest, name = dict(ours.pop("rest")), str(dtype).removeprefix("torch.")
        rest.pop("layer_types", None)  # all alike, as sliding_window says
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


def read_ends(folder: str, raw: dict) -> list[int]:
    """Every id that ends a text, config.json's first. Chat models may name the end of a turn in
    generation_config.json alone, as transformers' generate() takes it from there."""
    path = os.path.join(folder, GENERATION)
    stated = {os.path.join(folder, "config.json"): raw.get("eos_token_id", 2)}
    if os.path.exists(path):
        stated[path] = read_json(path).get("eos_token_id")
    ends = []
    for path, ids in stated.items():
        if not isinstance(ids, list):
            ids = [] if ids is None else [ids]
        require(all(type(i) is int for i in ids), f"{path}: eos_token_id = {ids}; expected ids")
        ends += ids
    return list(dict.fromkeys(ends))


def read_window(path: str, in_file: dict) -> int | None:
    """Config's sliding_window: Mistral's, unless layer_types says that no layer has it. Raises
    InputError where layers differ."""
    mistral, kinds = in_file["model_type"] == "mistral", in_file.get("layer_types") or []
    names = ["full_attention", "sliding_attention"] if mistral else ["full_attention"]
    alike = isinstance(kinds, list) and any(kinds == [name] * len(kinds) for name in names)
    sentence = f"{path}: layer_types {plain(repr(kinds), 200)} is not supported"
    require(alike, f"{sentence}; expected the same for every layer, {' or '.join(names)}")
    return in_file["sliding_window"] if mistral and kinds[:1] != names[:1] else None


def read_rope(path: str, raw: dict) -> dict:
    """Config's rope_theta and rope_scaling, from the newer schema or the older one. As transformers
    has it, the older one counts where a file has both: people add it by hand."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        rope = {"type": rope}
    of_kinds = [name for name, value in rope.items() if isinstance(value, dict)]
    sentence = f"{path}: RoPE of its own for {', '.join(of_kinds)} is not supported"
    require(not of_kinds, f"{sentence}; expected one RoPE for all layers")
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = (raw | rope).get("partial_rotary_factor")
    require_supported(path, "RoPE type", kind, ["default", "llama3"])
    require_supported(path, "partial_rotary_factor", partial, [None, 1, 1.0])
    scaling = None
    if kind == "llama3":
        trained = LLAMA3_ROPE[-1]  # as transformers has it, outside RoPE's fields it counts first
        rope = {trained: raw.get("max_position_embeddings")} | rope
        rope |= {trained: raw[trained]} if trained in raw else {}
        scaling = {name: rope.get(name) for name in LLAMA3_ROPE}
    return {"rope_theta": (raw | rope).get("rope_theta", 10000.0), "rope_scaling": scaling}

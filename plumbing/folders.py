"""Hugging Face and PEFT folders: their configuration to our fields and back."""

import os
from dataclasses import asdict, dataclass, field, fields

from plumbing.errors import InputError, check, require, supported
from plumbing.files import read_json, write_json

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}  # if the file is silent
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass
class Config:
    """The fields of config.json that shape the network; names as in the file. Raises InputError for a bad value."""

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
    rest: dict = field(default_factory=dict)  # whatever else the file says, written back as it came

    def __post_init__(self):
        for f in fields(self):
            if f.default is not None or getattr(self, f.name) is not None:
                check(f.name, getattr(self, f.name), f.type)
        for name in LLAMA3_ROPE if self.rope_scaling else ():
            check(f"RoPE's {name}", self.rope_scaling[name], float)
        require(
            all(type(i) is int for i in self.eos_token_id),
            f"eos_token_id = {self.eos_token_id!r}; expected id(s)",
        )
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        good = self.num_attention_heads % self.num_key_value_heads == self.head_dim % 2 == 0
        require(
            good and self.num_hidden_layers < 1000,
            f"{self.num_hidden_layers} layers, {self.num_attention_heads} heads "
            f"{self.head_dim} wide, {self.num_key_value_heads} for keys; expected under 1,000, an even width, whole groups",
        )

    @classmethod
    def load(cls, folder):
        """Read folder/config.json. Raises InputError for what this model would silently compute wrongly."""
        path = os.path.join(folder, "config.json")
        raw = read_json(path)
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # newer and older schema
        rope = rope if isinstance(rope, dict) else {"type": rope}
        kind, eos = rope.get("rope_type", rope.get("type", "default")), raw.get("eos_token_id", 2)
        supported(path, "model_type", raw.get("model_type"), list(ARCHITECTURES))
        supported(path, "hidden_act", raw.get("hidden_act", "silu"), ["silu"])
        supported(path, "quantization_config", raw.get("quantization_config"), [None])
        supported(path, "RoPE type", kind, ["default", "llama3"])
        supported(
            path, "partial_rotary_factor", (raw | rope).get("partial_rotary_factor"), [None, 1]
        )
        said = (
            MISTRAL | raw if raw["model_type"] == "mistral" else raw | {"sliding_window": None}
        )  # LLaMA has none
        known = {f.name: said[f.name] for f in fields(cls) if f.name in said}
        known |= {
            "rope_theta": (raw | rope).get("rope_theta", 10000.0),
            "rest": raw,
            "rope_scaling": {k: rope.get(k) for k in LLAMA3_ROPE} if kind == "llama3" else None,
            "eos_token_id": eos if isinstance(eos, list) else [] if eos is None else [eos],
        }
        try:
            return cls(**known)
        except (InputError, TypeError) as error:  # TypeError: a required field is missing
            raise InputError(
                f"{path}: {error}; expected the config.json of a LLaMA or Mistral"
            ) from None

    def save(self, folder, dtype):
        """Write config.json so that transformers reads the same network, RoPE in both schemas."""
        raw, dtype, eos = asdict(self), str(dtype).removeprefix("torch."), self.eos_token_id
        scaling = self.rope_scaling and {"rope_type": "llama3"} | self.rope_scaling
        write_json(
            os.path.join(folder, "config.json"),
            raw.pop("rest")
            | raw
            | {
                "architectures": [ARCHITECTURES[self.model_type]],
                "dtype": dtype,
                "torch_dtype": dtype,
                "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
                "hidden_act": "silu",
                "rope_scaling": scaling,
                "rope_parameters": (scaling or {"rope_type": "default"})
                | {"rope_theta": self.rope_theta},
            },
        )


PEFT = "base_model.model."  # the prefix of every tensor name in PEFT's adapter files
LORA = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
}
INERT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
}  # fields of adapter_config.json that do not change what is computed
PLAIN = {"peft_type": ["LORA"], "bias": ["none"], "init_lora_weights": [True, False, "gaussian"]}
BESIDE = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)  # files that go with the weights

"""Models and adapters of transformers and PEFT, which are the oracles of several tests."""

import json
import os

import pytest
import torch

transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


# Real field values, but for depth, width and vocabulary: heads, groups and head width keep their
# ratios.
FAMILIES = {
    "LLaMA-1-7B": dict(rms_norm_eps=1e-6, max_position_embeddings=2048),
    "LLaMA-2-7B": dict(rms_norm_eps=1e-5, max_position_embeddings=4096, pad_token_id=None),
    "LLaMA-2-70B": dict(num_attention_heads=8, num_key_value_heads=1, rms_norm_eps=1e-5),
    "LLaMA-3-8B": dict(
        num_key_value_heads=1, rms_norm_eps=1e-5, theta=500000.0, bos_token_id=90, eos_token_id=91
    ),
    "LLaMA-3.1-8B-Instruct": dict(
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        theta=500000.0,
        rope=LLAMA3,
        bos_token_id=90,
        eos_token_id=[91, 92, 93],
        max_position_embeddings=131072,
    ),
    "LLaMA-3.2-1B": dict(
        num_key_value_heads=1,
        head_dim=64,
        rms_norm_eps=1e-5,
        theta=500000.0,
        rope=LLAMA3 | {"factor": 32.0},
        tie_word_embeddings=True,
    ),
    "TinyLlama-1.1B": dict(num_attention_heads=8, num_key_value_heads=1, rms_norm_eps=1e-5),
    "SmolLM2-135M": dict(
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=72,
        rms_norm_eps=1e-5,
        theta=100000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=2,
    ),
    "ALMA-7B": dict(rms_norm_eps=1e-5, max_position_embeddings=4096, pad_token_id=0),
    "Tower-7B": dict(rms_norm_eps=1e-5, vocab_size=103),
    "biases": dict(attention_bias=True, mlp_bias=True),
    "Mistral-7B-v0.1": dict(
        kind="mistral", num_key_value_heads=1, rms_norm_eps=1e-5, sliding_window=8
    ),
    "Mistral-7B-v0.3": dict(
        kind="mistral",
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        theta=1000000.0,
        sliding_window=None,
    ),
    "Mistral-Nemo": dict(
        kind="mistral", num_key_value_heads=1, head_dim=24, theta=1000000.0, sliding_window=None
    ),
}


def theirs_of(family, dtype=torch.float32):
    """A random two-layer model of transformers, far enough from uniform that a wrong token
    shows."""
    fields = (
        dict(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=None,
            initializer_range=0.15,
        )
        | FAMILIES[family]
    )
    kind, theta, rope = (
        fields.pop("kind", "llama"),
        fields.pop("theta", 10000.0),
        fields.pop("rope", None),
    )
    fields["rope_parameters"] = {"rope_theta": theta} | (
        {"rope_type": "llama3"} | rope if rope else {"rope_type": "default"}
    )
    torch.manual_seed(0)
    config = (transformers.MistralConfig if kind == "mistral" else transformers.LlamaConfig)(
        **fields
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, p in model.named_parameters():
        if p.ndim == 1:  # norms and biases that do something
            p.data = torch.randn_like(p) * 0.3 + ("norm" in name)
    return model


def change_config(folder, **changes):
    path = os.path.join(folder, "config.json")
    raw = {k: v for k, v in (json.load(open(path)) | changes).items() if v != "absent"}
    json.dump(raw, open(path, "w"))


def in_transformers(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def peft_adapter(base, folder, **settings):
    """An adapter made and saved by PEFT, every matrix random; returns PEFT's model."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 6, "target_modules": LINEARS} | settings)
    )
    model = peft.get_peft_model(in_transformers(base), config).eval()
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p) * 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    return model

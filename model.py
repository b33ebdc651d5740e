"""LLaMA by hand: the decoder, its KV cache, LoRA, and weights in and out of Hugging Face folders.

Module and attribute names are the checkpoint's tensor names (model.layers.0.self_attn.q_proj.weight), so
loading is a strict copy without a rename table. A batch is not padded: its sequences lie end to end in one
row of tokens, and a Layout says which token belongs to which sequence.

Symbols in shape comments: B sequences, T tokens of all of them together, n tokens of the longest, S cache
slots, R response tokens, D width, H heads, K key/value heads, d head width, V vocabulary, r LoRA rank.
"""
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


class InputError(ValueError):
    """The user's input is at fault: one sentence says what was found, where, and what to do."""


@dataclass
class Config:
    """The fields of config.json that shape the network; names as in the file."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = None  # null or absent: as many as heads
    head_dim: int = None             # null or absent: width / heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def load(cls, folder):
        """Read folder/config.json. Raises InputError for what this model would silently compute wrongly."""
        path = os.path.join(folder, "config.json")
        raw = read_json(path)
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # newer and older schema
        unsupported = {
            "model_type": raw.get("model_type", "llama") != "llama",
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "rope_parameters": bool(raw.get("rope_parameters")) and rope.get("rope_type", "default") != "default",
            "rope_scaling": bool(raw.get("rope_scaling")) and rope.get("rope_type", rope.get("type")) != "default",
            "eos_token_id": not isinstance(raw.get("eos_token_id", 2), int),
        } | {k: bool(raw.get(k)) for k in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config")}
        for field, refused in unsupported.items():
            if refused:
                raise InputError(f"{path}: {field} = {raw[field]!r} is not supported; expected a plain LLaMA")
        raw = {"rope_theta": rope.get("rope_theta", 10000.0)} | raw
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        missing = [f for f in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                               "num_attention_heads") if not isinstance(known.get(f), int)]
        if missing:
            raise InputError(f"{path}: no whole number for {', '.join(missing)}; expected a LLaMA config.json")
        return cls(**known)

    def save(self, folder):
        """Write config.json so that transformers reads the same network, RoPE in both schemas."""
        raw = asdict(self) | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                              "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
                              "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}
        write_json(os.path.join(folder, "config.json"), raw)


class Layout:
    """Where each of T tokens belongs when B sequences of the given lengths lie end to end, without padding.

    `start` [B] counts the tokens of each sequence that a KV cache already holds. Only attention needs
    rectangles, so pad() and unpad() are used there alone; padding is on the right, where causal order
    hides it from every real query.
    """

    def __init__(self, lengths, device=None, start=None):
        sizes = torch.as_tensor(lengths, device=device)
        self.B, self.n, self.T = len(lengths), int(max(lengths)), int(sum(lengths))
        self.row = torch.repeat_interleave(torch.arange(self.B, device=device), sizes, output_size=self.T)  # [T]
        self.col = torch.arange(self.T, device=device) - (sizes.cumsum(0) - sizes)[self.row]  # [T]
        self.start = torch.zeros_like(sizes) if start is None else start                      # [B]
        self.position = self.col + self.start[self.row]                                       # [T]
        self.even = self.B * self.n == self.T

    def pad(self, x):
        """[T, H, d] -> [B, H, n, d]"""
        if self.even:
            return x.view(self.B, self.n, *x.shape[1:]).transpose(1, 2)
        return x.new_zeros(self.B, self.n, *x.shape[1:]).index_put((self.row, self.col), x).transpose(1, 2)

    def unpad(self, x):
        """[B, H, n, d] -> [T, H, d]"""
        x = x.transpose(1, 2)  # [B, n, H, d]
        return x.reshape(self.T, *x.shape[2:]) if self.even else x[self.row, self.col]


class KVCache:
    """Keys and values of B growing sequences; a row's slot s holds its token s, whatever the other rows' lengths."""

    def __init__(self, config, B, slots, device=None, dtype=torch.float32):
        shape = (config.num_hidden_layers, B, config.num_key_value_heads, slots, config.head_dim)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))  # [L, B, K, S, d]
        self.used = torch.zeros(B, dtype=torch.long, device=device)                        # [B]

    def append(self, layer, k, v, layout):
        """Write k, v [T, K, d] into their slots; returns all that the queries may need, [B, K, s, d]."""
        for store, new in ((self.k[layer], k), (self.v[layer], v)):
            store[layout.row, :, layout.position] = new.to(store.dtype)
        return self.k[layer, :, :, :layout.visible.shape[-1]], self.v[layer, :, :, :layout.visible.shape[-1]]

    def keep(self, rows):
        """Drop every row but `rows` (an index tensor): finished sequences cost nothing further."""
        self.k, self.v, self.used = self.k[:, rows], self.v[:, rows], self.used[rows]


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):  # [T, D]; in fp32, since bf16 squares lose the small components
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


def rope_table(config, position):
    """cos, sin [T, 1, d] for positions [T]: feature i and i + d/2 share the frequency theta^(-2i/d)."""
    i = torch.arange(0, config.head_dim, 2, device=position.device).float()     # [d/2]
    angle = position[:, None].float() * config.rope_theta ** (-i / config.head_dim)  # [T, d/2]
    angle = torch.cat([angle, angle], -1)[:, None]                              # [T, 1, d]
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """Rotate x [T, H, d] by its position; pairs are (first half, second half), not (even, odd)."""
    cos, sin = rope
    a, b = x.float().chunk(2, -1)  # [T, H, d/2] twice
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, d = config.hidden_size, config.head_dim
        self.d = d
        self.q_proj = nn.Linear(D, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * d, D, bias=False)

    def forward(self, x, rope, layout, cache, layer):  # x [T, D]
        q, k, v = (p(x).view(x.shape[0], -1, self.d) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)  # [T, H, d], [T, K, d]
        if cache is None:
            k, v = layout.pad(k), layout.pad(v)  # [B, K, n, d]
        else:
            k, v = cache.append(layer, k, v, layout)  # [B, K, s, d]
        order = {"is_causal": True} if cache is None else {"attn_mask": layout.visible}
        out = F.scaled_dot_product_attention(layout.pad(q), k.to(q.dtype), v.to(q.dtype), enable_gqa=True, **order)
        return self.o_proj(layout.unpad(out).flatten(1))  # [B, H, n, d] -> [T, H, d] -> [T, D]


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *where):  # [T, D]
        x = x + self.self_attn(self.input_layernorm(x), *where)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LlamaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.source = self.lora = None  # the folder it was loaded from; the settings of its LoRA layers
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        self.tie()

    def tie(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids, lengths, cache=None, at=None):
        """Logits of the next token.

        ids [T]: sequences end to end. lengths: B ints that sum to T. cache: a KVCache of B rows, which these
        tokens continue and are added to. at [R]: the positions in 0..T-1 whose logits are wanted; the
        vocabulary projection, the largest tensor of a step, is computed there alone. Default: all.
        Returns [R, V].
        """
        layout = Layout(lengths, ids.device, None if cache is None else cache.used)
        if cache is not None:
            cache.used = cache.used + torch.as_tensor(lengths, device=ids.device)
            slots = torch.arange(int(cache.used.max()), device=ids.device)           # [s]
            query = layout.start[:, None] + torch.arange(layout.n, device=ids.device)  # [B, n]
            layout.visible = slots <= query[:, None, :, None]                        # [B, 1, n, s]
        x = self.model.embed_tokens(ids)  # [T, D]
        rope = rope_table(self.config, layout.position)
        for i, block in enumerate(self.model.layers):
            x = block(x, rope, layout, cache, i)
        x = self.model.norm(x if at is None else x[at])  # [R, D]
        return self.lm_head(x)                           # [R, V]


# LoRA (arXiv 2106.09685): W x + (alpha / r) B A x, with W frozen

class LoRALinear(nn.Linear):
    """A frozen linear layer plus a trainable low-rank term; B starts at zero, so at first nothing changes."""

    def __init__(self, base, rank, alpha, dropout):
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device)   # [r, in]
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device)  # [out, r]
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout, self.scale = nn.Dropout(dropout), alpha / rank

    def forward(self, x):
        return F.linear(x, self.weight) + self.lora_B(self.lora_A(self.dropout(x))) * self.scale

    def merged(self):
        """A plain linear layer that computes the same: W + scale * B A, summed in fp32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        delta = self.lora_B.weight.float() @ self.lora_A.weight.float() * self.scale
        linear.weight = nn.Parameter((self.weight.float() + delta).to(self.weight.dtype))
        return linear


def replace_linears(model, chosen, make):
    for module in list(model.modules()):
        for child, linear in list(module.named_children()):
            if chosen(child, linear):
                setattr(module, child, make(linear))


def add_lora(model, rank, alpha, dropout, targets):
    """Freeze the model and put a LoRALinear in place of every linear layer whose last name is in `targets`."""
    names = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    if not targets or set(targets) - names:
        raise InputError(f"LoRA targets {','.join(targets)!r}: expected some of {','.join(sorted(names))}")
    model.requires_grad_(False)
    replace_linears(model, lambda name, m: name in targets, lambda m: LoRALinear(m, rank, alpha, dropout))
    model.lora = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": sorted(targets)}


@torch.no_grad()
def merge_lora(model):
    """Fold every adapter into its weight, in place: the same function, a plain LLaMA again."""
    replace_linears(model, lambda name, m: isinstance(m, LoRALinear), LoRALinear.merged)
    model.lora = None


# Weights in and out

def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a model folder in Hugging Face format") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a JSON {type(value).__name__}; expected an object")
    return value


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def read_tensors(path, expected, dtype, device):
    """The tensors of a safetensors file, which must be exactly `expected`, {name: shape}.

    A cut file, a missing or an unknown tensor, a wrong shape: InputError with the path and both values.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as f:
            found = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
            for name in expected.keys() | found.keys():
                if found.get(name) != expected.get(name):
                    raise InputError(
                        f"{path}: tensor {name} has shape {found.get(name, 'none: it is missing')}, expected "
                        f"{expected.get(name, 'no such tensor')}; config and weights do not belong together")
            return {name: f.get_tensor(name).to(dtype) for name in found}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the weights in safetensors format") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file: {os.path.getsize(path):,} bytes found, "
                         f"{stated_size(path)} expected ({error}); copy it again") from None


def stated_size(path):
    """The size in bytes that a safetensors header claims for its file, as text."""
    with open(path, "rb") as f:
        blob = f.read(8)
        size = int.from_bytes(blob, "little")
        try:
            header = json.loads(f.read(min(size, 100_000_000)))
            return f"{8 + size + max(t['data_offsets'][1] for k, t in header.items() if k != '__metadata__'):,}"
        except (ValueError, KeyError, TypeError, AttributeError):
            return "8 or more"


def load_model(folder, dtype=torch.float32, device="cpu"):
    """The model of a Hugging Face folder, or of a LoRA folder (adapter_config.json names its base).

    Every tensor must be there, with the right shape, and no other. Raises InputError.
    """
    adapter = os.path.join(folder, "adapter_config.json")
    if os.path.exists(adapter):
        lora = read_json(adapter)
        try:
            model = load_model(lora["base_model_name_or_path"], dtype, device)
            add_lora(model, lora["r"], lora["lora_alpha"], lora["lora_dropout"], lora["target_modules"])
        except KeyError as error:
            raise InputError(f"{adapter}: no {error.args[0]}; expected a LoRA adapter written by train.py") from None
        shapes = {PEFT + n: tuple(p.shape) for n, p in model.named_parameters() if "lora_" in n}
        tensors = read_tensors(os.path.join(folder, "adapter_model.safetensors"), shapes, torch.float32, device)
        model.load_state_dict({n.removeprefix(PEFT): t for n, t in tensors.items()}, strict=False)
        return model
    config, index = Config.load(folder), os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        raise InputError(f"{index}: sharded weights are not supported yet; save the model as one model.safetensors")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied lm_head is named once, as the embedding
    tensors = read_tensors(os.path.join(folder, "model.safetensors"), shapes, dtype, device)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie()
    model.source = os.path.abspath(folder)
    return model


PEFT = "base_model.model."  # the prefix of every tensor name in PEFT's adapter files


def save_model(model, folder, tokenizer_from=None):
    """Write the adapter alone (PEFT's format) if the model has LoRA layers, else a full Hugging Face folder."""
    os.makedirs(folder, exist_ok=True)
    if model.lora:
        name, tensors = "adapter_model.safetensors", {PEFT + n: p for n, p in model.named_parameters() if "lora_" in n}
        write_json(os.path.join(folder, "adapter_config.json"), model.lora | {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model.source, "bias": "none",
            "fan_in_fan_out": False, "inference_mode": True})
    else:
        name, tensors = "model.safetensors", dict(model.named_parameters())
        model.config.save(folder)
    tensors = {n: p.detach().cpu().contiguous() for n, p in tensors.items()}
    save_file(tensors, os.path.join(folder, name), {"format": "pt"})
    for file in ("tokenizer.model", "tokenizer_config.json"):
        if tokenizer_from and os.path.exists(os.path.join(tokenizer_from, file)):
            shutil.copy(os.path.join(tokenizer_from, file), folder)

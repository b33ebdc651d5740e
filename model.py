"""LLaMA by hand: the decoder, its KV cache, LoRA, and weights in and out of Hugging Face folders.

Module and attribute names are the checkpoint's tensor names (model.layers.0.self_attn.q_proj.weight), so loading is a strict
copy without a rename table. A batch is not padded: its sequences lie end to end in one row of tokens, and a Layout says which
token belongs to which sequence. Symbols in shape comments: B sequences, T tokens of all of them together, n tokens of the
longest, S cache slots, R response tokens, D width, H heads, K key/value heads, d head width, V vocabulary, r LoRA rank."""

import math
import os
import re
import shutil

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.distributed import RANK
from plumbing.errors import InputError, check, require, supported
from plumbing.files import read_json, write_json
from plumbing.folders import BESIDE, INERT, LLAMA3_ROPE, LORA, PEFT, PLAIN, Config
from plumbing.weights import read_tensors, write_tensors


class Layout:
    """Where each of T tokens belongs when B sequences of the given lengths lie end to end, without padding. `start` [B]
    counts the tokens that a KV cache already holds. Only attention needs rectangles, so pad() and unpad() are used there
    alone; padding is on the right, where causal order hides it. `visible` [B, 1, n, s]: the slots that a query sees,
    where there is a cache or a sequence exceeds the sliding window; else None."""

    def __init__(self, lengths, device=None, start=None, window=None):
        sizes = torch.as_tensor(lengths, device=device)
        self.B, self.n, self.T = len(lengths), int(max(lengths)), int(sum(lengths))
        self.row = torch.repeat_interleave(
            torch.arange(self.B, device=device), sizes, output_size=self.T
        )  # [T]
        self.col = torch.arange(self.T, device=device) - (sizes.cumsum(0) - sizes)[self.row]  # [T]
        self.start = torch.zeros_like(sizes) if start is None else start  # [B]
        self.position = self.col + self.start[self.row]  # [T]
        self.even = self.B * self.n == self.T
        self.visible = None
        if start is not None or window and window < self.n:
            slots = torch.arange(int((self.start + sizes).max()), device=device)  # [s]
            query = (
                self.start[:, None, None] + torch.arange(self.n, device=device)[None, :, None]
            )  # [B, n, 1]
            self.visible = ((slots <= query) & (slots > query - (window or len(slots))))[
                :, None
            ]  # [B, 1, n, s]

    def pad(self, x):
        """[T, H, d] -> [B, H, n, d]"""
        if self.even:
            return x.view(self.B, self.n, *x.shape[1:]).transpose(1, 2)
        return (
            x.new_zeros(self.B, self.n, *x.shape[1:])
            .index_put((self.row, self.col), x)
            .transpose(1, 2)
        )

    def unpad(self, x):
        """[B, H, n, d] -> [T, H, d]"""
        x = x.transpose(1, 2)  # [B, n, H, d]
        return x.reshape(self.T, *x.shape[2:]) if self.even else x[self.row, self.col]


class KVCache:
    """Keys and values of B growing sequences; a row's slot s holds its token s, whatever the other rows' lengths."""

    def __init__(self, config, B, slots, device=None, dtype=torch.float32):
        shape = (config.num_hidden_layers, B, config.num_key_value_heads, slots, config.head_dim)
        self.k, self.v = (
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)
        )  # [L, B, K, S, d]
        self.used = torch.zeros(B, dtype=torch.long, device=device)  # [B]

    def append(self, layer, k, v, layout):
        """Write k, v [T, K, d] into their slots; returns all that the queries may need, [B, K, s, d]."""
        for store, new in ((self.k[layer], k), (self.v[layer], v)):
            store[layout.row, :, layout.position] = new.to(store.dtype)
        return self.k[layer, :, :, : layout.visible.shape[-1]], self.v[
            layer, :, :, : layout.visible.shape[-1]
        ]

    def keep(self, rows):
        """Drop every row but `rows` (an index tensor): finished sequences cost nothing further."""
        self.k, self.v, self.used = self.k[:, rows], self.v[:, rows], self.used[rows]


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):  # [T, D]; in fp32, since bf16 squares lose the small components
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(
            x.dtype
        )


def rope_table(config, position):
    """cos, sin [T, 1, d] for positions [T]: feature i and i + d/2 share the frequency theta^(-2i/d)."""
    i = torch.arange(0, config.head_dim, 2, device=position.device).float()  # [d/2]
    frequency = 1.0 / config.rope_theta ** (i / config.head_dim)
    if (
        config.rope_scaling
    ):  # LLaMA-3.1: long waves are stretched by the factor, short ones kept, a ramp between them
        factor, low, high, trained = (config.rope_scaling[k] for k in LLAMA3_ROPE)
        ramp = ((trained * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequency = (1 - ramp) * frequency / factor + ramp * frequency
    angle = (position[:, None].float() * frequency).repeat(1, 2)[:, None]  # [T, d/2] -> [T, 1, d]
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """Rotate x [T, H, d] by its position; pairs are (first half, second half), not (even, odd)."""
    (cos, sin), (a, b) = rope, x.float().chunk(2, -1)  # [T, 1, d] twice, [T, H, d/2] twice
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


class Linear(nn.Linear):
    """W x, and with LoRA (arXiv 2106.09685) W x + scale * B A x, where B starts at zero: at first nothing changes."""

    scale = None  # without LoRA

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y + self.lora_B(self.lora_A(self.dropout(x))) * self.scale if self.scale else y


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, bias, self.d = config.hidden_size, config.attention_bias, config.head_dim
        queries, keys = config.num_attention_heads * self.d, config.num_key_value_heads * self.d
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(D, width, bias) for width in (queries, keys, keys)
        )
        self.o_proj = Linear(queries, D, bias)

    def forward(self, x, rope, layout, cache, layer):  # x [T, D]
        q, k, v = (
            p(x).view(x.shape[0], -1, self.d) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rope), rotate(k, rope)  # [T, H, d], [T, K, d]
        if cache is None:
            k, v = layout.pad(k), layout.pad(v)  # [B, K, n, d]
        else:
            k, v = cache.append(layer, k, v, layout)  # [B, K, s, d]
        order = {"is_causal": True} if layout.visible is None else {"attn_mask": layout.visible}
        out = F.scaled_dot_product_attention(
            layout.pad(q), k.to(q.dtype), v.to(q.dtype), enable_gqa=True, **order
        )
        return self.o_proj(layout.unpad(out).flatten(1))  # [B, H, n, d] -> [T, H, d] -> [T, D]


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": Linear(D, width, bias),
                "up_proj": Linear(D, width, bias),
                "down_proj": Linear(width, D, bias),
            }
        )

    def forward(self, x, *where):  # [T, D]
        x = x + self.self_attn(self.input_layernorm(x), *where)
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


class LlamaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.source = self.lora = (
            None  # the folder it was loaded from; the settings of its LoRA layers
        )
        self.recompute = (
            False  # activation checkpointing: only the input of each block is kept for the backward
        )
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def tie(self):
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids, lengths, cache=None, at=None):
        """Logits [R, V] of the next token. ids [T]: sequences end to end. lengths: B ints that sum to T. cache: a KVCache
        of B rows, which these tokens continue and are added to. at [R]: the positions in 0..T-1 whose logits are wanted
        (default: all); the vocabulary projection, the largest tensor of a step, is computed there alone."""
        layout = Layout(
            lengths, ids.device, None if cache is None else cache.used, self.config.sliding_window
        )
        if cache is not None:
            cache.used = cache.used + torch.as_tensor(lengths, device=ids.device)
        x = self.model.embed_tokens(ids)  # [T, D]
        rope = rope_table(self.config, layout.position)
        for i, block in enumerate(self.model.layers):
            where, again = (rope, layout, cache, i), self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, *where, use_reentrant=False) if again else block(x, *where)
        x = self.model.norm(x if at is None else x[at])  # [R, D]
        return self.lm_head(x)  # [R, V]


def add_lora(
    model,
    r,
    lora_alpha,
    target_modules,
    lora_dropout=0.0,
    rank_pattern=None,
    alpha_pattern=None,
    use_rslora=False,
):
    """Freeze the model and attach LoRA, on torch's default device, to every linear layer that `target_modules` names. The rules
    are those of PEFT's adapter_config.json: target_modules is a list of last names (q_proj) or a regular expression of whole
    names; the patterns, {regular expression: value}, set r and alpha of the layers whose names end so; the scale is alpha / r,
    with use_rslora alpha / sqrt(r). Raises InputError."""
    linears, targets = (
        {n: m for n, m in model.named_modules() if isinstance(m, Linear)},
        target_modules,
    )
    found = (
        {targets: [n for n in linears if re.fullmatch(targets, n)]}
        if isinstance(targets, str)
        else {t: [n for n in linears if f".{n}".endswith(f".{t}")] for t in targets}
    )
    names = ", ".join(sorted({n.split(".")[-1] for n in linears}))
    require(found and all(found.values()), f"LoRA targets {targets!r}: expected some of {names}")
    require(0 <= lora_dropout <= 1, f"LoRA dropout {lora_dropout!r}: expected 0 to 1")
    model.requires_grad_(False)
    for name in [n for n in linears if any(n in names for names in found.values())]:
        rank, alpha = (
            next(
                (v for k, v in (values or {}).items() if re.match(rf"(.*\.)?({k})$", name)), default
            )
            for values, default in ((rank_pattern, r), (alpha_pattern, lora_alpha))
        )
        check(f"rank of {name}", rank, int)
        check(f"lora_alpha of {name}", alpha, float)
        m = linears[name]
        m.lora_A, m.lora_B = (
            nn.Linear(m.in_features, rank, bias=False),
            nn.Linear(rank, m.out_features, bias=False),
        )
        nn.init.kaiming_uniform_(m.lora_A.weight, a=math.sqrt(5))  # [r, in]
        nn.init.zeros_(m.lora_B.weight)  # [out, r]
        m.dropout, m.scale = nn.Dropout(lora_dropout), alpha / (rank**0.5 if use_rslora else rank)
    model.lora = {
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "target_modules": targets,
        "rank_pattern": rank_pattern or {},
        "alpha_pattern": alpha_pattern or {},
        "use_rslora": use_rslora,
    }


@torch.no_grad()
def merge_lora(model):
    """Fold every adapter into its weight, in place: the same function, a plain LLaMA again."""
    for m in [m for m in model.modules() if isinstance(m, Linear) and m.scale]:
        delta = m.lora_B.weight.float() @ m.lora_A.weight.float() * m.scale  # summed in fp32
        m.weight = nn.Parameter((m.weight.float() + delta).to(m.weight.dtype))
        del m.lora_A, m.lora_B, m.dropout, m.scale
    model.config.tie_word_embeddings &= (
        model.lm_head.weight is model.model.embed_tokens.weight
    )  # else lm_head had LoRA
    model.lora = None


def load_model(folder, dtype=None, device="cpu", base=None, prepare=lambda model: None):
    """The model of a Hugging Face folder, or of a LoRA folder on `base` (default: the base that it names), in `dtype`
    (None: as stored; LoRA is fp32). Every tensor must be there, in the right shape, and no other; else InputError.
    prepare(model) may attach LoRA and shard() before there are weights, so that no process ever holds them all."""
    path, source, lora = os.path.join(folder, "adapter_config.json"), folder, {}
    if os.path.exists(path):
        lora = {"peft_type": None} | read_json(path)
        for name in sorted(
            lora.keys() - LORA - INERT
        ):  # what would change the computation is refused by name
            supported(path, name, lora[name], PLAIN.get(name, [None, False, "", [], {}]))
        source = base or lora.get("base_model_name_or_path")
        require(
            os.path.isdir(str(source)),
            f"{path}: base model {source!r} is no folder here; name the folder with --model",
        )
    config = Config.load(source)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.source = os.path.abspath(source)
    with torch.device(device):  # LoRA is made there, the rest is still without memory
        try:
            if lora:
                add_lora(model, **{name: lora[name] for name in LORA & lora.keys()})
        except (InputError, TypeError, ValueError, AttributeError, re.error) as error:
            raise InputError(
                f"{path}: {error}; expected the settings of a LoRA adapter in PEFT's format"
            ) from None
        prepare(model)
    head, table, named = (
        "lm_head.weight",
        "model.embed_tokens.weight",
        dict(model.named_parameters(remove_duplicate=False)),
    )
    tensors, spare = (
        {n: p for n, p in named.items() if "lora_" not in n},
        [head] * config.tie_word_embeddings,
    )
    tensors = dict(read_tensors(source, "model", tensors, dtype, device, spare))
    require(
        not spare or torch.equal(tensors.setdefault(head, tensors[table]), tensors[table]),
        f"{source}: config.json ties the word embeddings, but {head} differs from {table}",
    )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie()
    if lora:
        tensors = {PEFT + n: p for n, p in named.items() if "lora_" in n}
        tensors = read_tensors(folder, "adapter_model", tensors, torch.float32, device)
        model.load_state_dict(
            {n.removeprefix(PEFT): t for n, t in tensors}, strict=False, assign=True
        )
    return model


def save_model(model, folder, tokenizer_from=None, limit=5e9):
    """Write the adapter alone (PEFT's format) if the model has LoRA layers, else a full Hugging Face folder; beside it
    the tokenizer's files. All processes take part."""
    tensors, lora = dict(model.named_parameters()), model.lora
    if lora:
        tensors, limit = {PEFT + n: p for n, p in tensors.items() if "lora_" in n}, math.inf
    write_tensors(folder, "adapter_model" if lora else "model", tensors, limit)
    if RANK == 0 and lora:
        write_json(
            os.path.join(folder, "adapter_config.json"),
            lora
            | {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": model.source,
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
            },
        )
    elif RANK == 0:
        model.config.save(folder, model.lm_head.weight.dtype)
    for path in [
        os.path.join(d, file)
        for d in (not lora and model.source, tokenizer_from)
        if d
        for file in BESIDE
    ]:
        if (
            RANK == 0
            and os.path.exists(path)
            and os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder)
        ):
            shutil.copy(path, folder)

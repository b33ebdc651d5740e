"""LLaMA by hand: attention with its causal mask, LoRA, the block, the decoder.

Module and attribute names are the checkpoint's tensor names (model.layers.0.self_attn.q_proj), so
loading is a strict copy without a rename table. A batch is not padded: its sequences lie end to end
in one row of tokens. A Layout says which token belongs to which sequence; what is outside attention
and the cache works token by token.

Symbols in shape comments: B sequences, T tokens of all of them, U of these that are computed (what
sequences begin with in common is computed once; else U = T), R response tokens, D width, H heads, K
key/value heads, d width of a head, V vocabulary, r LoRA rank.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plumbing.checkpoint import peft
from plumbing.checkpoint.config import LLAMA3_ROPE, Config
from plumbing.checkpoint.folder import ModelFolder, copy_companions, write_model
from plumbing.compute.attention import attend
from plumbing.compute.cache import KVCache
from plumbing.compute.layout import CachedLayout, Layout, lay_out
from plumbing.compute.products import fused, linear


@fused
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), feature by feature times a weight [D]."""
    h = x.float()  # in bf16 the squares would lose the small components
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:  # [U, D]
        return rms_norm(x, self.weight, self.eps)


def rope_table(config: Config, position: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin [U, 1, d] for positions [U]: features j and j + d/2 are a pair, which is rotated by
    the angle position * theta^(-2j/d)."""
    two_j = torch.arange(0, config.head_dim, 2, device=position.device).float()  # [d/2]
    frequency = 1.0 / config.rope_theta ** (two_j / config.head_dim)
    if config.rope_scaling:
        # LLaMA-3.1: long waves are stretched by the factor, short ones kept, a ramp between them.
        factor, low, high, trained = (config.rope_scaling[name] for name in LLAMA3_ROPE)
        waves = trained * frequency / (2 * math.pi)  # that fit into the training's context
        ramp = ((waves - low) / (high - low)).clamp(0, 1)
        frequency = (1 - ramp) * frequency / factor + ramp * frequency
    angle = (position[:, None].float() * frequency).repeat(1, 2)[:, None]  # [U, d/2] -> [U, 1, d]
    return angle.cos(), angle.sin()


@fused
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [U, H, d] rotated by its position, cos and sin [U, 1, d]. A pair is (first half, second
    half), not (even, odd)."""
    a, b = x.float().chunk(2, -1)  # [U, H, d/2]
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention of one sequence, as a textbook has it: softmax(q k^T / sqrt(d) + mask) v.

    q [n, H, d]: its last n tokens. k, v [s, K, d]: all s tokens. window: Mistral's sliding window,
    the tokens that one sees, itself included. Returns [n, H, d]. What runs is attend, which gives
    the same for many sequences at once (tests/test_model.py)."""
    n, s, groups = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)  # [s, H, d]
    scores = torch.einsum("nhd,shd->hns", q, k) / math.sqrt(q.shape[-1])  # [H, n, s]

    query = torch.arange(s - n, s, device=q.device)[:, None]  # positions [n, 1]
    key = torch.arange(s, device=q.device)  # [s]
    visible = key <= query  # the causal mask [n, s]: nothing that comes later is seen
    if window:
        visible &= key > query - window
    scores = scores.masked_fill(~visible, -torch.inf)

    return torch.einsum("hns,shd->nhd", scores.softmax(-1), v)  # [n, H, d]


class Linear(nn.Linear):
    """W x, and with LoRA (arXiv 2106.09685) W x + scale * B A x."""

    scale = None  # without LoRA

    def forward(self, x: Tensor) -> Tensor:  # [U, in]
        y = linear(x, self.weight, self.bias)  # [U, out]
        if self.scale is None:
            return y
        # A [r, in] and B [out, r] are stored in fp32.
        A, B = (m.weight.to(y.dtype) for m in (self.lora_A, self.lora_B))
        a = F.linear(self.dropout(x), A)  # [U, r]
        return y.addmm_(a, B.T, alpha=self.scale)  # y + scale * B a

    def attach_lora(self, r: int, alpha: float, dropout: float, use_rslora: bool) -> None:
        """Add A [r, in] and B [out, r]. B starts at zero, so at first nothing changes."""
        self.lora_A = nn.Linear(self.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, self.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / (r**0.5 if use_rslora else r)

    def fold_lora(self) -> None:
        """Fold scale * B A into W: the same function, a plain linear layer again."""
        delta = self.lora_B.weight.float() @ self.lora_A.weight.float() * self.scale  # in fp32
        self.weight = nn.Parameter((self.weight.float() + delta).to(self.weight.dtype))
        del self.lora_A, self.lora_B, self.dropout, self.scale


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.d = config.head_dim
        D, bias = config.hidden_size, config.attention_bias
        queries, keys = config.num_attention_heads * self.d, config.num_key_value_heads * self.d
        self.q_proj = Linear(D, queries, bias)
        self.k_proj = Linear(D, keys, bias)
        self.v_proj = Linear(D, keys, bias)
        self.o_proj = Linear(queries, D, bias)

    def forward(
        self,
        x: Tensor,  # [U, D]
        rope: tuple[Tensor, Tensor],
        layout: Layout | CachedLayout,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        U = x.shape[0]
        q = self.q_proj(x).view(U, -1, self.d)  # [U, H, d]
        k = self.k_proj(x).view(U, -1, self.d)  # [U, K, d]
        v = self.v_proj(x).view(U, -1, self.d)  # [U, K, d]
        q, k = rotate(torch.cat([q, k], 1), *rope).split([q.shape[1], k.shape[1]], 1)
        k, v = layout.expand(k), layout.expand(v)  # [T, K, d]: what is shared, for each sequence
        if cache is not None:
            k, v = cache.append(layer, k, v, layout)  # with those of the tokens before
        # causal_attention of every sequence by itself: the layout says where each begins and ends.
        out = attend(q, k, v, layout)  # [U, H, d]
        return self.o_proj(out.flatten(1))  # [U, H d] -> [U, D]


@fused
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.input_layernorm = RMSNorm(D, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(D, config.rms_norm_eps)
        self.mlp = nn.Module()
        self.mlp.gate_proj = Linear(D, width, bias)
        self.mlp.up_proj = Linear(D, width, bias)
        self.mlp.down_proj = Linear(width, D, bias)

    def forward(
        self,
        x: Tensor,  # [U, D]
        rope: tuple[Tensor, Tensor],
        layout: Layout | CachedLayout,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, layout, cache, layer)
        h = self.post_attention_layernorm(x)  # [U, D]
        gated = swiglu(self.mlp.gate_proj(h), self.mlp.up_proj(h))  # [U, width of the MLP]
        return x + self.mlp.down_proj(gated)


class LlamaForCausalLM(nn.Module):
    """The network of a Config, weights at random; load_model reads a folder's."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.source = None  # the folder of its weights, without those of an adapter
        self.lora = None  # the LoraSettings of its layers
        self.share_prefixes = True  # what sequences begin with in common is computed once
        self.computed = 0  # tokens of the last forward pass, without those that were shared
        self.recompute = False  # activation checkpointing: of a block its input alone is kept
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        lengths: list[int],
        cache: KVCache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Logits [R, V] of the next token. ids [T]: sequences end to end, on any device. lengths: B
        ints that sum to T. cache: row b holds the keys and values of sequence b so far; these
        tokens continue it, and are appended. at [R]: the positions in 0..T-1 whose logits are
        wanted (default: all); the vocabulary projection, a step's largest tensor, is computed there
        alone."""
        device, window = self.model.embed_tokens.weight.device, self.config.sliding_window
        # Dropout is drawn for each sequence apart, as if nothing were shared.
        dropout = self.training and self.lora and self.lora.lora_dropout
        share = self.share_prefixes and not dropout
        layout = lay_out(ids, lengths, device, window, share, cache)
        self.computed = len(layout.ids)
        rope = rope_table(self.config, layout.position)
        recompute = self.recompute and torch.is_grad_enabled()

        x = self.model.embed_tokens(layout.ids)  # [U, D]
        for layer, block in enumerate(self.model.layers):
            if recompute:
                kept = {"use_reentrant": False, "preserve_rng_state": bool(dropout)}
                x = checkpoint(block, x, rope, layout, **kept)
            else:
                x = block(x, rope, layout, cache, layer)
        x = self.model.norm(layout.pick(x, at))  # [R, D]
        return self.lm_head(x)  # [R, V]

    def new_cache(self, B: int, slots: int) -> KVCache:
        """An empty cache for B sequences of at most so many tokens."""
        c, weight = self.config, self.lm_head.weight
        shape = c.num_hidden_layers, B, c.num_key_value_heads, slots, c.head_dim
        return KVCache(*shape, weight.device, weight.dtype)


def add_lora(model: LlamaForCausalLM, settings: peft.LoraSettings) -> None:
    """Freeze the model and attach LoRA where the settings say, on torch's default device."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    targets = peft.lora_targets(list(linears), settings)
    model.requires_grad_(False)
    for name, r, alpha in targets:
        linears[name].attach_lora(r, alpha, settings.lora_dropout, settings.use_rslora)
    model.lora = settings


@torch.no_grad()
def merge_lora(model: LlamaForCausalLM) -> None:
    """Fold every adapter into its weight, in place: the same function, a plain LLaMA again."""
    for module in model.modules():
        if isinstance(module, Linear) and module.scale is not None:
            module.fold_lora()
    # Not tied any more where lm_head had LoRA.
    model.config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    model.lora = None


def build_model(folder: str, base: str | None = None) -> tuple[LlamaForCausalLM, ModelFolder]:
    """(the network of a Hugging Face folder, or of a LoRA adapter on its base (or on `base`), still
    without memory; its folder, whose weights were found whole). Before files.fill(model), which
    reads them, LoRA may be added and the model be sharded. Raises InputError."""
    files = ModelFolder(folder, base)
    with torch.device("meta"):
        model = LlamaForCausalLM(files.config)
        if files.lora:
            with peft.errors_of(folder):
                add_lora(model, files.lora)
    files.locate(model)
    model.source = files.source
    return model, files


def load_model(
    folder: str, dtype: torch.dtype | None = None, device: str = "cpu", base: str | None = None
) -> LlamaForCausalLM:
    """build_model with its weights, in `dtype` (None: as stored; LoRA is fp32). Raises
    InputError."""
    model, files = build_model(folder, base)
    files.fill(model, dtype, device)
    return model


def save_model(
    model: LlamaForCausalLM, folder: str, tokenizer_from: str | None = None, limit: float = 5e9
) -> None:
    """Write the adapter alone (PEFT's format) if there is LoRA, else a full Hugging Face folder.
    Beside it the tokenizer's files. Files of about `limit` bytes. All processes take part."""
    write_model(model, model.config, model.lora, model.source, folder, limit)
    copy_companions([None if model.lora else model.source, tokenizer_from], folder)

"""Causal attention of sequences that stand end to end, by the fastest kernel where they are.

Every backend computes what model.py:causal_attention computes for one sequence.

q [U, H, d]: of the tokens that are computed. k, v [T, K, d]: of all tokens. What comes out is
[U, H, d]. Symbols as in layout.py.
"""

import inspect
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from plumbing.compute.layout import CachedLayout, Layout
from plumbing.compute.threads import THREADS

HAS_VARLEN = False
if torch.cuda.is_available():  # the import takes seconds, and the kernel is for CUDA alone
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        names = inspect.signature(varlen_attn).parameters.keys()
        HAS_VARLEN = {"window_size", "enable_gqa"} <= names


def padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """One call for rectangles that are padded to the longest sequence: the reference."""
    rows, keys = layout.computed, layout.whole
    if layout.place is None and not layout.window:
        mask = {"is_causal": True}
    else:
        n, s = rows.n, keys.n
        lengths, own = (torch.tensor(x, device=q.device) for x in (layout.lengths, layout.own))
        first = (lengths - own)[:, None]  # [B, 1]
        query = (first + torch.arange(n, device=q.device)).clamp(max=s - 1)  # [B, n]
        mask = {"attn_mask": layout.mask(q.dtype)[query][:, None]}  # [B, 1, n, s]
    q, k, v = rows.pad(q), keys.pad(k), keys.pad(v)
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **mask)
    return rows.unpad(out)


def each(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """One call for each sequence: nothing is computed for padding."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, U, d], [1, K, T, d]
    q, k, v = q.split(layout.own, 2), k.split(layout.lengths, 2), v.split(layout.lengths, 2)
    outs = []
    for n, s, *qkv in zip(layout.own, layout.lengths, q, k, v, strict=True):
        if not n:
            continue
        mask = {"is_causal": True}
        if n < s or layout.window:
            mask = {"attn_mask": layout.mask(q[0].dtype)[s - n : s, :s]}
        out = F.scaled_dot_product_attention(*qkv, enable_gqa=True, **mask)  # [1, H, n, d]
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)  # [U, H, d]


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """FlashAttention's kernel for unequal lengths (CUDA, bf16 and fp16)."""
    rows, keys = layout.computed, layout.whole
    ends, longest = (rows.ends, keys.ends), (rows.n, keys.n)
    window = ((layout.window or 0) - 1, 0)  # -1: all that is before
    return varlen_attn(q, k, v, *ends, *longest, window_size=window, enable_gqa=True)


def cached(q: Tensor, k: Tensor, v: Tensor, layout: CachedLayout) -> Tensor:
    """For tokens q [T, H, d] that continue sequences: k, v [B, K, s, d] are a cache's slots."""
    q = layout.whole.pad(q)  # [B, H, n, d]
    mask = layout.mask(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return layout.whole.unpad(out)


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | CachedLayout) -> Tensor:
    """By the fastest backend for where the tensors are: on a CPU sequence by sequence, measured."""
    THREADS.fit(q.device)  # before each layer, and on the way back behind it
    if q.requires_grad and not q.is_cuda:
        q.register_hook(lambda gradient: THREADS.fit(gradient.device))
    if isinstance(layout, CachedLayout):
        return cached(q, k, v, layout)
    if not q.is_cuda:
        return each(q, k, v, layout)
    fits = HAS_VARLEN and q.dtype in (torch.bfloat16, torch.float16)
    return (varlen if fits else padded)(q, k, v, layout)

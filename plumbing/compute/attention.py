"""Causal attention of sequences that stand end to end, by the fastest kernel where they are.

Every backend computes what model.py:causal_attention computes for one sequence.

q [U, H, d]: of the tokens that are computed. k, v [T, K, d]: of all tokens. What comes out is
[U, H, d]. Symbols as in layout.py; G = H / K heads of queries share a head of keys.
"""

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from plumbing.compute.layout import CachedLayout, Layout
from plumbing.compute.threads import THREADS

# cuDNN's attention plans anew for every shape, and here nearly every batch has another one.
torch.backends.cuda.enable_cudnn_sdp(False)


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of rectangles q [B, H, n, d], k, v [B, K, s, d] under a mask [B, 1, G n, s]:
    [B, H, n, d]. The G heads that share keys become rows of one head: with a mask, CUDA's fast
    kernels take no groups of heads."""
    B, H, n, d = q.shape
    q = q.reshape(B, k.shape[1], -1, d)  # [B, K, G n, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(B, H, n, d)


def padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """One call for rectangles that are padded to the longest sequence: on CUDA where FlashAttention
    is missing."""
    rows, keys = layout.computed, layout.whole
    mask = layout.padded_mask(q.dtype, q.shape[1] // k.shape[1])
    return rows.unpad(masked(rows.pad(q), keys.pad(k), keys.pad(v), mask))


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


@functools.cache
def flash_attention() -> Callable | None:
    """FlashAttention's kernel for unequal lengths; None where PyTorch has none with windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # takes seconds: where it is used alone
    except ImportError:
        return None
    names = inspect.signature(varlen_attn).parameters
    if "window_size" not in names:
        return None
    # Torch 2.11 takes fewer heads of keys without being told.
    grouped = {"enable_gqa": True} if "enable_gqa" in names else {}
    return functools.partial(varlen_attn, **grouped)


def has_flash_attention(q: Tensor) -> bool:
    """Whether FlashAttention takes q [U, H, d]: in 16 bits, d a multiple of 8 and at most 256, on a
    GPU since Ampere."""
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] % 8 == 0 and q.shape[2] <= 256
    return fits and torch.cuda.get_device_capability(q.device) >= (8, 0) and bool(flash_attention())


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """One call of FlashAttention for sequences end to end."""
    rows, keys = layout.computed, layout.whole
    ends, longest = (rows.ends, keys.ends), (rows.n, keys.n)
    window = ((layout.window or 0) - 1, 0)  # -1: all that is before
    return flash_attention()(q, k, v, *ends, *longest, window_size=window)


def cached(q: Tensor, k: Tensor, v: Tensor, layout: CachedLayout) -> Tensor:
    """For tokens q [T, H, d] that continue sequences: k, v [B, K, s, d] are a cache's slots."""
    mask = layout.mask(q.dtype, q.shape[1] // k.shape[1])
    return layout.whole.unpad(masked(layout.whole.pad(q), k, v, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | CachedLayout) -> Tensor:
    """Attention by the fastest backend for where the tensors are; k and v as cache.append returns
    them. On a CPU one call for each sequence was the fastest where it was measured."""
    THREADS.fit(q.device)  # before each layer, and on the way back behind it
    if q.requires_grad and not q.is_cuda:
        q.register_hook(lambda gradient: THREADS.fit(gradient.device))
    if isinstance(layout, CachedLayout):
        return cached(q, k, v, layout)
    if not q.is_cuda:
        return each(q, k, v, layout)
    return (varlen if has_flash_attention(q) else padded)(q, k, v, layout)

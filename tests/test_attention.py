"""Every backend of attention is held to the formula, and to each other."""

import math

import pytest
import torch
from test_layout import family, laid

from plumbing.compute import attention

HAS_CUDA = torch.cuda.is_available()


def by_formula(q, k, v, layout, lengths):
    """softmax(Q K^T / sqrt d) V, token by token in fp64."""
    groups = q.shape[1] // k.shape[1]
    out, done = torch.zeros(len(q), *q.shape[1:], dtype=torch.float64), set()
    place = range(sum(lengths)) if layout.place is None else layout.place.tolist()
    first = 0
    for length in lengths:
        for i in range(length):
            node = place[first + i]
            if node in done:
                continue
            done.add(node)
            nearest = max(0, i + 1 - layout.window) if layout.window else 0
            seen = slice(first + nearest, first + i + 1)
            for head in range(q.shape[1]):
                keys, values = k[seen, head // groups].double(), v[seen, head // groups].double()
                p = (keys @ q[node, head].double() / math.sqrt(q.shape[2])).softmax(0)
                out[node, head] = p @ values
        first += length
    return out


def inputs(sequences, window, device="cpu", dtype=torch.float32, share=True):
    layout = laid(sequences, device=device, window=window, share=share)
    g = torch.Generator().manual_seed(1)
    U, T = len(layout.ids), sum(layout.lengths)
    shapes = (U, 4, 16), (T, 2, 16), (T, 2, 16)
    q, k, v = (torch.randn(shape, generator=g).to(device, dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], layout


@pytest.mark.parametrize("backend", [attention.padded, attention.each, attention.attend])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("share", [True, False])
def test_backends_compute_the_formula(backend, window, share):
    sequences = family(5)
    qkv, layout = inputs(sequences, window, share=share)
    out = backend(*qkv, layout)
    expected = by_formula(*qkv, layout, [len(s) for s in sequences])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_backends_have_the_same_gradients(window):
    grads = []
    for backend in (attention.padded, attention.each):
        qkv, layout = inputs(family(6), window)
        out = backend(*qkv, layout)
        torch.manual_seed(0)
        (out * torch.randn_like(out)).sum().backward()
        grads.append([x.grad for x in qkv])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
@pytest.mark.skipif(not attention.HAS_VARLEN, reason="needs torch.nn.attention.varlen of 2.13")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("share", [True, False])
def test_flash_attention_is_the_padded_one_on_cuda(dtype, window, share):
    results = []
    for backend in (attention.padded, attention.varlen):
        qkv, layout = inputs(family(7), window, "cuda", dtype, share)
        out = backend(*qkv, layout)
        torch.manual_seed(0)
        (out * torch.randn_like(out)).sum().backward()
        results.append([out, *(x.grad for x in qkv)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)

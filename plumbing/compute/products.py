"""Matrix products and elementwise functions, in the form that is fastest where they run."""

import functools
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where another form of the product is tried, as it came out on an AMD EPYC (docs/training.md):
FEW, LARGE = 64, 100_000  # at most so many rows, at least so many elements of a weight
SLOWER = range(9, 16)  # numbers of rows with which it was slower
PARTS = 8  # of a weight
GAIN = 0.9  # the share of the plain form's time that another one has to stay below
# Weights to try the forms on, [n, out, in]: more than a cache holds, as a model's are.
TRIED = (16, 1536, 576)
COMPILERS = ("gcc", "clang")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b for x [T, in], W [out, in]: [T, out].

    A few rows against a large weight, as in decoding, are computed on a CPU by another form of the
    product where that is faster. 9 to 15 rows were slower so wherever it was measured."""
    if x.is_cuda or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    few = len(x) <= FEW and len(x) not in SLOWER and weight.numel() >= LARGE
    if not few or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    form = in_parts if len(x) == 1 else transposed
    uneven = form is in_parts and len(weight) % PARTS
    if uneven or not is_faster(form):
        return F.linear(x, weight, bias)
    y = form(x, weight)
    return y if bias is None else y + bias


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    """W x for x [T, in], W [out, in], as W X^T: [T, out]."""
    return (weight @ x.T).T


def in_parts(x: Tensor, weight: Tensor) -> Tensor:
    """W x for a single row x [1, in], W [out, in], as the products of W's parts: [1, out]. The
    threads share the parts, where they would not share a product with one row."""
    parts = weight.view(PARTS, -1, weight.shape[1])  # [PARTS, out / PARTS, in]
    return torch.bmm(parts, x.T.expand(PARTS, -1, -1)).view(1, -1)


@functools.cache
def is_faster(form: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether a form is faster than the plain one on this processor, by some hundredths of a
    second of trying: W X^T with four rows, parts with one."""
    weights, x = torch.ones(TRIED), torch.ones(4 if form is transposed else 1, TRIED[-1])

    def seconds(form: Callable) -> float:
        started = time.thread_time()  # of this thread alone: other programs count less
        for weight in weights:
            form(x, weight)
        return time.thread_time() - started

    tries = [(seconds(form), seconds(F.linear)) for _ in range(6)][1:]  # the first one warms
    other, plain = map(min, zip(*tries, strict=True))
    return other < GAIN * plain


def has_compiler() -> bool:
    """Whether Triton is there and what it needs: a C compiler, and Python's headers."""
    compiler = os.environ.get("CC") or any(map(shutil.which, COMPILERS))
    headers = os.path.join(sysconfig.get_config_var("INCLUDEPY"), "Python.h")
    return bool(importlib.util.find_spec("triton") and compiler and os.path.exists(headers))


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors, compiled by PyTorch where the first of them is on CUDA and a compiler
    is there. By itself each of its operations reads and writes whole tensors. Elsewhere the
    function runs as it is written."""

    @functools.cache
    def compiled() -> Callable[..., Tensor]:
        # What cannot be compiled runs as it is written, and PyTorch says why.
        torch._dynamo.config.suppress_errors = True
        # Each dtype is a compilation of its own, with gradients and without, for one token too.
        torch._dynamo.config.recompile_limit = 64
        if not has_compiler():
            return function
        # In the order of a sum nothing must hang on the first batch, since a resumed run has
        # another one. So the rows of a norm are summed in one way whatever their number is.
        options = {"triton.persistent_reductions": False}
        return torch.compile(function, dynamic=True, options=options)

    @functools.wraps(function)
    def run(x: Tensor, *others) -> Tensor:
        if not x.is_cuda:
            return function(x, *others)
        # The gradient of a parameter is a sum over tokens, whose order would hang on that batch.
        summed = torch.is_grad_enabled() and any(
            isinstance(other, nn.Parameter) and other.requires_grad for other in others
        )
        return (function if summed else compiled())(x, *others)

    return run

"""The matrix product of a linear layer, by the form that is fastest where it is computed."""

import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor

FEW, LARGE = 64, 100_000  # rows; elements of a weight
SLOWER = range(9, 16)  # rows
GAIN = 0.9  # the share of the plain form's time that the other one has to stay below
# Weights to try them on, [n, out, in]: more than a cache holds, as a model's are.
TRIED = (16, 1536, 576)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b for x [T, in], W [out, in]: [T, out].

    A few rows against a large weight, as in decoding, are computed as W X^T on a CPU where that is
    faster than X W^T; a single row is then taken twice, since it is faster as a matrix. 9 to 15
    rows were slower so wherever it was measured."""
    few = len(x) <= FEW and len(x) not in SLOWER and weight.numel() >= LARGE
    few = few and not torch.is_autocast_enabled("cpu")
    if not few or x.is_cuda or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    if not transposed_is_faster():
        return F.linear(x, weight, bias)
    y = transposed(x, weight)
    return y if bias is None else y + bias


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    """W x for x [T, in], W [out, in], as W X^T: [T, out]."""
    rows = x if len(x) > 1 else torch.cat([x, x])
    return (weight @ rows.T).T[: len(x)]


@functools.cache
def transposed_is_faster() -> bool:
    """Whether it is on this processor, by a few hundredths of a second of trying a single row: it
    takes two thirds of the plain form's time on an AMD EPYC, and twice as long on an Intel Xeon."""
    weights, x = torch.ones(TRIED), torch.ones(1, TRIED[-1])

    def seconds(form) -> float:
        started = time.perf_counter()
        for weight in weights:
            form(x, weight)
        return time.perf_counter() - started

    tries = [(seconds(transposed), seconds(F.linear)) for _ in range(3)][1:]  # the first one warms
    ours, plain = map(min, zip(*tries, strict=True))
    return ours < GAIN * plain

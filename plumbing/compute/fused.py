"""Elementwise functions as one CUDA kernel each."""

import functools
import importlib.util
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

COMPILERS = ("cc", "gcc", "clang")  # which Triton needs


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of tensors, compiled by PyTorch where the first of them is on CUDA and a compiler
    is there. By itself each of its operations reads and writes whole tensors. Elsewhere the
    function runs as it is written."""

    @functools.cache
    def compiled() -> Callable[..., Tensor]:
        torch._dynamo.config.suppress_errors = True  # where it cannot compile, as it is written
        torch._dynamo.config.recompile_limit = 64  # dtypes, with gradients and without, one token
        found = importlib.util.find_spec("triton") and any(map(shutil.which, COMPILERS))
        return torch.compile(function, dynamic=True) if found else function

    @functools.wraps(function)
    def run(x: Tensor, *others) -> Tensor:
        return (compiled() if x.is_cuda else function)(x, *others)

    return run

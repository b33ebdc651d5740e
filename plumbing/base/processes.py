"""The processes of torchrun: ranks, FSDP2, sums over all of them, progress, a clean end.

One process that was started by hand is rank 0 of 1; what would talk to others does nothing then.
"""

import os
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

from plumbing.base.errors import plain, require

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if WORLD > 1:  # these imports take seconds
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh


def progress_bar(*args, **options) -> tqdm:
    """A bar with rate and time left, shown by the first process alone."""
    return tqdm(*args, disable=RANK > 0, dynamic_ncols=True, **options)


def join_processes(device: str) -> None:
    """Meet the other processes of torchrun."""
    if WORLD > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")


def leave_processes() -> None:
    """Part from the other processes, when all of them are done."""
    if WORLD > 1:
        dist.destroy_process_group()


def end_process(code: int) -> None:
    """End this process with an exit code. Threads of gloo outlive their group, and one that lets go
    of a tensor while Python ends would abort the process; so where there are several, Python is not
    ended at all."""
    if WORLD > 1:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def shard(parts: list[torch.nn.Module], device: str) -> None:
    """Split every parameter of the modules over the processes (FSDP2), inner modules first. A
    part's weights are whole only while it computes. Gradients become sums over the processes."""
    mesh = init_device_mesh(torch.device(device).type, (WORLD,))
    for part in parts:
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor that every process has whole, split as the parameter is."""
    if not is_sharded(parameter):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter, its gradient or a norm of them, gathered; every process must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    return WORLD > 1 and isinstance(tensor, DTensor)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in place, with those of the other processes added."""
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_from_processes(value: object) -> list:
    """The values of all processes, by rank."""
    values = [value] * WORLD
    if WORLD > 1:
        dist.all_gather_object(values, value)
    return values


def require_agreement(what: str, value: object) -> None:
    """Raise InputError, in every process, unless all of them have the same value: a node has other
    files than the first one. They would train on different things, or wait for each other."""
    first, *values = map(str, gather_from_processes(value))
    for rank, other in enumerate(values, start=1):
        found = f"process {rank} has {plain(other, 200)}, process 0 has {plain(first, 200)}"
        require(other == first, f"{what}: {found}; expected the same files on every node")

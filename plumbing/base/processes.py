"""The processes of torchrun: ranks, FSDP2, sums over all of them, progress, a clean end.

One process that was started by hand is rank 0 of 1; what would talk to others does nothing then.
"""

import os
import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from tqdm import tqdm

from plumbing.base.errors import InputError, plain, require

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def read_launcher(variables: Mapping[str, str]) -> tuple[int, int]:
    """(rank, number of processes) as torchrun says them in the environment; (0, 1) where the script
    was started by hand. Raises InputError for variables that are left over from a launcher."""
    rank, world = variables.get("RANK", "0"), variables.get("WORLD_SIZE", "1")
    if (rank, world) == ("0", "1"):
        return 0, 1
    given = all(variables.get(name) for name in LAUNCHED)
    fits = given and all(x.isdecimal() and len(x) < 9 for x in (rank, world))
    found = ", ".join(f"{x}={variables[x]}" for x in LAUNCHED if x in variables)
    sentence = f"{found}: torchrun would set all of {', '.join(LAUNCHED)}, with RANK below "
    sentence += "WORLD_SIZE, so these are left over from a launcher"
    advice = "unset RANK and WORLD_SIZE, or start the script with torchrun"
    require(fits and int(rank) < int(world), f"{sentence}; {advice}")
    return int(rank), int(world)


LEFT_OVER = ""  # what is wrong with the environment, for join_processes
try:
    RANK, WORLD = read_launcher(os.environ)
except InputError as error:  # while a script is imported
    RANK, WORLD, LEFT_OVER = 0, 1, str(error)
if WORLD > 1:  # these imports take seconds
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor, init_device_mesh


def progress_bar(*args, **options) -> tqdm:
    """A bar with rate and time left, shown by the first process alone."""
    return tqdm(*args, disable=RANK > 0, dynamic_ncols=True, **options)


def join_processes(device: str) -> None:
    """Meet the other processes of torchrun. Raises InputError."""
    require(not LEFT_OVER, LEFT_OVER)
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

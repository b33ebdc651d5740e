"""The processes of torchrun: ranks, FSDP2, progress."""

import functools
import os

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from tqdm import tqdm

RANK, WORLD = (
    int(os.environ.get("RANK", 0)),
    int(os.environ.get("WORLD_SIZE", 1)),
)  # set by torchrun
progress = functools.partial(tqdm, disable=RANK > 0, dynamic_ncols=True)


def shard(model, device):
    """Split every parameter over the processes of torchrun (FSDP2): a block's weights are whole only while it computes."""
    mesh = init_device_mesh(torch.device(device).type, (WORLD,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)  # gradients are sums over processes
        part.set_force_sum_reduction_for_comms(True)


def whole(tensor):
    """A parameter, its gradient or a norm of them, gathered from all processes; each of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

"""What a run will need, before it begins: bytes, FLOPs and time, from shapes alone.

The network, a micro-batch and the backward pass are those of the run, but their tensors have no
memory (PyTorch's FakeTensorMode), so a 70B model is planned on a laptop. What they would hold is
counted while the pass goes on, and so are the FLOPs (PyTorch's FlopCounterMode).
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from plumbing.errors import InputError, require
from plumbing.meters import PEAK

# Bytes of memory of GPUs, by the names of PEAK.
MEMORY = {"H100 PCIe": 80e9, "H100": 80e9, "H200": 141e9, "A100": 80e9, "L40S": 48e9, "4090": 24e9}
SPARE = 0.06  # of a GPU's memory: CUDA itself, kernels' workspaces, what the allocator cannot use


class LiveBytes(TorchDispatchMode):
    """While it is on: the bytes of tensors that are made and still held, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.hold(leaf.untyped_storage())
        return out

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, lambda _: self.release(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def release(self, key: int, size: int) -> None:
        del self.storages[key]
        self.now -= size


def fake_tensors() -> FakeTensorMode:
    """Tensors that are made under it have shapes, and no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass
class Plan:
    """What one GPU holds at most, in bytes, and what a pass computes."""

    parameters: int  # numbers in the network, all GPUs together
    trained: int
    weights: float
    gradients: float
    moments: float
    activations: float  # with what backward needs besides, at its worst moment
    flops: float  # of the micro-batch that was tried

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations


def measure(model: nn.Module, blocks: Iterable[nn.Module], run_pass: Callable, gpus: int) -> Plan:
    """The Plan of a model (under fake_tensors()) whose weights are split over `gpus`; `blocks` are
    the parts that FSDP2 gathers while they compute. run_pass() is a forward and backward pass over
    one micro-batch."""
    sizes = [(p.numel(), p.nbytes, p.requires_grad) for p in model.parameters()]
    held = sum(size for _, size, _ in sizes)
    trained = sum(size for _, size, requires_grad in sizes if requires_grad)
    with set_checkpoint_early_stop(False):  # whose exceptions would keep fake tensors alive
        run_pass()  # so that gradients are there, as from the second micro-batch on
        with FlopCounterMode(display=False) as counter, LiveBytes() as live:
            run_pass()
    gathered = 0.0
    if gpus > 1:  # a block and the next one, and what is in none of them: table, head, last norm
        in_blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks]
        gathered = 2 * max(in_blocks) + held - sum(in_blocks)
    return Plan(
        parameters=sum(number for number, _, _ in sizes),
        trained=sum(number for number, _, requires_grad in sizes if requires_grad),
        weights=held / gpus + gathered,
        gradients=trained / gpus,
        moments=2 * trained / gpus,
        activations=live.peak,
        flops=counter.get_total_flops(),
    )


def find_gpu(name: str) -> str:
    """The name in PEAK. Raises InputError."""
    require(name in PEAK, f"--gpu {name}: not known; expected one of {', '.join(PEAK)}")
    return name

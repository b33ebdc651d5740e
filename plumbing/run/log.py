"""What a run says of itself at every step: its logs, tokens per second, MFU, memory."""

import json
import math
import os
import pathlib
import resource
import sys
import time
import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plumbing.base.processes import RANK, WORLD

LOGS = ("log.jsonl", "speed.jsonl")  # the same on every run; how fast this one was
# FLOP/s of GPUs in bf16, dense.
PEAK = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


class Logs:
    """The two JSON-lines files of a run, written by the first process at once."""

    def __init__(self, folder: str, checkpoint: str | None = None):
        """Begin anew; with a checkpoint, as it left them: what came after it is done again."""
        self.files = []
        for name in LOGS:
            begun = pathlib.Path(checkpoint, name).read_bytes() if checkpoint else b""
            file = open(os.path.join(folder, name) if RANK == 0 else os.devnull, "wb", 0)
            file.write(begun)
            self.files.append(file)
            if checkpoint and name == LOGS[0]:
                *before, last = begun.splitlines(keepends=True)
                self.last, self.before = json.loads(last), sum(map(len, before))

    def write(self, *rows: dict) -> None:
        """Add a line to each of LOGS."""
        self.last, self.before = rows[0], self.files[0].tell()
        for file, row in zip(self.files, rows, strict=True):
            file.write(to_line(row))

    def extend(self, figures: dict[str, float]) -> dict[str, float]:
        """Add figures to the last line of the first of LOGS; returns them."""
        file = self.files[0]
        if RANK == 0:
            file.seek(self.before)
            file.truncate()
        self.last = self.last | figures
        file.write(to_line(self.last))
        return figures


def to_line(row: dict) -> bytes:
    """A line of JSON; a number that is not finite, which JSON lacks, is null."""
    finite = {name: v if v is None or math.isfinite(v) else None for name, v in row.items()}
    return (json.dumps(finite) + "\n").encode()


def logged_steps(folder: str) -> int | None:
    """How many whole lines each of LOGS has in a checkpoint; None where they are not there or do
    not agree."""
    counts = set()
    for name in LOGS:
        path = pathlib.Path(folder, name)
        text = path.read_bytes() if path.is_file() else b"?"
        counts.add(text.count(b"\n") if text.endswith(b"\n") else None)
    return counts.pop() if len(counts) == 1 else None


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def trained_parameters(module: nn.Module) -> str:
    """How many numbers of a module are trained: "8 of 100"."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{trained:,} of {count_parameters(module):,}"


def brief(figures: dict, speed: dict) -> str:
    """The figures of a step for the progress bar."""
    names = [name for name in ("mle", "ul", "preference", "hinge") if figures.get(name) is not None]
    losses = [f"{name} {figures[name]:.3f}" for name in names]
    return ", ".join([*losses, f"{speed['tokens_per_s']:,.0f} tokens/s"])


def describe(s: object, model: nn.Module, samples: int, general: int, steps: int) -> str:
    """What a run with the Settings s of train.py is, for its first lines. general: of how many
    other instructions it draws --general-share."""
    twins = f"twins with alpha {s.alpha:g}, --conflict {s.conflict}"
    mixed = f", {100 * s.general_share:g} % of a step out of {general:,} other instructions"
    lines = [
        s.describe_preset(),
        f"stage {s.stage}: {s.init or s.model} -> {s.out}, {samples:,} samples"
        f"{mixed if general else ''}, template {s.template}, {twins if s.alpha else 'MLE alone'}",
        f"{trained_parameters(model)} parameters, {'full' if s.full else 'LoRA'}, {s.dtype} on "
        f"{WORLD} {s.device}, {steps} steps of {s.batch_size}, rate {s.lr:g}",
    ]
    return "\n".join(filter(None, lines))


class SpeedMeter:
    """Tokens per second, model FLOPs utilisation and peak memory of a step. Model FLOPs of a token
    and parameter: 2 forward, 2 for the gradients of activations, with --full 2 for those of weights
    (LoRA's own are few, and counted as if frozen); recomputation does not count. `body` and `head`
    are the parameters that every token passes, and those that response tokens alone pass. The
    utilisation is of PEAK in every dtype."""

    def __init__(self, body: nn.Module, head: nn.Module, full: bool, device: str):
        self.body, self.head = count_parameters(body), count_parameters(head)
        self.flops = 6 if full else 4
        self.device = device
        gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
        peaks = [flops * WORLD for name, flops in PEAK.items() if name in gpu]
        self.peak = peaks[0] if peaks else None
        self.started = time.time()

    def start(self) -> None:
        """A step begins."""
        self.started = time.time()

    def stop(self, step: int, tokens: int, responses: int, computed: int | None = None) -> dict:
        """The row of speed.jsonl for a step with so many tokens, so many of them of responses. MFU
        is of those that were computed (default: all), what sequences share once."""
        computed = tokens if computed is None else computed
        seconds = time.time() - self.started
        flops = self.flops * (self.body * computed + self.head * responses)
        return {
            "step": step,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "computed": computed / tokens,
            "peak_memory_gib": self.peak_memory() / 2**30,
            "mfu": flops / seconds / self.peak if self.peak else None,
        }

    def peak_memory(self) -> int:
        """The most bytes that this process has had, on its GPU if it computes there."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


class LiveBytes(TorchDispatchMode):
    """While it is on: the bytes of tensors that are made and still held, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in storages_of((args, kwargs))}
        for storage in storages_of(out):
            if storage._cdata not in given:  # else it was there: a view, or in place
                self.hold(storage)
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


def storages_of(tree: object) -> list[torch.UntypedStorage]:
    """Of the tensors in nested arguments or results."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

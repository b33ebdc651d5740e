"""What a run says of itself at every step: its logs, tokens per second, MFU, memory."""

import json
import math
import os
import pathlib
import sys
import time

import torch
from torch import nn

from plumbing.base.processes import RANK, WORLD

try:
    import resource
except ImportError:  # Windows
    resource = None

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

    def extend(self, figures: dict[str, float]) -> None:
        """Add figures to the last line of the first of LOGS."""
        file = self.files[0]
        if RANK == 0:
            file.seek(self.before)
            file.truncate()
        self.last = self.last | figures
        file.write(to_line(self.last))

    def close(self) -> None:
        for file in self.files:
            file.close()


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


class SpeedMeter:
    """Tokens per second, model FLOPs utilisation and peak memory of a step. Model FLOPs of a token
    and parameter: 2 forward, 2 for the gradients of activations, in full tuning 2 for those of
    weights (LoRA's own are few, and counted as if frozen); recomputation does not count. The
    utilisation is of PEAK in every dtype."""

    def __init__(self, model: nn.Module, device: str):
        self.body = count_parameters(model.model.layers)  # which every token passes
        self.head = count_parameters(model.lm_head)  # which response tokens alone pass
        self.flops = 4 if model.lora else 6
        self.device = device
        gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
        peaks = [flops * WORLD for name, flops in PEAK.items() if name in gpu]
        self.peak = peaks[0] if peaks else None
        self.started = time.perf_counter()  # no clock that somebody may set back

    def start(self) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def stop(self, step: int, tokens: int, responses: int, computed: int) -> dict:
        """The row of speed.jsonl for a step with so many tokens, so many of them of responses. MFU
        is of those that were computed: what sequences share, once."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        flops = self.flops * (self.body * computed + self.head * responses)
        return {
            "step": step,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "computed": computed / tokens,
            "peak_memory_gib": self.peak_memory() / 2**30,
            "mfu": flops / seconds / self.peak if self.peak else None,
        }

    def peak_memory(self) -> float:
        """The most bytes that this process has had, on its GPU if it computes there; NaN where the
        system does not say."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        if resource is None:
            return math.nan
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024


def describe(s, model: nn.Module, samples: int, general: int, steps: int) -> str:
    """What a run with the settings s of train.py is, for its first lines. general: of how many
    other instructions it draws --general-share."""
    twins = f"twins with alpha {s.alpha:g}, --conflict {s.conflict}"
    mixed = f", {100 * s.general_share:g} % of a step out of {general:,} other instructions"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"stage {s.stage}: {s.init or s.model} -> {s.out}, {samples:,} samples"
        f"{mixed if general else ''}, template {s.template}, {twins if s.alpha else 'MLE alone'}\n"
        f"{trained:,} of {count_parameters(model):,} parameters, {'full' if s.full else 'LoRA'}, "
        f"{s.dtype} on {WORLD} {s.device}, {steps} steps of {s.batch_size}, rate {s.lr:g}"
    )

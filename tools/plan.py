"""What a run will need, before it begins: bytes, FLOPs and time, from shapes alone.

The network, a micro-batch and the backward pass are those of the run, but their tensors have no
memory (PyTorch's FakeTensorMode), so a 70B model is planned on a laptop. What they would hold is
counted while the pass goes on, and so are the FLOPs (PyTorch's FlopCounterMode).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from plumbing.base.files import ROOT
from plumbing.checkpoint.folder import Config
from plumbing.compute.layout import Layout
from plumbing.run.log import PEAK, LiveBytes
from plumbing.checkpoint.tokenizer import Tokenizer

# Bytes of memory of GPUs, by the names of PEAK.
MEMORY = {"H100 PCIe": 80e9, "H100": 80e9, "H200": 141e9, "A100": 80e9, "L40S": 48e9, "4090": 24e9}
SPARE = 0.06  # of a GPU's memory: CUDA itself, kernels' workspaces, what the allocator cannot use
SMALL = 3  # layers of a network that is tried; with fewer the peak may be at another moment


@dataclass
class Plan:
    """What one of some GPUs holds at most, in bytes, and what is computed. All of it is linear in
    the number of layers."""

    parameters: float  # numbers in the whole network
    trained: float
    weights: float  # this GPU's part, and what FSDP2 gathers of the others' at a time
    gradients: float
    moments: float
    activations: float  # with what backward makes besides, at its worst moment
    flops: float  # of the micro-batch that was tried

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations

    @property
    def memory(self) -> str:
        names = ("weights", "gradients", "moments", "activations")
        parts = ", ".join(f"{name} {gib(getattr(self, name))}" for name in names)
        return f"{parts}: {gib(self.total)}"

    def with_layers(self, other: "Plan", layers: int) -> "Plan":
        """That of a network of so many layers; this one has SMALL, the other one a layer more."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Plan(*(small + (larger - small) * (layers - SMALL) for small, larger in pairs))


def measure(
    make_model: Callable,
    find_loss: Callable,
    layers: int,
    gpus: int,
    recompute: bool,
    alone: bool = False,
) -> Plan:
    """That of make_model(layers), split over so many GPUs, for a micro-batch whose loss
    find_loss(model) is. alone: a step has no other, so that gradients come while activations go."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        small, larger = make_model(SMALL), make_model(SMALL + 1)
        small.recompute = larger.recompute = recompute
        plan, other = (try_small(model, find_loss, gpus, alone) for model in (small, larger))
    return plan.with_layers(other, layers)


def try_small(model: nn.Module, find_loss: Callable, gpus: int, alone: bool) -> Plan:
    """The Plan of a model of so few layers that it is tried."""
    with FlopCounterMode(display=False) as counter:  # which holds tensors of its own
        find_loss(model).backward()
    if alone:
        model.zero_grad(set_to_none=True)
    with LiveBytes() as live:  # else gradients are there, as from the second micro-batch on
        find_loss(model).backward()
    parameters = list(model.parameters())
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    held, gathered = sum(p.nbytes for p in parameters), 0
    if gpus > 1:  # a block and the next one; and what is in none: table, last norm, head
        blocks = [sum(p.nbytes for p in block.parameters()) for block in model.model.layers]
        gathered = 2 * blocks[0] + held - sum(blocks)
    return Plan(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        weights=held / gpus + gathered,
        gradients=trained / gpus,
        moments=2 * trained / gpus,
        activations=live.peak - (trained if alone else 0),
        flops=counter.get_total_flops(),
    )


class Work(NamedTuple):
    """What a step computes, on average over those that are looked at."""

    tokens: float  # twins included
    computed: float  # of these, what sequences share once
    pace: float  # of these, what the fullest GPU computes, for which the others wait
    largest: object  # the micro-batch of most computed tokens
    tried: int  # how many these are
    alone: bool  # no process has two micro-batches a step


class Planner:
    """Tries what a run would do. make_model(layers); make_shares(tokens of a micro-batch, GPUs):
    of some steps, for each GPU its micro-batches; find_loss(model, batch): that of one. share:
    whether what sequences begin with is computed once."""

    def __init__(
        self,
        make_model: Callable,
        make_shares: Callable,
        find_loss: Callable,
        layers: int,
        share: bool,
    ):
        self.make_model, self.make_shares = make_model, make_shares
        self.find_loss, self.layers, self.share = find_loss, layers, share

    def work(self, tokens: int, gpus: int) -> Work:
        steps = self.make_shares(tokens, gpus)
        batches = [batch for shares in steps for share in shares for batch in share]
        sizes = {  # a step's idle ones are one object
            key: len(Layout(batch.ids, batch.lengths, share=self.share).ids)
            for key, batch in {id(batch): batch for batch in batches}.items()
        }
        largest = max(batches, key=lambda batch: sizes[id(batch)])
        busy = [batch for batch in batches if batch.samples]
        together = [row for shares in steps for row in zip(*shares, strict=True)]
        return Work(
            tokens=sum(len(batch.ids) for batch in busy) / len(steps),
            computed=sum(sizes[id(batch)] for batch in busy) / len(steps),
            pace=sum(max(sizes[id(batch)] for batch in row) for row in together) / len(steps),
            largest=largest,
            tried=sizes[id(largest)],
            alone=all(len(shares[0]) == 1 for shares in steps),
        )

    def try_out(self, tokens: int, recompute: bool, gpus: int) -> tuple[Plan, Work]:
        """The Plan of micro-batches of so many tokens, on so many GPUs."""
        work = self.work(tokens, gpus)

        def find_loss(model: nn.Module) -> Tensor:
            return self.find_loss(model, work.largest)

        plan = measure(self.make_model, find_loss, self.layers, gpus, recompute, work.alone)
        return plan, work

    def report(self, s: object, steps: int, samples: int) -> str:
        """The plan as text. s: the settings micro_batch_tokens, recompute, gpus, gpu and mfu."""
        plan, work = self.try_out(s.micro_batch_tokens, s.recompute, s.gpus)
        step = plan.flops * work.computed / work.tried
        lines = [
            f"parameters   {plan.parameters:,.0f}, of them trained {plan.trained:,.0f}",
            f"data         {samples:,} samples, {steps:,} steps of {work.tokens:,.0f} tokens, of "
            f"which {work.computed:,.0f} are computed, the others shared",
            f"memory, GiB  {plan.memory} on each of {s.gpus}; the process and its libraries "
            "come on top",
            f"work         {step:.3g} FLOPs a step, {step * steps:.3g} the run",
        ]
        if s.gpu:
            pace = plan.flops * work.pace / work.tried
            seconds = pace * steps / (PEAK[s.gpu] * s.mfu)
            idle = 1 - work.computed / (work.pace * s.gpus)
            lines.append(
                f"time         {duration(seconds)} on {s.gpus} {s.gpu} at {s.mfu:.0%} of "
                f"{PEAK[s.gpu] / 1e12:.0f} TFLOP/s, {work.tokens * steps / seconds:,.0f} tokens/s; "
                f"{idle:.0%} of it they wait for the fullest; loading and saving come on top"
            )
            room = MEMORY[s.gpu] * (1 - SPARE)
            answer = f"yes, in the {gib(room)} GiB that a {s.gpu} has to spare"
            if plan.total > room:
                answer = f"no, a {s.gpu} has {gib(room)} GiB to spare; {self.advise(s, room)}"
            lines.append(f"fits         {answer}")
        return "\n".join(lines)

    def advise(self, s: object, room: float) -> str:
        """What would make it fit into so many bytes."""
        tokens, gpus = s.micro_batch_tokens, s.gpus
        choices = [("--recompute", tokens, True, gpus)]
        choices += [
            (f"--recompute --micro-batch-tokens {tokens // by}", tokens // by, True, gpus)
            for by in (4, 16)
            if tokens // by
        ]
        choices += [
            (f"--recompute on {gpus * by} GPUs", tokens, True, gpus * by) for by in (2, 4, 8, 16)
        ]
        for name, *changed in choices:
            plan, _ = self.try_out(*changed)
            if plan.total <= room:
                return f"would fit: {name} ({gib(plan.total)} GiB)"
        return f"nor with {name} ({gib(plan.total)} GiB): take LoRA, or a smaller model"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What is made meanwhile has this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tokenizer_of(folders: list[str], config: Config) -> Tokenizer:
    """That of the first folder that has one, or the demo's, said aloud. Raises InputError."""
    demo = os.path.join(ROOT, "demo", "base")
    tokenizer = Tokenizer([*folders, demo], config)
    if os.path.samefile(tokenizer.folder, demo) and demo not in map(os.path.abspath, folders):
        print(f"{folders[0]} has no tokenizer: tokens are those of the demo's, somewhat too many")
    return tokenizer


def gib(size: float) -> str:
    return f"{size / 2**30:.3g}"


def looked_at(batch_size: int) -> int:
    """How many steps of so many samples are enough to know the others."""
    return max(1, min(5, 5000 // batch_size))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""What a run will need, before it begins: bytes, FLOPs and time, from shapes alone.

    python -m tools.plan --stage 2 --model LLAMA --data FILES --batch-size 8 --gpu H100 --gpus 8

All flags of train.py count. The network, a micro-batch and the backward pass are those of the run,
but their tensors have no memory (PyTorch's FakeTensorMode), so a 70B model is planned on a laptop.
"""

import os
import time
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import train
from data import MicroBatch, Prompter, TuningSet
from loss import language_aware
from model import LlamaForCausalLM, add_lora
from plumbing.base.flags import DTYPES, autocast, option, ours, refuse_given, run_script
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.folder import ModelFolder
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.layout import Layout
from plumbing.corpus.languages import add_languages
from plumbing.run.log import PEAK
from plumbing.run.settings import fill_by_model, lora_of, visits_and_steps

# Bytes of memory of GPUs, by the names of PEAK.
MEMORY = {"H100 PCIe": 80e9, "H100": 80e9, "H200": 141e9, "A100": 80e9, "L40S": 48e9, "4090": 24e9}
SPARE = 0.06  # of a GPU's memory: CUDA itself, kernels' workspaces, what the allocator cannot use
LAUNCH = 5e-6  # seconds that a GPU needs at least for a kernel, however small (an estimate)
LOOKED_AT = 200  # steps whose batches are made, to find the largest
CPU_SHARE = 0.7  # of a CPU's speed in one product that a whole step reaches
LEFT_OUT = "what Python and the libraries hold, and gaps between tensors of other lengths"
GIB = 2**30


@dataclass
class Settings(train.Settings):
    gpu: str = option("", "which GPU", "plan", choices=list(PEAK))
    gpus: int = option(1, "how many share the work", "plan", least=1, most=100_000)
    mfu: float = option(0.35, "share of the GPU's peak that is reached", "plan", least=0.01, most=1)


class LiveBytes(TorchDispatchMode):
    """While it is on: the bytes of tensors that are made and still held, and their peak; how many
    operations made or changed one, which a GPU launches kernels for."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.launches = 0
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in storages_of((args, kwargs))}
        made = [x for x in storages_of(out) if x._cdata not in given]  # the others: views, in place
        for storage in made:
            self.hold(storage)
        self.launches += bool(made) or func.overloadpacket.__name__.endswith("_")
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


def make_network(folder: ModelFolder, s: Settings) -> nn.Module:
    """The run's network; within FakeTensorMode it has no memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if s.full else DTYPES[s.dtype])
    try:
        model = LlamaForCausalLM(folder.config)
    finally:
        torch.set_default_dtype(before)
    if not s.full:
        add_lora(model, folder.lora or lora_of(s))
    model.recompute = s.recompute
    return model.train()


def try_backward(model: nn.Module, batch: MicroBatch, s: Settings) -> None:
    """The forward and backward passes of a micro-batch."""
    with autocast("cpu", s.dtype):
        logits = model(batch.ids, batch.lengths, at=batch.at)
    mle_sum, ul_sum = train.loss_sums(logits, batch)
    language_aware(mle_sum, 1, ul_sum, 1, s.alpha).backward()


def measure(folder: ModelFolder, batch: MicroBatch, s: Settings) -> dict[str, float]:
    """What one of s.gpus GPUs holds at most, in bytes, and the FLOPs of the batch."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = make_network(folder, s)
        with FlopCounterMode(display=False) as counter:
            try_backward(model, batch, s)
        with LiveBytes() as live:  # gradients are there, as from the second micro-batch on
            try_backward(model, batch, s)
        parameters = list(model.parameters())
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        held, gathered = sum(p.nbytes for p in parameters), 0
        if s.gpus > 1:  # FSDP2 holds a block and the next one whole; and what is in no block
            blocks = [sum(p.nbytes for p in block.parameters()) for block in model.model.layers]
            gathered = 2 * blocks[0] + held - sum(blocks)
    return {
        "weights": held / s.gpus + gathered,
        "gradients": trained / s.gpus,
        "moments": 2 * trained / s.gpus,
        "activations": live.peak,
        "flops": counter.get_total_flops(),
        "launches": live.launches,
    }


def cpu_speed(width: int, inner: int, dtype: torch.dtype) -> float:
    """FLOP/s of this machine in the product of an MLP's layer with 512 tokens, the best of some."""
    x, weight = torch.randn(512, width, dtype=dtype), torch.randn(inner, width, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        x @ weight.T
        seconds.append(time.perf_counter() - started)
    return 2 * x.numel() * inner / min(seconds)


def first_batches(folder: ModelFolder, s: Settings) -> tuple[list[MicroBatch], int, int]:
    """(the micro-batches of a run's first steps on s.gpus GPUs; how many steps these are; how many
    the run has). Raises InputError."""
    tokenizer = Tokenizer([folder.folder, folder.source, ours("demo/base")], folder.config)
    data = train.read(s)
    prompter = Prompter(tokenizer, s.template)
    tuning_set = TuningSet(data["data"], prompter, s.max_length, data["general"])
    visits, steps = visits_and_steps(s, len(tuning_set.samples))
    looked_at = min(steps, LOOKED_AT)
    tuning_set.prepare(looked_at, s.batch_size, visits, s.seed, s.general_share)
    batches = []
    for step in range(looked_at):
        for share in train.batches_of_step(tuning_set, step, visits, s, s.gpus):
            batches += [batch for batch in share if batch.pairs]  # the others wait for these
    return batches, looked_at, steps


def count_computed(batch: MicroBatch, s: Settings) -> int:
    """Tokens of a micro-batch that pass the network: what sequences begin with in common is
    computed once."""
    share = s.full or not s.lora_dropout
    return len(Layout(batch.ids, batch.lengths, share=share).ids)


def time_of(flops: float, launches: float, config: Config, s: Settings) -> tuple[float, str]:
    """(seconds of a step of so many FLOPs, and of so many kernels on each GPU; what they rest
    on)."""
    if not s.gpu:
        speed = cpu_speed(config.hidden_size, config.intermediate_size, DTYPES[s.dtype])
        how = f"at {CPU_SHARE:.0%} of the {speed / 1e9:.0f} GFLOP/s of a product on this CPU"
        return flops / (speed * CPU_SHARE), f"{how}, loading and --dev not counted"
    of_products = flops / (PEAK[s.gpu] * s.mfu * s.gpus)
    of_launches = launches * LAUNCH
    if of_launches > of_products:
        how = f"of {launches:,.0f} kernels a step at {LAUNCH * 1e6:.0f} µs, as they are small"
        return of_launches, how
    slower = "; fp32 takes longer, by how much is not known" if s.dtype == "fp32" else ""
    return of_products, f"at {s.mfu:.0%} of the {s.gpu}'s peak in 16 bits{slower}"


def main(s: Settings) -> None:
    """Print the plan. Raises InputError."""
    add_languages(s.languages)
    if not s.gpu:
        refuse_given(s, ["mfu"], "there is no --gpu")
    start = s.init or s.model
    if "init" not in s.given and ("model" in s.given or not os.path.isdir(s.init)):
        s.init, start = "", s.model or ours("demo/base")  # a plan of stage 2 comes before stage 1
    if s.gpu:
        s.dtype = s.dtype if "dtype" in s.given else "bf16"  # whatever machine this is
    folder = ModelFolder(start, s.model)
    s.lr = s.lr or 1.0  # whatever it is, a plan is the same
    fill_by_model(s, folder)
    batches, looked_at, steps = first_batches(folder, s)

    computed = [count_computed(batch, s) for batch in batches]
    order = sorted(range(len(batches)), key=computed.__getitem__)
    usual, most = order[len(order) // 2], order[-1]
    most_responses = max(order, key=lambda n: len(batches[n].y))  # which have logits
    largest = [measure(folder, batches[n], s) for n in {most, most_responses}]
    found = max(largest, key=lambda figures: figures["activations"])
    parts = {name: found[name] for name in ("weights", "gradients", "moments", "activations")}
    total, tokens = sum(parts.values()), sum(len(batch.ids) for batch in batches) / looked_at
    found = measure(folder, batches[usual], s)
    flops = found["flops"] / computed[usual] * sum(computed) / looked_at
    launches = found["launches"] * max(1, len(batches) / looked_at / s.gpus)
    seconds, how = time_of(flops, launches, folder.config, s)
    memory = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
    print(f"stage {s.stage}: {start} -> {s.out}, {'full' if s.full else 'LoRA'}, {s.dtype}")
    print(f"memory, GiB  {memory}: {total / GIB:.3g} on each of {s.gpus}")
    print(f"on top       {LEFT_OUT}")
    print(f"work         {steps:,} steps of {tokens:,.0f} tokens, {flops:.3g} FLOPs a step")
    print(f"time         {seconds * steps / 60:.3g} min {how}")
    if s.gpu:
        room = MEMORY[s.gpu] * (1 - SPARE)
        fits = f"{'yes' if total <= room else 'no'}, a {s.gpu} has {room / GIB:.3g} GiB for it"
        if total > room:
            fits += ": try --recompute, a smaller --micro-batch-tokens, more --gpus, or LoRA"
        print(f"fits         {fits}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

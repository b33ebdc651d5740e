"""A model of LLaMA-2-7B's shape at random on one GPU, ours and the peer's, for gpu.py.

Their frozen weights are the same memory.
"""

import gc
from collections.abc import Callable
from random import Random

import peft
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from benchmarks import common, decode
from benchmarks.sides import Ours, Padded, TheirLlama
from benchmarks.train import tuning_set
from data import EncodedSample, TwinPair
from model import LlamaForCausalLM, add_lora
from plumbing.base.errors import plain, require
from plumbing.base.flags import DTYPES, make_deterministic
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute.decoder import Decoder
from plumbing.run.log import SpeedMeter
from train import LINEARS, Settings

LLAMA_7B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008)
LLAMA_7B |= dict(num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096)
TINY = LLAMA_7B | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
TINY |= dict(vocab_size=1000, num_attention_heads=4)

# {samples: (tokens a second, times as many as the peer) on one H100}
GOALS = {"random ids": (15_000, 1.4), "the demo's prompts": (25_000, 2.2)}


def make_models(shape: dict, device: str, dtype: str, rank: int) -> tuple:
    """(ours, the peer) on the same memory of frozen weights; rank 0: without LoRA."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(Config(**shape))
        peer = TheirLlama(LlamaConfig(**shape, attn_implementation="sdpa"))
    model = model.to(DTYPES[dtype]).to_empty(device=device)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim == 2 else torch.nn.init.ones_(p)
    peer.load_state_dict(model.state_dict(), assign=True)
    with torch.device(device):
        peer.model.rotary_emb = type(peer.model.rotary_emb)(peer.config)  # is not in the state
    if rank:
        with torch.device(device):
            add_lora(model, LoraSettings(rank, 2.0 * rank, LINEARS.split(",")))
        settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": LINEARS.split(",")}
        peer = peft.get_peft_model(peer, peft.LoraConfig(**settings, task_type="CAUSAL_LM")).train()
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.01)
    return model, peer.eval() if not rank else peer


@torch.no_grad()
def copy_lora(model: LlamaForCausalLM, peer: peft.PeftModel) -> None:
    theirs = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        if "lora_" in name:
            theirs[f"base_model.model.{name.replace('.weight', '.default.weight')}"].copy_(p)


def lora_bytes(model: torch.nn.Module) -> int:
    return sum(p.nbytes for name, p in model.named_parameters() if "lora_" in name)


def peak_of(step: Callable, pairs: list[TwinPair], meter: SpeedMeter, others: int) -> float:
    """GB at the most during a step, less the bytes that only the other side needs."""
    gc.collect()
    if meter.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step(pairs)
    return (meter.peak_memory() - others) / 1e9


class Training:
    """Both sides of a comparison, whose frozen weights are the same memory."""

    def __init__(self, model: LlamaForCausalLM, peer: peft.PeftModel, s: Settings, size: int):
        """size: samples in a micro-batch of the peer's, as many tokens as ours has."""
        copy_lora(model, peer)
        self.model, self.peer, self.s, self.size = model, peer, s, size
        self.meter = SpeedMeter(model, s.device)
        model.recompute = s.recompute
        self.ours = Ours(model, s)
        self.checkpoint(s.recompute)

    def checkpoint(self, wanted: bool) -> None:
        """The peer anew, with activation checkpointing or without."""
        self.peer.zero_grad(set_to_none=True)
        self.peer.gradient_checkpointing_disable()
        if wanted:
            self.peer.gradient_checkpointing_enable({"use_reentrant": False})
        self.theirs, self.checkpointing = Padded(self.peer, self.s, self.size), wanted

    def our_step(self, pairs: list[TwinPair]) -> None:
        make_deterministic(self.s.device)  # as train.py does
        try:
            self.ours.step(pairs)
        finally:
            torch.use_deterministic_algorithms(False)

    def peaks(self, pairs: list[TwinPair]) -> list[float]:
        """GB at the most in a step of each; the peer takes to checkpointing if it must."""
        ours = peak_of(self.our_step, pairs, self.meter, lora_bytes(self.peer))
        adam = 3 * lora_bytes(self.model)  # LoRA and its two moments
        try:
            theirs = peak_of(self.theirs.step, pairs, self.meter, adam)
        except torch.OutOfMemoryError:
            require(not self.checkpointing, "the peer is out of memory with checkpointing too")
            theirs = None
        if theirs is None:  # here, where the error no longer holds the tensors
            self.checkpoint(True)
            theirs = peak_of(self.theirs.step, pairs, self.meter, adam)
        losses = [{"loss": side.found["loss"]} for side in (self.ours, self.theirs)]
        common.check_same("7B", *losses, 0.02)
        return [ours, theirs]

    def row(self, pairs: list[TwinPair], repeats: int) -> dict:
        """A row of the table, goals in its header."""
        memory = self.peaks(pairs)
        sides = [lambda _: self.our_step(pairs), lambda _: self.theirs.step(pairs)]
        seconds = [common.median(column) for column in common.in_turn(sides, repeats)]
        tokens = sum(pair.tokens for pair in pairs)
        responses = sum(len(pair.positive.response) for pair in pairs)
        flops = self.meter.flops * (self.meter.body * tokens + self.meter.head * responses)
        peak = self.meter.peak
        return {
            "micro-batch": self.s.micro_batch_tokens,
            "recompute": f"{'ny'[self.s.recompute]} / {'ny'[self.checkpointing]}",
            "tokens/s": " / ".join(f"{tokens / x:,.0f}" for x in seconds),
            "ratio": f"{seconds[1] / seconds[0]:.2f}",
            "MFU, %": " / ".join(f"{100 * flops / x / peak:.0f}" if peak else "-" for x in seconds),
            "peak GB (24)": " / ".join(f"{x:.1f}" for x in memory),
            "memory ratio (0.5)": f"{memory[0] / memory[1]:.2f}",
        }


def about_of(section: Callable) -> str:
    """Its docstring in one line."""
    return " ".join(section.__doc__.split())


def random_pairs(count: int, length: int, vocabulary: int) -> list[TwinPair]:
    """Samples that have nothing in common, a quarter of each is its response."""
    rng, cut = Random(1), length * 3 // 4
    samples = [[rng.randrange(3, vocabulary) for _ in range(length)] for _ in range(count)]
    return [TwinPair(EncodedSample(None, ids[:cut], ids[cut:]), None) for ids in samples]


def demo_pairs(count: int, length: int) -> list[TwinPair]:
    """Samples of the demo, shortest first, whose prompts begin alike."""
    encoded = [*tuning_set(common.DEMO, -(-count // 6), False).encoded.values()][:count]
    fitting = [x for x in encoded if x.tokens <= length]
    return [TwinPair(x, None) for x in sorted(fitting, key=lambda x: x.tokens)]


def train_7b(device: str, tiny: bool) -> str:
    """Steps of LoRA of rank 16 on all linears in micro-batches of 4,096 tokens: 32 samples of 512
    random tokens, 128 of them response, and 200 samples of the demo."""
    shape, tokens, repeats = (TINY, 512, 1) if tiny else (LLAMA_7B, 4096, 2)
    dtype = "fp32" if tiny else "bf16"
    model, peer = make_models(shape, device, dtype, 16)
    vocabulary = shape["vocab_size"]
    work = {"random ids": random_pairs(4 * tokens // 512, 512, vocabulary)}
    work["the demo's prompts"] = demo_pairs(4 if tiny else 200, 512)
    rows = []
    for name, pairs in work.items():
        if tiny:  # the demo's ids are more than the tiny vocabulary
            pairs = [TwinPair(small(pair.positive, vocabulary), None) for pair in pairs]
        size = max(1, tokens // max(pair.tokens for pair in pairs))
        for recompute in (False, True):
            s = Settings(device=device, dtype=dtype, micro_batch_tokens=tokens, recompute=recompute)
            try:
                row = Training(model, peer, s, size).row(pairs, repeats)
            except torch.OutOfMemoryError:
                print(f"{name}, recompute {recompute}: out of memory")
                model.zero_grad(set_to_none=True)
                continue
            goal, ratio = GOALS[name]
            rows.append({"samples": name, "goals": f"{goal:,} tokens/s, {ratio}"} | row)
    require(rows, "out of memory at every micro-batch")
    about = "Ours / theirs, both without cuDNN's attention; goals are for an H100. GB: the weights "
    about += "are one side's."
    return f"{about_of(train_7b)} {about}\n\n{common.table(rows)}"


def small(encoded: EncodedSample, vocabulary: int) -> EncodedSample:
    prompt, response = ([i % vocabulary for i in ids] for ids in encoded[1:])
    return EncodedSample(None, prompt, response)


def decode_7b(device: str, tiny: bool) -> str:
    """Greedy decoding of 128 new tokens after 128, bf16, ours / theirs."""
    shape, new, batches, repeats = (TINY, 4, (1, 3), 1) if tiny else (LLAMA_7B, 128, (1, 64), 2)
    model, peer = make_models(shape, device, "fp32" if tiny else "bf16", 0)
    rng, rows = Random(1), []
    for batch in batches:
        prompts = [
            [rng.randrange(3, shape["vocab_size"]) for _ in range(new)] for _ in range(batch)
        ]
        what = f"7B, batch {batch}"
        # In bf16 random models tie often: how many rows agree is reported, not required.
        sides = what, model.eval(), peer, [prompts]
        found = decode.against_generate(*sides, [], new, repeats, 0, ("dynamic",))
        goal = ", goal 130 tokens/s" if batch == 1 else ", goal: ratio 2"
        rows.append(decode.line(f"{what}{goal}", None, found))
    return f"{about_of(decode_7b)}\n\n{common.table(rows)}"


def kernels_7b(device: str, tiny: bool) -> str:
    """The 25 heaviest kernels of a training step of 4,096 random tokens and of a decoding step of
    64 rows, without their graph."""
    shape, rows = (TINY, 3) if tiny else (LLAMA_7B, 64)
    dtype = "fp32" if tiny else "bf16"
    model, peer = make_models(shape, device, dtype, 16)
    del peer
    s = Settings(device=device, dtype=dtype)
    ours, pairs = Ours(model, s), random_pairs(1 if tiny else 8, 512, shape["vocab_size"])
    ours.step(pairs)
    tables = [heaviest("training", lambda: ours.step(pairs), device)]
    model.eval().requires_grad_(False)
    decoder, prompts = Decoder(model), [[5, 6, 7]] * rows
    with torch.inference_mode():
        decoder.reserve(prompts, rows, 4)
        decoder.prefill(prompts)
        decoder.step([[8]] * rows)
        tables.append(heaviest("decoding", lambda: decoder.step([[8]] * rows), device))
    return "\n\n".join([about_of(kernels_7b), *tables])


def heaviest(what: str, step: Callable, device: str, most: int = 25) -> str:
    """A table of a step's kernels."""
    kinds = [ProfilerActivity.CPU, *([] if device == "cpu" else [ProfilerActivity.CUDA])]
    with profile(activities=kinds) as found:
        step()
        common.synchronise()
    where = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    kind = getattr(DeviceType, device.split(":")[0].upper())  # an operation has its kernels' time
    events = [x for x in found.key_averages() if x.device_type == kind and not x.is_user_annotation]
    events.sort(key=lambda event: -getattr(event, where))
    total = sum(getattr(event, where) for event in events)
    rows = [
        {
            f"{what}: {total / 1000:,.1f} ms": plain(event.key, 90).replace("|", "/"),
            "calls": event.count,
            "ms": f"{getattr(event, where) / 1000:.2f}",
        }
        for event in events[:most]
    ]
    return common.table(rows)

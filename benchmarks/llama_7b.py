"""A model of LLaMA-2-7B's shape at random on one GPU, ours and the peer's, for gpu.py.

Their frozen weights are the same memory.
"""

import gc
from collections.abc import Callable
from random import Random

import peft
import torch
from transformers import LlamaConfig

from benchmarks import common, decode
from benchmarks.sides import Ours, Padded, TheirLlama
from data import EncodedSample, TwinPair
from model import LlamaForCausalLM, add_lora
from plumbing.base.errors import require
from plumbing.base.flags import DTYPES, make_deterministic
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.peft import LoraSettings
from plumbing.run.log import SpeedMeter
from train import LINEARS, Settings

LLAMA_7B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008)
LLAMA_7B |= dict(num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096)
TINY = LLAMA_7B | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
TINY |= dict(vocab_size=1000, num_attention_heads=4)


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
        self.ours.step(pairs)
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
            "tokens/s (15,000 on an H100)": " / ".join(f"{tokens / x:,.0f}" for x in seconds),
            "ratio (2)": f"{seconds[1] / seconds[0]:.2f}",
            "MFU, %": " / ".join(f"{100 * flops / x / peak:.0f}" if peak else "-" for x in seconds),
            "peak GB (24)": " / ".join(f"{x:.1f}" for x in memory),
            "memory ratio (0.5)": f"{memory[0] / memory[1]:.2f}",
        }


def train_7b(device: str, tiny: bool) -> str:
    """Steps of 32 samples of 512 tokens, 128 of them response, LoRA of rank 16 on all linears."""
    shape, length, count, repeats = (TINY, 32, 4, 1) if tiny else (LLAMA_7B, 512, 32, 3)
    dtype = "fp32" if tiny else "bf16"
    model, peer = make_models(shape, device, dtype, 16)
    rng, pairs, rows = Random(1), [], []
    for _ in range(count):
        ids = [rng.randrange(3, shape["vocab_size"]) for _ in range(length)]
        cut = length * 3 // 4
        pairs.append(TwinPair(EncodedSample(None, ids[:cut], ids[cut:]), None))
    for size in (count // 4, count // 2):
        for recompute in (False, True):
            tokens = size * length
            s = Settings(device=device, dtype=dtype, micro_batch_tokens=tokens, recompute=recompute)
            try:
                rows.append(Training(model, peer, s, size).row(pairs, repeats))
            except torch.OutOfMemoryError:
                print(f"micro-batches of {tokens} tokens, recompute {recompute}: out of memory")
                model.zero_grad(set_to_none=True)
    require(rows, "out of memory at every micro-batch")
    about = "Ours / theirs; goals in brackets. GB: the weights are one side's."
    return f"{train_7b.__doc__} {about}\n\n{common.table(rows)}"


def decode_7b(device: str, tiny: bool) -> str:
    """Greedy decoding of 128 new tokens after 128, bf16, ours / theirs."""
    shape, new, batches, repeats = (TINY, 4, (1, 3), 1) if tiny else (LLAMA_7B, 128, (1, 64), 3)
    model, peer = make_models(shape, device, "fp32" if tiny else "bf16", 0)
    rng, rows = Random(1), []
    for batch in batches:
        prompts = [
            [rng.randrange(3, shape["vocab_size"]) for _ in range(new)] for _ in range(batch)
        ]
        what = f"7B, batch {batch}"
        # In bf16 random models tie often: how many rows agree is reported, not required.
        found = decode.against_generate(what, model.eval(), peer, [prompts], [], new, repeats, 0)
        rows.append(decode.line(f"{what}, goal 170 tokens/s" if batch == 1 else what, None, found))
    return f"{decode_7b.__doc__}\n\n{common.table(rows)}"

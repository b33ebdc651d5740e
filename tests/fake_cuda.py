"""What a step of training or of decoding asks of a GPU, found without one: fake_cuda.py CASES.

It is started by test_fake_cuda.py, with a device preloaded that computes nothing. Tensors have no
memory (FakeTensorMode), so values that the host reads are made up. Prints JSON, a line for each
case: what was counted.
"""

import ctypes
import json
import os
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import EncodedSample, Sample, TwinPair, collate
from evaluate import beam_search, greedy
from model import LlamaForCausalLM, add_lora
from plumbing.base.files import ROOT
from plumbing.base.flags import DTYPES, autocast
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.peft import LoraSettings
from plumbing.compute import attention, products
from plumbing.compute.decoder import Decoder
from plumbing.compute.optimizer import Optimizer
from train import LINEARS, Settings, train_step

CUDA = "cuda:0"
SHAPE = dict(vocab_size=4000, hidden_size=256, intermediate_size=704, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, max_position_embeddings=512)
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NO_KERNEL |= {"_unsafe_view", "lift_fresh"}


class Counts(TorchDispatchMode):
    """launches: of kernels, about. products: {dtype: how many}. mixed: operations on a CUDA tensor
    and on a CPU's that is no single number. copies: between the two. reads: {line: how often the
    host waits there, for a value or for a copy}."""

    def __init__(self):
        super().__init__()
        self.launches, self.copies, self.mixed = 0, 0, []
        self.reads, self.products, self.names = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and func._can_decompose():  # whole, in inference mode
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if not any(x.is_cuda for x in given + made):
            return out
        host = [tuple(x.shape) for x in given + made if not x.is_cuda and x.ndim]
        if host and name in ("_to_copy", "copy_"):
            third = args[2:3] if name == "copy_" else ()
            waits = not (kwargs or {}).get("non_blocking", third == (True,))
            self.reads[where()] += waits
            self.copies += 1
        elif host:
            self.mixed.append(f"{name} {host}")
        self.launches += func.namespace != "prim" and not (func.is_view or name in NO_KERNEL)
        if name in PRODUCTS:
            self.products[str(given[-1].dtype).removeprefix("torch.")] += 1
            self.names[name] += 1
        return out


def where() -> str:
    """The innermost line of this project that is at work."""
    frames = traceback.extract_stack()
    frames = [x for x in frames if x.filename.startswith(ROOT) and x.filename != __file__]
    frames = [x for x in frames if "site-packages" not in x.filename]
    return f"{os.path.relpath(frames[-1].filename, ROOT)}: {frames[-1].line}" if frames else "?"


def attention_kernel(q, k, v, attn_mask):
    """What CUDA has for a mask; a machine without CUDA would choose a formula of many kernels. It
    would copy a mask whose rows begin elsewhere, in every layer."""
    assert all(stride % 8 == 0 for stride in attn_mask.stride()[:-1]), attn_mask.stride()
    mask = attn_mask.expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True)[0]


@contextmanager
def fake_device(counts: Counts):
    """Fake tensors, whose values the host may read: ones, or what it wrote itself."""

    def one(tensor):
        return 1.0 if tensor.is_floating_point() else 1

    def ones(tensor):
        values = one(tensor)
        for size in reversed(tensor.shape):
            values = [values] * size
        return values

    def reading(name, made_up):
        def read(self):
            if self.is_cuda:
                counts.reads[where()] += 1
            known = None if self.is_cuda else self.constant
            return made_up(self) if known is None else getattr(known, name)()

        return read

    made_up = {"item": one, "tolist": ones, "__int__": lambda _: 1, "__bool__": lambda _: True}
    usual = {name: vars(FakeTensor).get(name) for name in made_up}
    for name, function in made_up.items():
        setattr(FakeTensor, name, reading(name, function))
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # or GradScaler is off
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        for name, function in usual.items():
            setattr(FakeTensor, name, function) if function else delattr(FakeTensor, name)


COMPILED = Counter()  # {a function that PyTorch would compile: how often it ran}


def compile_nothing(function, dynamic, options):
    """In the place of torch.compile, which would make kernels for a GPU that is not there."""

    def run(*args):
        COMPILED[function.__name__] += 1
        return function(*args)

    return run


def make_model(case: dict, dtype: torch.dtype, of_lora: torch.dtype) -> LlamaForCausalLM:
    config = Config(**SHAPE, num_hidden_layers=case["layers"], sliding_window=case.get("window"))
    with torch.device(CUDA):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(of_lora)
        if case["lora"]:
            add_lora(model, LoraSettings(16, 32.0, LINEARS.split(",")))
        torch.set_default_dtype(torch.float32)
    return model


def batch_of(twins: bool):
    """Samples of unequal lengths, which begin alike, and their twins."""
    pairs = []
    for n in (5, 9):
        ids = [7, 8, *range(20, 20 + n)]
        positive = EncodedSample(Sample(None, "", ""), ids, [30, 31, 2])
        twin = EncodedSample(Sample(None, "", ""), [7, 9, *ids[2:]], [30, 31, 2])
        pairs.append(TwinPair(positive, twin if twins else None))
    return collate(pairs)


def train_once(case: dict, counts: Counts) -> None:
    s = Settings(stage=1 + case["twins"], device=CUDA, dtype=case["dtype"], full=not case["lora"])
    dtype = torch.float32 if s.full else DTYPES[s.dtype]
    model = make_model(case, dtype, torch.float32).train()
    model.recompute = case.get("recompute", False)
    optimizer = Optimizer(model.named_parameters(), s.dtype, CUDA)
    with counts:
        train_step(model, [[batch_of(case["twins"])]], optimizer, s)


def decode(case: dict, counts: Counts) -> None:
    dtype = DTYPES[case["dtype"]]
    model = make_model(case, dtype, dtype).eval()
    decoder, prompts = Decoder(model, case["beams"]), [[5] * 7, [6] * 11, [5] * 3]
    if case.get("recorded"):  # what a CUDA graph records
        with torch.inference_mode():
            decoder.reserve(prompts, 3, 4)
            decoder.prefill(prompts)
            ids = torch.zeros(3, dtype=torch.long, device=CUDA)
            with counts:
                decoder.model(ids, [1] * 3, decoder.cache)
        return
    with counts, autocast(CUDA, "fp32"):
        if case["beams"] > 1:
            beam_search(decoder, prompts, {-1}, 4)
        else:
            greedy(decoder, prompts, {-1}, 4, case.get("rows", 3))


def main(cases: list[dict]) -> None:
    products.has_compiler, torch.compile = lambda: True, compile_nothing
    products.is_faster, products.in_parts, products.transposed = lambda form: True, None, None
    attention.F = SimpleNamespace(scaled_dot_product_attention=attention_kernel)
    ctypes.CDLL(os.environ["LD_PRELOAD"]).install()
    for case in cases:
        COMPILED.clear()
        capability, counts = (9, 0) if case.get("varlen") else (7, 5), Counts()
        torch.cuda.get_device_capability = lambda _, found=capability: found
        with fake_device(counts):
            (decode if "beams" in case else train_once)(case, counts)
        names = "launches", "copies", "reads", "products", "names", "mixed"
        found = {name: getattr(counts, name) for name in names} | {"compiled": COMPILED}
        print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

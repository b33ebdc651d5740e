"""A script's flags from a dataclass, its device and dtype, and how it begins and ends."""

import argparse
import inspect
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields

import torch
from safetensors import SafetensorError

from plumbing.base import interrupts
from plumbing.base import streams
from plumbing.base.processes import RANK, end_process, join_processes, leave_processes
from plumbing.base.errors import InputError, plain, require

BOUNDS = ("least", "most")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USERS_ERRORS = (InputError, ImportError, OSError, SafetensorError, KeyboardInterrupt)


def option(default: object, help: str, **extra):
    """A settings field whose flag has this default, help and bounds (`least`, `most`); extra is
    argparse's."""
    return field(default=default, metadata={"help": help, **extra})


@dataclass
class DeviceSettings:
    """Settings of every script that computes."""

    dtype: str = option("auto", "auto: bf16 on CUDA, fp32 on CPU", choices=["auto", *DTYPES])
    device: str = option("auto", "auto: cuda where there is one")


class Parser(argparse.ArgumentParser):
    """argparse, whose sentences are bounded too."""

    def error(self, message: str):
        super().error(plain(message))


def parse(settings: type, argv: list[str] | None = None):
    """Fill a settings dataclass from the command line: every field is a flag. The type of a field
    is its flag's: a bool is a switch, which --no-NAME turns off where it is on, a list takes
    several texts. Its PRESETS, if it has some, are the defaults that --preset NAME puts in the
    place of others. An unknown flag or a wrong type
    ends the script as argparse does; a value that is out of bounds or not finite, or a device that
    is not there, raises InputError. 'auto' is resolved."""
    script = sys.modules[settings.__module__]
    about = (script.__doc__ or "").split("\n\n")[0]  # python -OO leaves no docstrings
    parser = Parser(description=about)
    for f in sorted(fields(settings), key=lambda f: depth(settings, f.name)):
        extra = {name: value for name, value in f.metadata.items() if name not in BOUNDS}
        default = " ".join(f.default) if isinstance(f.default, tuple) else f.default
        if default not in (None, "", False):
            extra["help"] += f" (default: {'on' if f.type is bool else default})"
        if f.type is bool:
            action = argparse.BooleanOptionalAction if f.default else "store_true"
            extra = {"action": action, "default": f.default} | extra
        elif f.type is list:
            extra |= {"type": str, "nargs": "+", "default": f.default}
        else:
            extra |= {"type": f.type, "default": f.default}
        parser.add_argument(flag(f.name), **extra)
    if presets := getattr(settings, "PRESETS", {}):  # a flag that is given counts all the same
        chosen, _ = parser.parse_known_args(argv)
        parser.set_defaults(**presets.get(chosen.preset, {}))
    s = settings(**vars(parser.parse_args(argv)))
    for f in fields(s):
        texts = getattr(s, f.name)
        for text in [texts] if isinstance(texts, str) else texts if f.type is list else ():
            valid = not any("\ud800" <= c <= "\udfff" for c in text)
            require(valid, f"{flag(f.name)} {text}: not UTF-8; write it anew")
        if f.type in (int, float):
            require_bounds(flag(f.name), getattr(s, f.name), **f.metadata)
    s.device = resolve_device(s.device)
    if s.dtype == "auto":
        s.dtype = "fp32" if s.device == "cpu" else "bf16"
    return s


def depth(settings: type, name: str) -> int:
    """How far up a field is defined: the script's own come first."""
    return [name in inspect.get_annotations(c) for c in settings.__mro__].index(True)


def require_bounds(flag: str, value: float, least=None, most=None, **_) -> None:
    """Raise InputError unless a number is finite and within its bounds."""
    lowest = -1e30 if least is None else least
    highest = (2**31 - 1 if type(value) is int else 1e30) if most is None else most
    expected = f"{lowest:g} to {highest:g}"
    if least is not None and most is None and not value > highest:
        expected = f"at least {least}"
    require(lowest <= value <= highest, f"{flag} {value}: expected {expected}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def resolve_device(device: str) -> str:
    """cpu, or cuda with this process's number. Raises InputError for what is not there."""
    cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    possible = device == "cpu" or (cuda and device.startswith("cuda"))
    require(possible, f"--device {device}: not possible here; expected cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """Mixed precision, where the dtype is not fp32. A forward pass uses each weight once, so a
    cache of their 16-bit copies would only hold memory."""
    enabled = dtype != "fp32"
    return torch.autocast(device.split(":")[0], DTYPES[dtype], enabled, cache_enabled=False)


def run_script(main: Callable, settings: type) -> None:
    """Run a script's main with its settings, perhaps as one of torchrun's processes, and exit. A
    user's error, a full disk or memory ends in one sentence and exit code 2."""
    interrupts.as_usual()
    streams.steady()
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all
    code = 0
    try:
        s = parse(settings)
        if s.device.startswith("cuda"):
            torch.cuda.set_device(s.device)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # A resumed run ends with the same bits.
            torch.use_deterministic_algorithms(True, warn_only=True)
        join_processes(s.device)
        main(s)
        leave_processes()
    except BaseException as error:
        sentence = users_sentence(error, settings)
        if RANK > 0:
            time.sleep(5)  # torchrun ends this process before it can repeat what the first one says
        if not sentence:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        code = 130 if isinstance(error, KeyboardInterrupt) else 2
    end_process(code)


def users_sentence(error: BaseException, settings: type) -> str:
    """What to tell the user of an error; "" where the fault is in the program."""
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "alloc" in words and "memory" in words
    ):
        trains = "micro_batch_tokens" in (f.name for f in fields(settings))
        smaller = "--micro-batch-tokens" if trains else "--batch-size"
        return plain(f"out of memory: {words}; lower {smaller}, or take a smaller model", 600)
    if not isinstance(error, USERS_ERRORS):
        return ""
    advice = ""
    if isinstance(error, OSError | SafetensorError):
        advice = "; nothing that was whole is lost: make room or allow writing there, then repeat"
    return plain(words or "interrupted") + advice

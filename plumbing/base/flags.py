"""A script's flags from a dataclass, its device and dtype, and how it begins and ends."""

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields

import torch
from safetensors import SafetensorError

from plumbing.base.errors import InputError, plain, require
from plumbing.base.files import ROOT
from plumbing.base.processes import RANK, WORLD, end_process, join_processes, leave_processes

BOUNDS = ("least", "most")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
USERS_ERRORS = (InputError, ImportError, OSError, SafetensorError, KeyboardInterrupt)


def option(default: object, help: str, group: str, **extra):
    """A settings field whose flag has this default, help and bounds (`least`, `most`) and stands in
    this group of -h; extra is argparse's."""
    return field(default=default, metadata={"help": help, "group": group, **extra})


def ours(path: str) -> str:
    """A path of the repository as it leads there from the folder that a script is started in."""
    return path if os.path.samefile(os.getcwd(), ROOT) else os.path.join(ROOT, path)


@dataclass
class DeviceSettings:
    """Settings of every script that computes."""

    given = frozenset()  # the names of those that the command line gave

    dtype: str = option(
        "auto",
        "auto: bf16 on CUDA (fp16 before Ampere), else fp32",
        "model",
        choices=["auto", *DTYPES],
    )
    device: str = option("auto", "auto: cuda or cpu; or another of torch's (mps, untried)", "model")


def parse(settings: type, about: str, argv: list[str] | None = None):
    """Fill a settings dataclass from the command line: every field is a flag, in the group that its
    option names. The type of a field is its flag's: a bool is a switch, a list takes several texts.
    Its PRESETS, if it has some, are the defaults that --preset NAME puts in the place of others. An
    unknown flag or a wrong type ends the script as argparse does; a value that is out of bounds or
    not finite, or a device that is not there, raises InputError. 'auto' is resolved."""
    parser = argparse.ArgumentParser(
        description=about.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups, own = {}, settings.__annotations__
    for f in sorted(fields(settings), key=lambda f: f.name not in own):  # the script's own first
        name = f.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        groups[name].add_argument(flag(f.name), **arguments_of(f))
    # A flag that is not given stays None, whatever its default is.
    nothing = argparse.Namespace(**dict.fromkeys(f.name for f in fields(settings)))
    found = vars(parser.parse_args(argv, nothing))
    given = {name: value for name, value in found.items() if value is not None}
    presets = getattr(settings, "PRESETS", {})
    s = settings(**presets.get(given.get("preset"), {}) | given)
    s.given = frozenset(given)
    for f in fields(s):
        if f.type in (int, float):
            require_bounds(flag(f.name), getattr(s, f.name), **f.metadata)
    s.device = resolve_device(s.device)
    if s.dtype == "auto":
        s.dtype = usual_dtype(s.device)
    return s


def refuse_given(s: DeviceSettings, names: Iterable[str], why: str) -> None:
    """Raise InputError where the command line gave one of these settings, which does not count."""
    for name in names:
        found = f"{flag(name)} {getattr(s, name)}"
        require(name not in s.given, f"{found} would change nothing: {why}; leave it out")


def arguments_of(f) -> dict:
    """What argparse is told of a field."""
    extra = {k: v for k, v in f.metadata.items() if k not in (*BOUNDS, "group")}
    default = " ".join(f.default) if isinstance(f.default, tuple) else f.default
    if default not in (None, "", False):
        extra["help"] += f" (default: {'on' if f.type is bool else default})"
    extra["default"] = f.default
    if f.type is bool:
        return {"action": "store_true"} | extra
    if f.type is list:
        return {"type": str, "nargs": "+", "action": "extend"} | extra
    return {"type": f.type} | extra


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
    """A device of torch's that is there; cuda with this process's number. Raises InputError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sentence = f"--device {device} with {WORLD} processes would put them on one GPU; expected cuda"
    require(WORLD == 1 or not device.startswith("cuda:"), sentence)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK'] if WORLD > 1 else 0}"
    try:
        torch.ones(1, device=device).item()  # runs a kernel, which this build may lack for a GPU
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        found = plain(str(error).split("\n")[0], 200)
        count = torch.cuda.device_count()
        expected = f"cpu, or cuda:0 to cuda:{count - 1}" if count else "cpu"
        if WORLD > 1 and count:
            expected = f"at most {count} processes on this machine, one for each GPU"
        sentence = f"--device {device}: not possible here ({found}); expected {expected}"
        raise InputError(sentence) from None
    return device


def usual_dtype(device: str) -> str:
    if not device.startswith("cuda"):
        return "fp32"
    # Before Ampere a GPU emulates bf16, and has fast products in fp16 alone.
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(device: str, dtype: str) -> AbstractContextManager:
    """Mixed precision, where the dtype is not fp32. A forward pass uses each weight once, so a
    cache of their 16-bit copies would only hold memory."""
    enabled = dtype != "fp32"
    return torch.autocast(device.split(":")[0], DTYPES[dtype], enabled, cache_enabled=False)


def make_deterministic(device: str) -> None:
    """On CUDA: the same steps give the same bits, so that a resumed run ends as one in peace. To
    be called before the first product."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # of what is compiled
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # all of it is written


@contextmanager
def nondeterministic() -> Iterator[None]:
    """Without make_deterministic, under which each write into a KV cache would be sorted."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run_script(main: Callable, settings: type, about: str) -> None:
    """Run a script's main with its settings, perhaps as one of torchrun's processes, and exit. A
    user's error, a full disk or memory ends in one sentence and exit code 2. about: the script's
    own docstring, for -h."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a letter that the terminal lacks is "?"
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all
    code = 0
    try:
        s = parse(settings, about)
        if s.device.startswith("cuda"):
            torch.cuda.set_device(s.device)
        join_processes(s.device)
        main(s)
        leave_processes()
    except BaseException as error:
        sentence = users_sentence(error)
        if RANK > 0:
            time.sleep(5)  # torchrun ends this process before it can repeat what the first one says
        if not sentence:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        code = 130 if isinstance(error, KeyboardInterrupt) else 2
    end_process(code)


def users_sentence(error: BaseException) -> str:
    """What to tell the user of an error; "" where the fault is in the program."""
    words = " ".join(str(error).split())
    no_room = "alloc" in words and "memory" in words
    # CUDA and cuBLAS have words of their own; what creates cuBLAS's handle has tried twice.
    no_room = no_room or any(x in words for x in ("out of memory", "ALLOC_FAILED", "cublasCreate"))
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and no_room
    ):
        advice = "lower --micro-batch-tokens of train.py or --batch-size of evaluate.py"
        return plain(f"out of memory: {words}; {advice}, or take a smaller model", 600)
    if not isinstance(error, USERS_ERRORS):
        return ""
    advice = ""
    full = getattr(error, "errno", None) in FULL or isinstance(error, SafetensorError)
    if full:
        advice = "; nothing that was whole is lost: make room or allow writing there, then repeat"
    return plain(words or "interrupted") + advice

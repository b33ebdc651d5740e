"""A script's flags from a dataclass, and how it begins and ends."""

import argparse
import os
import sys
import time
from dataclasses import field, fields

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from plumbing.distributed import RANK, WORLD
from plumbing.errors import InputError, require

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def option(default, help, **extra):
    """A settings field whose flag has this default, help and `least` value; extra goes to argparse."""
    return field(default=default, metadata={"help": help, **extra})


def parse(settings, argv=None):
    """Fill a settings dataclass from the command line: every field is a flag, an unknown flag fails, 'auto' is resolved."""
    parser = argparse.ArgumentParser(
        description=sys.modules[settings.__module__].__doc__.split("\n\n")[0]
    )
    for f in fields(settings):
        kind = (
            {"action": "store_true"} if f.type is bool else {"type": f.type, "default": f.default}
        )
        default = " / ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        extra = dict(
            f.metadata,
            help=f.metadata["help"] + f" (default: {default})" * (default not in (None, "", False)),
        )
        parser.add_argument(
            "--" + f.name.replace("_", "-"),
            **kind | {k: v for k, v in extra.items() if k != "least"},
        )
    s, cuda = settings(**vars(parser.parse_args(argv))), torch.cuda.is_available()
    for f in fields(s):
        value, least = getattr(s, f.name), f.metadata.get("least")
        require(
            least is None or value >= least,
            f"--{f.name.replace('_', '-')} {value}: expected at least {least}",
        )
    s.device = ("cuda" if cuda else "cpu") if s.device == "auto" else s.device
    s.dtype = ("fp32" if s.device == "cpu" else "bf16") if s.dtype == "auto" else s.dtype
    require(
        s.device == "cpu" or cuda and s.device.startswith("cuda"),
        f"--device {s.device}: not possible here; expected cpu",
    )
    s.device += f":{os.environ.get('LOCAL_RANK', 0)}" * (s.device == "cuda")
    return s


def run(main, settings):
    """Run a script's main, perhaps as one of torchrun's processes; a user's error, a full disk or memory is one sentence."""
    sys.stdout = open(os.devnull, "w") if RANK else sys.stdout  # the first process speaks for all
    code = 0
    try:
        s = parse(settings)
        if s.device.startswith("cuda"):
            torch.cuda.set_device(s.device)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(
                True, warn_only=True
            )  # a resumed run ends with the same bits
        if WORLD > 1:
            dist.init_process_group("nccl" if s.device.startswith("cuda") else "gloo")
        main(s)
        if WORLD > 1:
            dist.destroy_process_group()
    except BaseException as e:
        time.sleep(
            5 * (RANK > 0)
        )  # torchrun ends this process before it can repeat what the first one says
        if not isinstance(
            e,
            (
                InputError,
                ImportError,
                OSError,
                SafetensorError,
                torch.OutOfMemoryError,
                KeyboardInterrupt,
            ),
        ):
            raise
        hint = "; nothing that was whole is lost: make room or allow writing there, then repeat"
        print(
            f"error: {str(e) or 'interrupted'}" + hint * isinstance(e, (OSError, SafetensorError)),
            file=sys.stderr,
        )
        code = 130 if isinstance(e, KeyboardInterrupt) else 2
    if (
        WORLD > 1
    ):  # threads of gloo outlive their group; one that lets go of a tensor while Python ends would abort the process
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)

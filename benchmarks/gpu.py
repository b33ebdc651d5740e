"""All that needs one GPU of 80 GB, in about eight minutes: `make gpu`.

    python benchmarks/gpu.py                                # writes its section of RESULTS.md
    python benchmarks/gpu.py --sections training decoding   # these alone, beside what is there
    python benchmarks/gpu.py --tiny --device cpu            # the same code on tiny shapes

The CUDA tests, mixed precision against fp32, resuming to the same bits, and a model of LLaMA-2-7B's
shape with LoRA against transformers + PEFT, training and decoding, with its heaviest kernels. It
needs the packages of requirements.txt without langid, pytest, transformers and peft. What a section
found is written as soon as it is there. One that fails says so in a line, and the next one follows.
"""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as train.py has it

import torch
from safetensors.torch import load_file

from benchmarks import common
from benchmarks.llama_7b import decode_7b, kernels_7b, train_7b
from plumbing.base.errors import InputError, plain, require
from plumbing.base.flags import resolve_device

STARTED: list[subprocess.Popen] = []


def start(*command: object) -> subprocess.Popen:
    """A Python program in a group of its own, whose children end with it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, *map(str, command)]
    STARTED.append(subprocess.Popen(command, cwd=common.ROOT, start_new_session=True, **pipes))
    return STARTED[-1]


def end_started() -> None:
    while STARTED:
        process = STARTED.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(process: subprocess.Popen) -> str:
    """What a program said; it must end well."""
    said, _ = process.communicate()
    if process.returncode:
        print(said[-8000:], flush=True)
    require(process.returncode == 0, f"ended with {process.returncode}: {said[-600:]}")
    return said


def train_py(*args: object) -> subprocess.Popen:
    """A run of stage 1 on the demo."""
    return start("train.py", "--stage", 1, *args)


def run_tests(device: str, tiny: bool) -> str:
    """The tests that need CUDA, by pytest, but for what the next section does."""
    tests = [
        f"tests/test_{name}.py" for name in ("model", *(() if tiny else ("decoding", "train")))
    ]
    said = finish(start("-m", "pytest", "-q", "-rs", *tests, "-k", "cuda and not mixed_precision"))
    return f"`pytest -k cuda`: {said.strip().splitlines()[-1].strip('= ')}."


def compare_precisions(device: str, tiny: bool) -> str:
    """Losses of the same steps in three dtypes, the largest differences from fp32's."""
    size = ["--steps", 1, "--pairs", 1, "--batch-size", 1] if tiny else ["--steps", 30]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            dtype: train_py(
                *size, "--device", device, "--dtype", dtype, "--out", f"{folder}/{dtype}"
            )
            for dtype in ("fp32", "bf16", "fp16")
        }
        losses, skipped = {}, 0
        for dtype, process in runs.items():
            finish(process)
            lines = Path(folder, dtype, "log.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            losses[dtype] = [row["mle"] for row in rows]
            skipped += sum(row["grad_norm"] is None for row in rows)
    require(None not in sum(losses.values(), []), f"losses are not all finite: {losses}")
    parts = []
    for dtype in ("bf16", "fp16"):
        pairs = zip(losses[dtype], losses["fp32"], strict=True)
        parts.append(f"{dtype} {100 * max(abs(a - b) / b for a, b in pairs):.2g} %")
    steps, last = len(losses["fp32"]), losses["fp32"][-1]
    return (
        f"{steps} steps of stage 1 on the demo: all losses are finite; the largest differences of "
        f"a step's loss from fp32's are {', '.join(parts)} (goal 0.1 %; fp32 ends at {last:.3f}; "
        f"fp16's loss scale skipped {skipped} updates)."
    )


def compare_resumed(device: str, tiny: bool) -> str:
    """A run of 12 steps, and one that is killed after its checkpoint of step 6 and resumed."""
    size = ["--pairs", 4, "--batch-size", 2] if tiny else []
    args = [*size, "--steps", 12, "--save-every", 6, "--lora-dropout", 0.1, "--device", device]
    with tempfile.TemporaryDirectory() as folder:
        whole = train_py(*args, "--out", f"{folder}/whole")
        stopped = train_py(*args, "--out", f"{folder}/stopped")
        while not Path(f"{folder}/stopped.partial/step-000006").exists():
            require(stopped.poll() is None, "the run ended before its checkpoint was seen")
            time.sleep(0.002)
        stopped.kill()
        stopped.communicate()
        require(not Path(f"{folder}/stopped").exists(), "the run ended before it was killed")
        finish(train_py(*args, "--out", f"{folder}/stopped", "--resume"))
        finish(whole)
        a, b = (load_file(f"{folder}/{x}/adapter_model.safetensors") for x in ("whole", "stopped"))
    differ = [name for name in a if not torch.equal(a[name], b[name])]
    require(a.keys() == b.keys() and not differ, f"{len(differ)} of {len(a)} tensors differ")
    return f"Killed after step 6 of 12 and resumed: all {len(a)} tensors are the same to the bit."


# {name: (its title, what it does, the most seconds that it may take)}
SECTIONS = {
    "tests": ("CUDA tests", run_tests, 80),
    "precision": ("Precision", compare_precisions, 80),
    "resuming": ("Resuming", compare_resumed, 70),
    "training": ("Training 7B", train_7b, 150),
    "decoding": ("Decoding 7B", decode_7b, 110),
    "kernels": ("Kernels 7B", kernels_7b, 50),
}


def guarded(section: Callable, device: str, tiny: bool, limit: int) -> str:
    """What a section reports, or a line that says how it failed."""

    def out_of_time(*_) -> None:
        raise TimeoutError(f"more than {limit} s")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, limit, 5)  # again, where somebody caught it
    try:
        text = section(device, tiny)
    except Exception as error:  # whatever it is, the other sections are worth having
        signal.setitimer(signal.ITIMER_REAL, 0)
        text = f"**Failed:** {type(error).__name__}: {plain(str(error), 600)}"
        traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        end_started()
    gc.collect()
    if device != "cpu":
        with suppress(Exception):  # after some errors CUDA does nothing more
            torch.cuda.empty_cache()
    return text


def parts_there(folder: Path) -> dict[str, str]:
    """{title: what RESULTS.md has under it}, of sections that were written before."""
    path = folder / "RESULTS.md"
    report = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"<!-- gpu -->(.*)<!-- /gpu -->", report, re.S)
    titles = [title for title, *_ in SECTIONS.values()]
    parts = re.split(rf"^\*\*({'|'.join(titles)})\.\*\* ", found[1] if found else "", flags=re.M)
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def main() -> None:
    parser = common.flags(__doc__, repeats=False, tiny="tiny shapes; writes nothing")
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--limit", type=int, help="seconds of each section, instead of its own")
    s = parser.parse_args()
    require(s.limit is None or s.limit > 0, f"--limit {s.limit}: expected seconds, at least 1")
    device = resolve_device(s.device)
    if device != "cpu":
        torch.cuda.set_device(device)  # which memory and graphs are measured on
    for sign in (signal.SIGTERM, signal.SIGHUP):  # they end children too, by guarded's finally
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    parts, failed = parts_there(common.HERE), False
    for name in s.sections:
        title, section, limit = SECTIONS[name]
        started = time.perf_counter()
        print(title, flush=True)
        text = guarded(section, device, s.tiny, s.limit or limit)
        seconds = round(time.perf_counter() - started)
        parts[title] = f"{text}\n\n{common.machine(device)} {seconds} s."
        print(f"**{title}.** {parts[title]}", flush=True)
        failed = failed or text.startswith("**Failed")
        if s.write or not s.tiny:
            known = [title for title, *_ in SECTIONS.values() if title in parts]
            report = [f"**{title}.** {parts[title]}" for title in known]
            try:
                common.write("gpu", "\n\n".join(["## One GPU: `make gpu`", *report]))
            except (OSError, InputError) as error:  # the sections that follow are worth having
                print(f"not written: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    common.end(main)

"""All that needs one GPU of 80 GB, in at most 25 minutes: `make gpu`.

    python benchmarks/gpu.py                      # writes its section of RESULTS.md
    python benchmarks/gpu.py --tiny --device cpu  # the same code on tiny shapes, writes nothing

The CUDA tests, mixed precision against fp32, resuming to the same bits, and a model of LLaMA-2-7B's
shape with LoRA against transformers + PEFT, training and decoding. A section that fails says so in
a line, and the next one follows.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as run_script has it

import torch
from safetensors.torch import load_file

from benchmarks import common
from benchmarks.llama_7b import decode_7b, train_7b
from plumbing.base.errors import plain, require

LIMIT = 295  # seconds of each of the five sections
STARTED: list[subprocess.Popen] = []


def train_py(*args: object) -> subprocess.Popen:
    """A run of stage 1 on the demo, in a process of its own."""
    command = [sys.executable, "train.py", "--stage", "1", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    STARTED.append(subprocess.Popen(command, cwd=common.ROOT, text=True, **pipes))
    return STARTED[-1]


def finish(process: subprocess.Popen) -> None:
    """Wait for a run, which must end well."""
    said, _ = process.communicate()
    require(process.returncode == 0, f"train.py ends with {process.returncode}: {said[-300:]}")


def run_tests(device: str, tiny: bool) -> str:
    """The tests that need CUDA, by pytest."""
    tests = "tests/test_model.py" if tiny else "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", tests, "-k", "cuda"]
    STARTED.append(subprocess.Popen(command, cwd=common.ROOT, text=True, stdout=subprocess.PIPE))
    said, _ = STARTED[-1].communicate()
    require(STARTED[-1].returncode == 0, f"the tests fail: {said[-600:]}")
    return f"`pytest -k cuda`: {said.strip().splitlines()[-1].strip('= ')}."


def compare_precisions(device: str, tiny: bool) -> str:
    """Losses of the same steps in three dtypes, the largest differences from fp32's."""
    size = ["--steps", 1, "--pairs", 1, "--batch-size", 1] if tiny else ["--steps", 50]
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
        f"a step's loss from fp32's are {', '.join(parts)} (fp32 ends at {last:.3f}; fp16's "
        f"loss scale skipped {skipped} updates)."
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


SECTIONS = {
    "CUDA tests": run_tests,
    "Precision": compare_precisions,
    "Resuming": compare_resumed,
    "Training 7B": train_7b,
    "Decoding 7B": decode_7b,
}


def out_of_time(*_) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def guarded(section: Callable, device: str, tiny: bool) -> str:
    """What a section reports, or a line that says how it failed."""
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(LIMIT)
    try:
        text = section(device, tiny)
    except Exception as error:  # whatever it is, the other sections are worth having
        text = f"**Failed:** {type(error).__name__}: {plain(str(error), 600)}"
    signal.alarm(0)
    while STARTED:
        STARTED.pop().kill()
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    return text


def main() -> None:
    parser = common.flags(__doc__, tiny="tiny shapes")
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    s = parser.parse_args()
    if s.device != "cpu" and not torch.cuda.is_available():
        print("error: no CUDA device here, which this benchmark is about", file=sys.stderr)
        sys.exit(2)
    device = "cuda:0" if s.device == "cuda" else s.device
    parts = ["## One GPU: `make gpu`", common.machine(device)]
    for name, section in SECTIONS.items():
        print(name, flush=True)
        parts.append(f"**{name}.** {guarded(section, device, s.tiny)}")
        print(parts[-1], flush=True)
    if s.write or not s.tiny:
        common.write("gpu", "\n\n".join(parts))


if __name__ == "__main__":
    common.end(main)

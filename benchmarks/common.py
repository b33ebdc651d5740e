"""What the benchmarks share: timing in turn, the machine's peak, memory, tables and the picture."""

import argparse
import datetime
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch

from plumbing.base.errors import InputError, require
from plumbing.compute.attention import has_flash_attention
from plumbing.compute.products import has_compiler

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DEMO = str(ROOT / "demo" / "base")
SMOLLM = ROOT / "runs" / "smollm2"  # SmolLM2-135M-Instruct; `make smollm2` makes it
# (m, k, n) of the matrix products that the peak is looked for among.
SHAPES = [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 4096), (8192, 576, 1536)]
TITLE = (
    "# Speed and memory, measured\n\nEach script of this folder writes its own section. A figure "
    "is of the processor that its\nsection names, and no promise for another.\n"
)
TITLE += "\n![ratios](ratios.svg)\n"
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def flags(about: str, repeats: bool = True, **switches: str) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark, and switches {name: help}."""
    parser = argparse.ArgumentParser(description=about.split("\n\n")[0])
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--write", action="store_true", help="write the results of such a run too")
    if repeats:
        parser.add_argument("--repeats", type=int, default=5, help="timed repeats (default: 5)")
    return parser


def end(main: Callable) -> None:
    """Run a script's main; what went wrong in a way that was foreseen ends in one sentence."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# Timing


def seconds_of(function: Callable, *args) -> float:
    """How long a call takes, with what it left to the GPU."""
    synchronise()
    started = time.perf_counter()
    function(*args)
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    if torch.cuda.is_initialized():  # not in a forked child, which computes on the CPU
        torch.cuda.synchronize()


def in_turn(sides: list[Callable], repeats: int) -> list[list[float]]:
    """Seconds of each side and repeat: A B A B ..., so that what else the machine does meets both.
    A side is called with the number of the repeat, from 1."""
    rounds = [[seconds_of(side, i) for side in sides] for i in range(1, repeats + 1)]
    return [list(column) for column in zip(*rounds, strict=True)]


def gemm_peak(dtype: torch.dtype, device: str = "cpu", shapes=SHAPES, repeats: int = 5) -> float:
    """The most FLOP/s that a matrix product x W^T reaches here, best of some shapes."""
    best = 0.0
    for m, k, n in shapes:
        x, w = (torch.randn(rows, k, device=device).to(dtype) for rows in (m, n))
        torch.nn.functional.linear(x, w)  # warm
        seconds = min(seconds_of(torch.nn.functional.linear, x, w) for _ in range(repeats))
        best = max(best, 2 * m * k * n / seconds)
    return best


def reading_peak(size: int = 2**30, repeats: int = 5) -> float:
    """The most bytes a second that this machine reads from its memory: a sum of so many bytes."""
    numbers = torch.ones(size // 4)
    return size / min(seconds_of(torch.sum, numbers) for _ in range(repeats))


def check_same(name: str, ours: dict, theirs: dict, tolerance: float) -> None:
    """Raise InputError where two sides' figures {name: value} of one step differ: timing different
    work is worth nothing."""
    for figure, value in theirs.items():
        sentence = f"{name}: {figure} is {ours[figure]:.6g} here, {value:.6g} in the peer"
        near = abs(ours[figure] - value) <= tolerance * abs(value)
        require(near, f"{sentence}; they do different work, so no time is worth comparing")


# Memory


def in_child(function: Callable, *args):
    """What a function returns in a forked process of its own, whose memory starts with the imports
    alone. The parent must not have computed with torch: OpenMP's threads do not survive a fork."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *args).result()


def resident(field: str) -> int:
    """Bytes of this process in RAM: "VmRSS" now, "VmHWM" at most so far. Not getrusage's figure,
    which a child inherits from its parent."""
    status = Path("/proc/self/status")
    require(status.exists(), "/proc/self/status: no such file; memory is measured on Linux alone")
    return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) * 1024


# The report


def machine(device: str = "cpu") -> str:
    """The date, the versions and the machine, as a line of the report."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        parts = [date, packages, properties.name, f"{properties.total_memory / 1e9:.0f} GB"]
        parts.append("compiled" if has_compiler() else "nothing compiled")
        q = torch.empty(1, 1, 128, dtype=torch.bfloat16, device=device)
        parts.append("FlashAttention" if has_flash_attention(q) else "padded attention")
        return f"{', '.join(parts)}."
    malloc = "set as in the Makefile" if all(map(os.environ.get, MALLOC)) else "not set"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{date}, {packages}, {cpu()}, {cores} cores, {threads} threads, MALLOC_* {malloc}."


def cpu() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.machine()


def table(rows: list[dict]) -> str:
    """A Markdown table of rows with the same keys; numbers to three digits, None is a dash."""
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    lines += [[cell(row[name]) for name in header] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(values) -> float:
    return float(statistics.median(values))


def write(name: str, text: str, folder: Path = HERE) -> None:
    """Replace a script's own section of RESULTS.md, and draw the picture of all ratios anew."""
    path = folder / "RESULTS.md"
    report = path.read_text(encoding="utf-8") if path.exists() else TITLE
    begin, stop = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in report:
        report += f"\n{begin}{stop}\n"
    head, rest = report.split(begin, 1)
    require(stop in rest, f"{path}: {begin} without {stop} behind it; put it there again")
    report = f"{head}{begin}\n{text.strip()}\n{stop}{rest.split(stop, 1)[1]}"
    path.write_text(report, encoding="utf-8")
    (folder / "ratios.svg").write_text(draw(ratios(report)), encoding="utf-8")
    print(f"wrote {path.name} and ratios.svg")


def ratios(report: str) -> list[tuple[str, float, float | None]]:
    """(what, ratio, goal) of every row, in the sections of the CPU, of a table that has them."""
    found, header = [], []
    report = re.sub(r"<!-- gpu -->.*<!-- /gpu -->", "", report, flags=re.S)
    for line in report.splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif "ratio" in header and re.match(r"[\d.]+$", cells[header.index("ratio")]):
            goal = cells[header.index("goal")]
            ratio = float(cells[header.index("ratio")])
            found.append((cells[0], ratio, None if goal == "-" else float(goal)))
    return found


def draw(rows: list[tuple[str, float, float | None]]) -> str:
    """The SVG text of bars, a stroke at each goal and a dashed line where both are as fast."""
    label, bar, row, top = 330, 330, 26, 46  # widths and heights in pixels
    width, height = label + bar + 60, top + row * len(rows) + 10
    scale = bar / max([1.0, *(max(ratio, goal or 0) for _, ratio, goal in rows)])
    one = label + scale
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{label}" y="20" font-weight="bold">their seconds over ours</text>',
        f'<text x="{label}" y="36" fill="#c0504d">| goal</text>',
    ]
    for i, (name, ratio, goal) in enumerate(rows):
        y, length = top + i * row, ratio * scale
        name = name.replace("&", "&amp;").replace("<", "&lt;")
        parts.append(f'<text x="{label - 10}" y="{y + 13}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{label}" y="{y}" width="{length:.1f}" height="16" fill="#4f81bd"/>')
        if goal:
            x = label + goal * scale - 1
            parts.append(f'<rect x="{x:.1f}" y="{y - 3}" width="3" height="22" fill="#c0504d"/>')
        end_of_row = label + max(ratio, goal or 0) * scale + 6
        parts.append(f'<text x="{end_of_row:.1f}" y="{y + 13}">{ratio:.2f}</text>')
    parts.append(
        f'<path d="M{one:.1f} {top - 4}V{height - 6}" stroke="black" stroke-dasharray="3"/>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"

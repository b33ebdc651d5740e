"""Heat maps of evaluations: the off-target ratio by source and target, and the outputs' languages.

    python -m tools.picture --ckpt demo/base runs/stage1 runs/stage2 --out picture.svg

Each folder's figures are those of its eval-SPLIT/scores.json. Needs matplotlib
(requirements-optional.txt).
"""

import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from plumbing.base.errors import InputError, require
from plumbing.base.files import read_json
from plumbing.base.flags import DeviceSettings, option, run_script

os.environ.pop("MPLBACKEND", None)  # a file is written, whatever the terminal's user looks at
try:
    import matplotlib
    from matplotlib.figure import Figure
except ImportError:
    matplotlib = None

# Without the time of day the same figures give the same bytes.
FORMATS = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # metadata
ACROSS = 4  # systems side by side
CELL, LEAST = 0.36, 2.6  # inches of a cell, and of a heat map at least
LONGEST = 20  # letters of a name
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "0", "font.size": 9}  # text stays text
ELSE, EMPTY = "else", "empty"  # outputs in none of the test set's languages; blank ones


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option((), "runs or models that were evaluated", "data")
    split: str = option("test", "the evaluation: of its folder eval-SPLIT", "data")
    out: str = option("picture.svg", "file to write: png, svg or pdf", "data")


class Grid(NamedTuple):
    """Percentages, None where there is nothing to measure."""

    title: str
    kinds: tuple[str, str]  # what rows are, and columns
    colours: str
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]


def off_target_grid(directions: dict[str, dict]) -> Grid:
    """OTR by source (rows) and target. directions: {"it-nl": scores} of a report."""
    pairs = [tuple(name.split("-")) for name in directions]
    sources, targets = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    otr = {pair: scores["otr"] for pair, scores in zip(pairs, directions.values(), strict=True)}
    cells = [[otr.get((source, target)) for target in targets] for source in sources]
    return Grid("OTR, %", ("source", "target"), "Reds", sources, targets, cells)


def confusion_grid(directions: dict[str, dict], zero_shot: list[str]) -> Grid:
    """Of the outputs in the zero-shot directions, or where there are none in all: which language
    was asked for (rows), and in which the answer is, in % of a row."""
    names = zero_shot or list(directions)
    asked = sorted({name.split("-")[1] for name in names})
    languages = sorted({code for name in directions for code in name.split("-")})
    answered = {target: Counter() for target in asked}
    for name in names:
        for code, count in directions[name]["answered"].items():
            known = code in languages or code == EMPTY
            answered[name.split("-")[1]][code if known else ELSE] += count
    columns = [*languages, ELSE, EMPTY]
    cells = [
        [100 * answered[target][code] / answered[target].total() for code in columns]
        for target in asked
    ]
    title = f"{'zero-shot' if zero_shot else 'all'} outputs, %"
    return Grid(title, ("asked for", "answered in"), "Blues", asked, columns, cells)


def draw_picture(path: str, reports: dict[str, dict]) -> None:
    """Write a figure: of each report, {name: report}, both of its grids."""
    grids = {}
    for name, report in reports.items():
        zero_shot = report.get("zero_shot", [])
        directions = report["directions"]
        grids[name] = off_target_grid(directions), confusion_grid(directions, zero_shot)
    first, across = next(iter(grids.values())), min(len(reports), ACROSS)
    widest = max(len(grid.columns) for grid in first)
    width = across * max(LEAST, CELL * widest + 0.8)
    height = sum(max(LEAST, CELL * len(grid.rows) + 0.9) for grid in first)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks
        down = math.ceil(len(reports) / ACROSS)
        figure = Figure(figsize=(width, height * down), layout="constrained")
        axes = figure.subplots(2 * down, across, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for n, (name, both) in enumerate(grids.items()):
            short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
            for part, grid in enumerate(both):
                axis = axes[2 * (n // ACROSS) + part, n % ACROSS]
                draw_grid(axis, grid, f"{short}: {grid.title}")
        kind = os.path.splitext(path)[1][1:].lower()
        figure.savefig(path, format=kind, metadata=FORMATS[kind], dpi=150)


def draw_grid(axis, grid: Grid, title: str) -> None:
    """A heat map on matplotlib's axis, from white for 0 to dark for 100 %, with its figures."""
    cells = [[math.nan if value is None else value for value in row] for row in grid.cells]
    axis.set_axis_on()
    axis.pcolormesh(cells, cmap=grid.colours, vmin=0, vmax=100, edgecolors="white", linewidth=1)
    axis.set_title(title, parse_math=False)
    rows, columns = grid.kinds
    axis.set_ylabel(rows)
    axis.set_xlabel(columns)
    axis.set_xticks([n + 0.5 for n in range(len(grid.columns))], grid.columns)
    axis.set_yticks([n + 0.5 for n in range(len(grid.rows))], grid.rows)
    axis.tick_params(length=0)
    axis.invert_yaxis()
    axis.set_frame_on(False)
    for y, row in enumerate(grid.cells):
        for x, value in enumerate(row):
            if value is not None:
                ink = "white" if value > 60 else "black"
                place = x + 0.5, y + 0.5, f"{value:.0f}"
                axis.text(*place, color=ink, ha="center", va="center", fontsize=8)


def main(s: Settings) -> None:
    """Draw the evaluations of some folders. Raises InputError."""
    advice = "pip install -r requirements-optional.txt"
    require(matplotlib, f"tools.picture needs the package matplotlib: {advice}")
    kind = os.path.splitext(s.out)[1][1:].lower()
    expected = f"expected a file name that ends in .{', .'.join(FORMATS)}"
    require(kind in FORMATS, f"--out {s.out}: {expected}")
    require(s.ckpt, "nothing to draw: expected --ckpt RUN ...")
    reports = {}
    for ckpt in s.ckpt:
        path = os.path.join(ckpt, f"eval-{s.split}", "scores.json")
        report = read_json(path, "the scores that evaluate.py writes; evaluate the folder first")
        try:
            off_target_grid(report["directions"]).rows[0]
            confusion_grid(report["directions"], report.get("zero_shot", []))
            reports[ckpt if report["name"] in reports else report["name"]] = report
        except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            sentence = f"{path}: these are no scores with OTR; expected those of evaluate.py"
            raise InputError(f"{sentence}, not made with --lid none") from None
    draw_picture(s.out, reports)
    print(f"wrote {s.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

"""--picture: the heat maps of several systems in one figure, by matplotlib, which is optional."""

import math
import os
import warnings

from plumbing.corpus.corpus import Direction
from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW
from plumbing.score.heatmaps import BLUES, REDS, Grid, both_grids

# Without the time of day the same figures give the same bytes.
FORMATS = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # metadata
ACROSS = 4  # systems side by side
CELL, LEAST = 0.36, 2.6  # inches of a cell, and of a heat map at least
LONGEST = 20  # letters of a name
COLOURS = {REDS: "Reds", BLUES: "Blues"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "0", "font.size": 9}  # text stays text


def format_of(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def refuse_picture(path: str, flag: str = "--picture") -> None:
    """Raise InputError, before any work, where no picture could be written there."""
    expected = f"expected a file name that ends in .{', .'.join(FORMATS)}"
    require(format_of(path) in FORMATS, f"{flag} {path}: {expected}")
    require(not os.path.isdir(path), f"{flag} {path}: is a directory; {expected}")
    path = os.path.realpath(path)  # a link stays one
    try:  # what fails fails better now than after hours
        with open(path + NEW, "wb"):
            os.unlink(path + NEW)
    except OSError as error:
        raise InputError(f"{flag} {path}: {error.strerror}; choose another file") from None
    writable = not os.path.exists(path) or os.access(path, os.W_OK)
    require(writable, f"{flag} {path}: it may not be written to; choose another file")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        advice = "pip install -r requirements-optional.txt"
        raise InputError(f"{flag} needs the package matplotlib: {advice}") from None


def draw_picture(path: str, reports: dict[str, dict], zero_shot: list[Direction]) -> None:
    """Write a figure: of each report, {name: report}, the off-target ratio by source and target,
    and below it in which languages the outputs are."""
    import matplotlib
    from matplotlib.figure import Figure

    across = min(len(reports), ACROSS)
    grids = {name: both_grids(report["directions"], zero_shot) for name, report in reports.items()}
    first = next(iter(grids.values()))
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
            for part, grid in enumerate(both):
                axis = axes[2 * (n // ACROSS) + part, n % ACROSS]
                draw_grid(axis, grid, f"{shortened(name)}: {grid.title}")
        kind, path = format_of(path), os.path.realpath(path)
        aside = path + NEW
        try:
            figure.savefig(aside, format=kind, metadata=FORMATS[kind], dpi=150)
            os.replace(aside, path)
        except OSError:
            if os.path.exists(aside):
                os.unlink(aside)
            raise


def shortened(name: str) -> str:
    """A name for a title that is as wide as a heat map."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def draw_grid(axis, grid: Grid, title: str) -> None:
    """A heat map on matplotlib's axis, from white for 0 to dark for 100 %, with its figures."""
    cells = [[math.nan if value is None else value for value in row] for row in grid.cells]
    axis.set_axis_on()
    axis.pcolormesh(
        cells, cmap=COLOURS[grid.shades], vmin=0, vmax=100, edgecolors="white", linewidth=1
    )
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

"""--picture: the heat maps of several systems in one figure, by matplotlib, which is optional."""

import math
import os
import warnings

from plumbing.corpora import Direction
from plumbing.errors import InputError, require
from plumbing.files import NEW
from plumbing.heatmaps import Grid, both_grids

FORMATS = ("png", "svg", "pdf")
ACROSS = 4  # systems side by side
READABLE = 14  # columns of a grid whose cells have room for figures
# Text stays text, and the same figures give the same bytes.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "0", "font.size": 9}


def format_of(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def refuse_picture(path: str) -> None:
    """Raise InputError, before any work, where no picture could be written there."""
    expected = f"expected a file name that ends in .{', .'.join(FORMATS)}"
    require(format_of(path) in FORMATS, f"--picture {path}: {expected}")
    require(not os.path.isdir(path), f"--picture {path}: is a directory; {expected}")
    folder = os.path.dirname(path) or "."
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK)
    require(writable, f"--picture {path}: {folder} is no folder that can be written to")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        advice = "pip install -r requirements-optional.txt"
        raise InputError(f"--picture needs the package matplotlib: {advice}") from None


def draw_picture(path: str, reports: dict[str, dict], zero_shot: list[Direction]) -> None:
    """Write a figure: of each report, {name: report}, the off-target ratio by source and target,
    and below it what was answered instead."""
    import matplotlib
    from matplotlib.figure import Figure

    across, down = min(len(reports), ACROSS), math.ceil(len(reports) / ACROSS)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font lacks
        figure = Figure(figsize=(3.1 * across + 0.6, 5.6 * down), layout="constrained")
        axes = figure.subplots(2 * down, across, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for n, (name, report) in enumerate(reports.items()):
            for part, grid in enumerate(both_grids(report["directions"], zero_shot)):
                draw_grid(axes[2 * (n // ACROSS) + part, n % ACROSS], grid, f"{name}: {grid.title}")
        colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 100), "Reds")
        figure.colorbar(colours, ax=axes, shrink=0.5, label="%")
        aside, metadata = path + NEW, {} if format_of(path) == "png" else {"Date": None}
        try:
            figure.savefig(aside, format=format_of(path), metadata=metadata, dpi=150)
            os.replace(aside, path)
        except OSError:
            if os.path.exists(aside):
                os.unlink(aside)
            raise


def draw_grid(axis, grid: Grid, title: str) -> None:
    """A heat map on matplotlib's axis, white to dark red, with its figures where there is room."""
    cells = [[math.nan if value is None else value for value in row] for row in grid.cells]
    axis.set_axis_on()
    axis.pcolormesh(cells, cmap="Reds", vmin=0, vmax=100, edgecolors="white", linewidth=1)
    axis.set_title(title, fontsize=8, parse_math=False)
    axis.set_xticks([n + 0.5 for n in range(len(grid.columns))], grid.columns)
    axis.set_yticks([n + 0.5 for n in range(len(grid.rows))], grid.rows)
    axis.tick_params(
        length=0, labelsize=8, top=True, bottom=False, labeltop=True, labelbottom=False
    )
    axis.invert_yaxis()
    axis.set_frame_on(False)
    for y, row in enumerate(grid.cells if len(grid.columns) <= READABLE else ()):
        for x, value in enumerate(row):
            if value is not None:
                ink = "white" if value > 60 else "black"
                place = x + 0.5, y + 0.5, f"{value:.0f}"
                axis.text(*place, color=ink, ha="center", va="center", fontsize=8)

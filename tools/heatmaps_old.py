"""Off-target ratios by source and target, and the languages of the outputs: grids of %."""

from collections import Counter
from typing import NamedTuple

from plumbing.corpus.corpus import Direction

ELSE, EMPTY = "else", "empty"  # outputs in none of the test set's languages; blank ones
BLACK, WHITE, PLAIN = "\x1b[30m", "\x1b[97m", "\x1b[0m"
# Of 256 colours, from white: what should be pale everywhere; what should be dark once in a row.
REDS = (231, 225, 224, 217, 210, 203, 196, 160, 124, 88)
BLUES = (231, 195, 189, 153, 117, 75, 39, 27, 21, 18)
WIDTH = 6  # characters of a cell


class Grid(NamedTuple):
    """Percentages, None where there is nothing to measure."""

    title: str
    kinds: tuple[str, str]  # what rows are, and columns
    shades: tuple[int, ...]
    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]


def off_target_grid(directions: dict[str, dict]) -> Grid:
    """OTR by source (rows) and target. directions: {"it-nl": scores} of a report."""
    pairs = [tuple(name.split("-")) for name in directions]
    sources, targets = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    otr = {pair: scores["otr"] for pair, scores in zip(pairs, directions.values(), strict=True)}
    cells = [[otr.get((source, target)) for target in targets] for source in sources]
    return Grid("OTR, %", ("source", "target"), REDS, sources, targets, cells)


def confusion_grid(directions: dict[str, dict], zero_shot: list[Direction]) -> Grid:
    """Of the outputs in the zero-shot directions, or where there are none in all: which language
    was asked for (rows), and in which the answer is, in % of a row."""
    names = ["-".join(direction) for direction in zero_shot] or list(directions)
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
    return Grid(title, ("asked for", "answered in"), BLUES, asked, columns, cells)


def both_grids(directions: dict[str, dict], zero_shot: list[Direction]) -> tuple[Grid, Grid]:
    return off_target_grid(directions), confusion_grid(directions, zero_shot)


def draw_grid(grid: Grid) -> str:
    """A grid for a terminal of 256 colours."""
    rows, columns = grid.kinds
    lines = [f"{grid.title} ({rows}: row; {columns}: column)"]
    lines += [" " * WIDTH + "".join(name.rjust(WIDTH) for name in grid.columns)]
    for name, cells in zip(grid.rows, grid.cells, strict=True):
        lines.append(name.ljust(WIDTH) + "".join(draw_cell(x, grid.shades) for x in cells))
    return "\n".join(lines)


def draw_cell(value: float | None, shades: tuple[int, ...]) -> str:
    if value is None:
        return "-".rjust(WIDTH)
    shade = min(int(value / 100 * len(shades)), len(shades) - 1)
    ink = WHITE if 2 * shade > len(shades) else BLACK
    return f"\x1b[48;5;{shades[shade]}m{ink}{value:{WIDTH}.1f}{PLAIN}"


def draw_reports(reports: dict[str, dict], zero_shot: list[Direction]) -> str:
    """Both grids of every report, {name: report}, for a terminal."""
    parts = []
    for name, report in reports.items():
        grids = both_grids(report["directions"], zero_shot)
        parts += [f"{name}: {draw_grid(grid)}" for grid in grids]
    return "\n\n".join(parts)

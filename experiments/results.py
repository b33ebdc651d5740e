"""RESULTS.md and its figures, from the scores.json of the grid's runs."""

import math
import os
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments import abilities
from experiments.grid import (
    ABILITIES_DEV,
    ALPHAS,
    CLAIMS,
    DEV,
    GROUPS,
    PENALTIES,
    STEPS,
    SYSTEMS,
    SYSTEMS_SEEDS,
    TEST,
    WEB,
    Group,
)
from plumbing.corpora import read_corpus
from plumbing.doubt import SIGNIFICANT, p_value, resampled_share
from plumbing.files import read_json, read_lines, write_whole
from plumbing.identify import make_identifiers
from plumbing.metrics import compare_texts
from plumbing.systems import CANDIDATES
from plumbing.tables import align

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "RESULTS.md")
# Of Student's t, 97.5 %, for so many seeds.
T = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
TUNED = {"en", "it", "nl", "ro"}  # every tuning set here has these, each with English


class Column(NamedTuple):
    """A figure of a run: the mean of a score over some directions of a test set."""

    key: str  # of scores.json
    directions: Callable[[str, str], bool]
    data: str = DEV


def supervised(source: str, target: str) -> bool:
    return "en" in (source, target) and {source, target} <= TUNED


def zero_shot(source: str, target: str) -> bool:
    return not supervised(source, target)


def old(source: str, target: str) -> bool:
    return zero_shot(source, target) and {source, target} <= TUNED


def new(source: str, target: str) -> bool:
    """One that is new and another that is not English."""
    return "en" not in (source, target) and not {source, target} <= TUNED


COLUMNS = {
    "supervised BLEU": Column("bleu", supervised),
    "zero-shot BLEU": Column("bleu", zero_shot),
    "zero-shot OTR": Column("otr", zero_shot),
    "len": Column("length_ratio", zero_shot),
    "mixed": Column("mixed", zero_shot),
    "web: supervised BLEU": Column("bleu", supervised, WEB),
    "web: zero-shot BLEU": Column("bleu", zero_shot, WEB),
    "web: zero-shot OTR": Column("otr", zero_shot, WEB),
    "old: BLEU": Column("bleu", old),
    "old: OTR": Column("otr", old),
    "from English, new: OTR": Column("otr", lambda x, y: x == "en" and y not in TUNED),
    "into English, new: BLEU": Column("bleu", lambda x, y: y == "en" and x not in TUNED),
    "new: BLEU": Column("bleu", new),
    "new: OTR": Column("otr", new),
    "both new: OTR": Column("otr", lambda x, y: not {x, y} & TUNED),
}


def scores_path(folder: str, data: str, system: str = "") -> str:
    """Where evaluate.py leaves the scores of a checkpoint on a test set."""
    split = os.path.splitext(os.path.basename(data))[0]
    name = f"eval-{split}.{system}" if system else f"eval-{split}"
    return os.path.join(folder, name, "scores.json")


def read_scores(folder: str, name: str, data: str = DEV) -> dict[int, str]:
    """{seed: the path of scores.json} of a run's evaluations that are there."""
    found, prefix = {}, f"{name}-seed-"
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = scores_path(os.path.join(folder, entry), data)
        if entry.startswith(prefix) and entry[len(prefix) :].isdigit() and os.path.exists(path):
            found[int(entry[len(prefix) :])] = path
    return dict(sorted(found.items()))


def mean_of(path: str, column: Column) -> float:
    """The figure of a column in a scores.json."""
    scores = read_json(path)["directions"]
    return statistics.fmean(
        of[column.key] for name, of in scores.items() if column.directions(*name.split("-"))
    )


def figures_of(folder: str, name: str, column: str) -> dict[int, float]:
    """{seed: figure} of a column of the tables."""
    if column in abilities.KINDS:
        paths = read_scores(folder, name, ABILITIES_DEV)
        return {seed: abilities.score_file(path, column) for seed, path in paths.items()}
    paths = read_scores(folder, name, COLUMNS[column].data)
    return {seed: mean_of(path, COLUMNS[column]) for seed, path in paths.items()}


def describe(values: list[float], digits: int = 1) -> str:
    """The mean over seeds; from three on with its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 3:
        return f"{mean:.{digits}f}"
    width = T[min(len(values), 10)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {width:.{digits}f}"


def group_table(folder: str, group: Group) -> list[str]:
    """Lines of a Markdown table; runs without a result are left out. Where a column is OTR, also
    its range over the seeds."""
    rows = [["run", "seeds", *group.columns]]
    if ranged := [column for column in group.columns if column == "zero-shot OTR"]:
        rows[0].append("OTR, least to most")
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 1))
    for name in group.runs:
        figures = {column: figures_of(folder, name, column) for column in group.columns}
        if not all(figures.values()):
            continue
        cells = [
            describe([*values.values()], 2 if column == "len" else 1)
            for column, values in figures.items()
        ]
        for column in ranged:
            values = figures[column].values()
            cells.append(f"{min(values):.1f} to {max(values):.1f}" if len(values) > 1 else "")
        rows.append([name, f"{len(figures[group.columns[0]])}", *cells])
    return align(rows) if len(rows) > 2 else ["(nothing yet)"]


def systems_table(folder: str) -> list[str]:
    """Lines of a Markdown table: the rows of the paper's tables, with its own figures."""
    header = ["system", "seeds", "supervised BLEU", "zero-shot BLEU", "zero-shot OTR"]
    header += ["OTR, least to most", "paper, LLaMA2-7B: BLEU", "OTR", "LLaMA3-8B: BLEU", "OTR"]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name, system in SYSTEMS.items():
        found = {column: [] for column in header[2:5]}
        for seed in range(1, SYSTEMS_SEEDS + 1):
            run = os.path.join(folder, f"{system.run}-seed-{seed}") if system.run else "demo/base"
            path = scores_path(run, TEST, f"{name}.{seed}")
            for column, values in found.items():
                values += [mean_of(path, COLUMNS[column])] if os.path.exists(path) else []
        if any(found.values()):
            otr = found["zero-shot OTR"]
            cells = [
                str(len(otr)),
                *map(describe, found.values()),
                f"{min(otr):.1f} to {max(otr):.1f}",
            ]
            cells += ["" if x is None else f"{x:.1f}" for x in system.published]
            rows.append([name, *cells])
    return align(rows) if len(rows) > 2 else ["(nothing yet)"]


def write_results(folder: str) -> None:
    """RESULTS.md, but for the claims, which stay as they were tested."""
    parts = [
        "# The paper's claims at the demo's scale",
        "Made by `python experiments/run.py` from scores.json of each run, on the dev split (200 "
        "rows a direction, greedy) where nothing else is said; ± is the 95 % interval over seeds "
        "by Student's t, where there are three or more. A seed decides stage 1's pairs, LoRA's "
        "start, order and twins. What each run is: [grid.py](grid.py); what it costs, and what of "
        "the paper was reproduced: [README.md](README.md).",
        "## The rows of the paper's tables",
        "On the test split (200 rows a direction), greedy; beside them what the paper has for the "
        "zero-shot directions of IWSLT, another model and other data. Settings are the demo's, of "
        "which none was chosen for this table.",
        "\n".join(systems_table(folder)),
    ]
    for name, group in GROUPS.items():
        parts += [f"## {group.title}", group.question, "\n".join(group_table(folder, group))]
        if draw_group(folder, name):
            parts.append(f"![{group.title}]({name}.png)")
    old = open(RESULTS, encoding="utf-8").read() if os.path.exists(RESULTS) else ""
    _, _, claims = old.partition("\n## Claims")
    text = "\n\n".join(parts) + "\n" + (f"\n## Claims{claims}" if claims else "")
    write_whole(RESULTS, text)
    print(f"wrote {os.path.relpath(RESULTS)}")


def draw_group(folder: str, name: str) -> bool:
    """Draw the figure of a group that has one; False where there is none, or no matplotlib."""
    lines = {
        "alpha": {
            penalty: [
                (
                    alpha,
                    "target"
                    if (penalty, alpha) == ("unlikelihood", 0.05)
                    else f"{penalty}-{alpha}",
                )
                for alpha in ALPHAS
            ]
            for penalty in PENALTIES
        },
        "steps": {
            "alpha 0.05": [(0, "stage1"), (100, "target"), *((n, f"steps-{n}") for n in STEPS)]
        },
    }.get(name)
    path = os.path.join(HERE, f"{name}.png")
    if lines is None:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return os.path.exists(path)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    columns = ("zero-shot OTR", "zero-shot BLEU", "supervised BLEU")
    drawn = False
    for axis, column in zip(axes, columns, strict=True):
        for label, points in lines.items():
            values = {x: figures_of(folder, run, column).values() for x, run in sorted(points)}
            means = {x: statistics.fmean(found) for x, found in values.items() if found}
            if means:
                axis.plot([*means], [*means.values()], marker="o", label=label)
                drawn = True
        axis.set_title(column)
        axis.set_xlabel(name)
        if name == "alpha":
            axis.set_xscale("log")
    if drawn:
        axes[0].legend(fontsize=7)
        figure.savefig(path, dpi=110)
    return drawn


def on_test(folder: str, name: str, figure: str) -> tuple[dict[int, float], np.ndarray]:
    """({seed: a figure on the test split}, its bootstraps over sentences, of the mean over seeds);
    both are means over the directions. Every run, seed and direction draws the same sentences."""
    corpus, _ = read_corpus([TEST], "all")
    (identify,) = make_identifiers(["langid"], CANDIDATES, corpus)
    part = "supervised" if figure == "supervised bleu" else "zero-shot"
    directions = [d for d in corpus if ("en" in d) == (part == "supervised")]
    found, bootstraps = {}, []
    for seed in read_scores(folder, name, TEST):
        values = []
        for direction in directions:
            path = os.path.join(folder, f"{name}-seed-{seed}", "eval-test", "-".join(direction))
            texts = read_lines(f"{path}.txt")
            if figure == "otr":
                flags = [identify(text) != direction[1] for text in texts]
                values.append(100 * statistics.fmean(flags))
                bootstraps.append(resampled_share(flags))
            else:
                references = [(row.target, *row.others) for row in corpus[direction]]
                scores, resampled = compare_texts(texts, references, direction[1])
                values.append(scores["bleu"])
                bootstraps.append(resampled["bleu"])
        found[seed] = statistics.fmean(values)
    return found, np.mean(bootstraps, 0)


def holm(p_values: list[float]) -> list[float]:
    """Corrected for their number (Holm 1979)."""
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = most
    return corrected


def p_of_seeds(differences: list[float]) -> float:
    """Two-sided p value of a mean difference over seeds, by Student's t for pairs."""
    n, spread = len(differences), statistics.pstdev(differences)
    if n < 2 or spread == 0:
        return 1.0 if n < 2 or not differences[0] else 0.0
    t = abs(statistics.fmean(differences)) / (spread / math.sqrt(n - 1))
    # The area below the density in (-t, t), with x = sqrt(n - 1) tan(angle).
    angles = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(angles) ** (n - 2)
    inside = np.trapezoid(np.where(angles <= math.atan(t / math.sqrt(n - 1)), density, 0), angles)
    return float(1 - inside / np.trapezoid(density, angles))


def write_claims(folder: str) -> None:
    """Replace the claims' part of RESULTS.md with what the test split says of each."""
    rows, p_values = [], []
    for claim in CLAIMS:
        (a, of_a), (b, of_b) = (
            on_test(folder, x, claim.figure) for x in (claim.better, claim.than)
        )
        sign = -1 if claim.figure == "otr" else 1
        differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
        mean = statistics.fmean(differences)
        both = p_value(of_b, of_a, mean), p_of_seeds(differences)
        p_values.append(max(both))
        better = sum(sign * x > 0 for x in differences)
        cells = [f"{statistics.fmean(x.values()):.1f}" for x in (a, b)]
        cells += [describe(differences), f"{better} of {len(differences)}"]
        cells += [f"{p:.3f}" for p in both]
        rows.append((f"{claim.better} over {claim.than}, {claim.figure}", cells, sign * mean > 0))
    lines = [["claim", "its own", "the other's", "difference", "seeds"]]
    lines[0] += ["p, sentences", "p, seeds", "Holm", "holds"]
    lines.append(["---"] + ["---:"] * 8)
    for (label, cells, right_way), p in zip(rows, holm(p_values), strict=True):
        lines.append([label, *cells, f"{p:.3f}", "yes" if right_way and p < SIGNIFICANT else "no"])
    about = (
        "Stated on dev in grid.py before they were tested, once, on the test split, with five "
        "seeds. *Seeds*: how many agree with the claim. Two p values: of the paired bootstrap over "
        "sentences of the mean over seeds, and of Student's t over the seeds, in pairs. Holm's "
        "correction for the number of claims is of the larger one; a claim holds where that is "
        "below 0.05."
    )
    with open(RESULTS, encoding="utf-8") as file:
        before, _, _ = file.read().partition("\n## Claims")
    write_whole(RESULTS, "\n".join([before, "## Claims", "", about, "", *align(lines), ""]))

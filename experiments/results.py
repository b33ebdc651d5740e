"""RESULTS.md and its figures, from the scores.json of the grid's runs."""

import functools
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from experiments import abilities
from experiments.grid import (
    ABILITIES_DEV,
    ALPHAS,
    DEV,
    GROUPS,
    PENALTIES,
    PROSE,
    RUNS,
    SHORTCUT,
    STEPS,
    SYSTEMS,
    SYSTEMS_SEEDS,
    TEST,
    WEB,
    Claim,
    Group,
    System,
)
from plumbing.base.errors import InputError, require
from plumbing.base.files import read_json, read_lines, write_whole
from plumbing.corpus.corpus import Corpus, read_corpus
from plumbing.score.bleu import compare_texts
from plumbing.score.bootstrap import SIGNIFICANT, resampled_share
from plumbing.score.identify import CANDIDATES, make_identifiers
from plumbing.score.report import KINDS, align

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "RESULTS.md")
# Of Student's t, 97.5 %, for so many seeds.
T = {4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
TUNED = {"en", "it", "nl", "ro"}  # every tuning set here has these, each with English


class Column(NamedTuple):
    """A figure of a run: the mean of a score over some directions of a test set."""

    key: str  # of scores.json, or one of KINDS
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
    "no source: BLEU": Column("bleu", zero_shot, SHORTCUT),
    "no source: OTR": Column("otr", zero_shot, SHORTCUT),
    "test: supervised BLEU": Column("bleu", supervised, TEST),
    "test: zero-shot BLEU": Column("bleu", zero_shot, TEST),
    "test: zero-shot OTR": Column("otr", zero_shot, TEST),
    "test: source": Column("source", zero_shot, TEST),
    "test: English": Column("english", zero_shot, TEST),
    "test: loops": Column("loops", zero_shot, TEST),
    "web: supervised BLEU": Column("bleu", supervised, WEB),
    "web: zero-shot BLEU": Column("bleu", zero_shot, WEB),
    "web: zero-shot OTR": Column("otr", zero_shot, WEB),
    "old: BLEU": Column("bleu", old),
    "old: OTR": Column("otr", old),
    "from English, new: OTR": Column("otr", lambda x, y: x == "en" and y not in TUNED),
    "into English, new: BLEU": Column("bleu", lambda x, y: y == "en" and x not in TUNED),
    "new: BLEU": Column("bleu", new),
    "new: OTR": Column("otr", new),
}


def run_folder(folder: str, name: str, seed: int) -> str:
    return os.path.join(folder, f"{name}-seed-{seed}")


def system_folder(folder: str, system: System, seed: int) -> str:
    """The checkpoint of a row of the paper's tables."""
    return run_folder(folder, system.run, seed) if system.run else "demo/base"


def scores_path(folder: str, data: str, system: str = "") -> str:
    """Where evaluate.py leaves the scores of a checkpoint on a test set."""
    split = data if data == SHORTCUT else os.path.splitext(os.path.basename(data))[0]
    name = f"eval-{split}.{system}" if system else f"eval-{split}"
    return os.path.join(folder, name, "scores.json")


def read_scores(folder: str, name: str, data: str = DEV) -> dict[int, str]:
    """{seed: the path of scores.json} of a run's evaluations that are there."""
    if name in RUNS and not RUNS[name].flags:  # it has no seed: every one's figure is the same
        path = scores_path(RUNS[name].start, data)
        return dict.fromkeys(range(1, 101), path) if os.path.exists(path) else {}
    found, prefix = {}, f"{name}-seed-"
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = scores_path(os.path.join(folder, entry), data)
        seed = re.fullmatch(re.escape(prefix) + "([1-9][0-9]{0,8})", entry)
        if seed and os.path.exists(path):
            found[int(seed[1])] = path
    return dict(sorted(found.items()))


def mean_of(path: str, column: Column) -> float:
    """The figure of a column in a scores.json. Raises InputError."""
    with reports(path):
        scores = read_json(path, "evaluate.py's report")["directions"]
        values = [
            figure_of(of, column.key)
            for name, of in scores.items()
            if column.directions(*name.split("-"))
        ]
        found = statistics.fmean(values)
        if not math.isfinite(found):
            raise ValueError
    return found


def figure_of(scores: dict, key: str) -> float:
    """A figure of a direction's scores; of a kind of off-target outputs, their share in %."""
    if key in KINDS:
        return 100 * scores["off_target"].get(key, 0) / scores["sentences"]
    return scores[key]


@contextmanager
def reports(path: str) -> Iterator[None]:
    """Within it a report is read. Raises InputError where it is not whole."""
    try:
        yield
    except (ArithmeticError, AttributeError, TypeError, LookupError, ValueError):
        advice = "delete its folder, and run experiments.run again"
        raise InputError(f"{path}: not evaluate.py's whole report; {advice}") from None


def figures_of(folder: str, name: str, column: str, seeds: int = 100) -> dict[int, float]:
    """{seed: figure} of a column of the tables, of at most so many seeds."""
    data = ABILITIES_DEV if column in abilities.KINDS else PROSE
    data = COLUMNS[column].data if column in COLUMNS else data
    found = {seed: path for seed, path in read_scores(folder, name, data).items() if seed <= seeds}
    if column == PROSE:
        figures = {}
        for seed, path in found.items():
            with reports(path):
                figures[seed] = float(read_json(path)["nats a token"])
        return figures
    if column in abilities.KINDS:
        figures = {}
        for seed, path in found.items():
            with reports(path):
                figures[seed] = abilities.score(path, column)
        return figures
    return {seed: mean_of(path, COLUMNS[column]) for seed, path in found.items()}


def describe(values: list[float], column: str = "") -> str:
    """The mean over seeds, with the least and the most of two or three; from four on with its 95 %
    interval by Student's t, but for OTR, a ratio near 0 or 100."""
    digits = 2 if column in ("len", PROSE) else 1
    mean = f"{statistics.fmean(values):.{digits}f}"
    if min(values) == max(values):
        return mean
    if column.endswith("OTR") or len(values) < 4:
        return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    width = T[min(len(values), 10)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {width:.{digits}f}"


def common_seeds(figures: list[dict[int, float]]) -> list[int]:
    """The seeds that all of some figures have."""
    return sorted(set.intersection(*map(set, figures))) if figures else []


def figures_of_group(folder: str, group: Group) -> tuple[dict, list[int]]:
    """({run: {column: {seed: figure}}} of the runs that have figures, the seeds that all of these
    have); empty where there is no such seed."""
    found = {
        name: {column: figures_of(folder, name, column, group.seeds) for column in group.columns}
        for name in group.runs
    }
    found = {name: figures for name, figures in found.items() if all(figures.values())}
    seeds = common_seeds([x for figures in found.values() for x in figures.values()])
    return (found, seeds) if seeds else ({}, [])


def group_table(folder: str, group: Group) -> list[str]:
    """Lines of a Markdown table of the runs that have figures, every figure of the same seeds,
    which are fewer where a run has fewer. Behind it stands which runs are missing."""
    found, seeds = figures_of_group(folder, group)
    rows = [["run", "seeds", *group.columns]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 1))
    for name, figures in found.items():
        cells = [describe([x[seed] for seed in seeds], column) for column, x in figures.items()]
        seeded = name not in RUNS or RUNS[name].flags  # a model that is only looked at has no seed
        rows.append([name, str(len(seeds)) if seeded else "-", *cells])
    missing = [name for name in group.runs if name not in found]
    behind = ["", f"{MISSING} {', '.join(missing)}."] if missing else []
    return [*align(rows), *behind] if seeds else []


def systems_table(folder: str) -> list[str]:
    """Lines of a Markdown table: the rows of the paper's tables, with its own figures. The base has
    no seed, the others' are the same."""
    columns = ["supervised BLEU", "zero-shot BLEU", "zero-shot OTR"]
    header = ["system", "seeds", *columns]
    header += ["paper, LLaMA2-7B: BLEU", "OTR", "LLaMA3-8B: BLEU", "OTR"]
    rows, found = [header, ["---"] + ["---:"] * (len(header) - 1)], {}
    for name, system in SYSTEMS.items():
        for seed in range(1, SYSTEMS_SEEDS + 1 if system.run else 2):
            path = scores_path(system_folder(folder, system, seed), TEST, f"{name}.{seed}")
            if os.path.exists(path):
                of_seed = [mean_of(path, COLUMNS[column]) for column in columns]
                found.setdefault(name, {})[seed] = of_seed
    seeds = common_seeds([found.get(name, {}) for name, x in SYSTEMS.items() if x.run])
    if not seeds or len(found) < len(SYSTEMS):
        return []
    for name, of_seeds in found.items():
        mine = seeds if SYSTEMS[name].run else [1]
        values = zip(*(of_seeds[seed] for seed in mine), strict=True)
        cells = [describe([*x], column) for column, x in zip(columns, values, strict=True)]
        cells += ["" if x is None else f"{x:.1f}" for x in SYSTEMS[name].published]
        rows.append([name, str(len(mine)), *cells])
    return align(rows)


SYSTEMS_TITLE = "The rows of the paper's tables"
NOTHING, MISSING = "(nothing yet)", "Not made yet:"


def write_results(folder: str, only: list[str]) -> None:
    """RESULTS.md, of which the sections of these groups are made anew, where there is something to
    make them of, and the others stay, where there are some."""
    about = (
        "# The paper's claims at the demo's scale\n\nMade by `python -m experiments.run` from "
        "scores.json of each run, on the dev split (200 rows a direction, greedy) where nothing "
        "else is said; ± is the 95 % interval over seeds by Student's t, where there are four or "
        "more; in brackets, and as bands in the figures, the least and the most of fewer, and of "
        "OTR. (Tables of two or three seeds that were made before this rule have means alone.) "
        "All rows of a table have the same seeds, from 1 on, of which each decides stage 1's "
        "pairs, LoRA's start, order and twins. *len*: tokens of the outputs over the references'; "
        "*mixed*: % of the outputs that are right as a whole, with five words of another language; "
        "*loops*: % that say something three times in a row. What each run is: [grid.py](grid.py); "
        "what it costs, and what of the paper was seen: [README.md](README.md)."
    )
    systems = (
        "On the test split (200 rows a direction), greedy, at most 64 tokens; beside them what the "
        "paper has for the zero-shot directions of IWSLT, another model and other data. *ours* is "
        "the demo's stage 2, whose settings were chosen on dev; for the other rows nothing was. Of "
        "the 2,400 prompts of *5-shot* 1,012 had room for fewer demonstrations in the base's 512 "
        "positions."
    )
    tables = {SYSTEMS_TITLE: ("rows", systems, systems_table)}
    for name, group in GROUPS.items():
        table = functools.partial(group_table, group=group)
        tables[group.title] = (name, group.question, table)
    old, parts = read_sections(), {}
    for title, (name, question, table) in tables.items():
        wanted = not only or name in only
        lines = table(folder) if wanted or title not in old else []
        was_whole = title in old and NOTHING not in old[title] and MISSING not in old[title]
        is_whole = not any(MISSING in line for line in lines)
        if lines and (is_whole or not was_whole):
            parts[title] = "\n\n".join([question, "\n".join(lines)])
            if draw_group(folder, name):
                parts[title] += f"\n\n![{title}]({name}.png)"
            continue
        parts[title] = old.get(title, f"{question}\n\n{NOTHING}")
        if wanted:
            print(f"{title}: runs are missing, so this section stays as it was")
    parts |= {title: text for title, text in old.items() if title not in parts}  # claims, notes
    write_sections(about, parts)


def read_sections() -> dict[str, str]:
    """{title: text} of RESULTS.md, as far as it is there. Raises InputError."""
    if not os.path.exists(RESULTS):
        return {}
    _, *sections = ("\n" + "\n".join(read_lines(RESULTS))).split("\n## ")
    return {title.strip(): text.strip() for title, _, text in (x.partition("\n") for x in sections)}


def write_sections(about: str, parts: dict[str, str]) -> None:
    """Write RESULTS.md."""
    sections = [about, *(f"## {title}\n\n{text}" for title, text in parts.items())]
    write_whole(RESULTS, "\n\n".join(sections) + "\n")
    print(f"wrote {os.path.relpath(RESULTS)}")


def draw_group(folder: str, name: str) -> bool:
    """Draw the figure of a group that has one, whose runs are there; False where there is none, or
    no matplotlib."""
    penalties = {p: {alpha: f"{p}-{alpha}" for alpha in ALPHAS} for p in PENALTIES}
    penalties["unlikelihood"][0.05] = "target"
    steps = {0: "stage1", 100: "target"} | {n: f"steps-{n}" for n in STEPS}
    lines = {"alpha": penalties, "steps": {"alpha 0.05": steps}}.get(name)
    path = os.path.join(HERE, f"{name}.png")
    if lines is None:
        return False
    found, seeds = figures_of_group(folder, GROUPS[name])
    if len(found) < len(GROUPS[name].runs):
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return os.path.exists(path)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    columns = ("zero-shot OTR", "zero-shot BLEU", "supervised BLEU")
    for axis, column in zip(axes, columns, strict=True):
        for label, points in lines.items():
            places = sorted(points)
            of_points = [[found[points[x]][column][seed] for seed in seeds] for x in places]
            means, least, most = ([*map(f, of_points)] for f in (statistics.fmean, min, max))
            (line,) = axis.plot(places, means, "o-", label=label)
            axis.fill_between(places, least, most, color=line.get_color(), alpha=0.15)
        axis.set_title(column)
        axis.set_xlabel(name)
        if name == "alpha":
            axis.set_xscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    return True


def on_test(
    folder: str, name: str, figure: str, seeds: list[int], corpus: Corpus
) -> tuple[list[float], np.ndarray]:
    """(a figure of each seed on the test split; its bootstraps over sentences [seeds, RESAMPLES]),
    both as means over the zero-shot directions. Every run, seed and direction draws the same
    sentences."""
    (identify,) = make_identifiers(["langid"], CANDIDATES, corpus)
    found, bootstraps = [], []
    for seed in seeds:
        values, resampled = [], []
        for direction in (direction for direction in corpus if zero_shot(*direction)):
            path = scores_path(run_folder(folder, name, seed), TEST)
            path = os.path.join(os.path.dirname(path), "-".join(direction))
            texts, rows = [*read_lines(f"{path}.txt")], corpus[direction]
            sentence = f"{path}.txt has {len(texts)} lines; expected {len(rows)}, of {TEST}"
            require(len(texts) == len(rows), f"{sentence}; delete its folder, and run again")
            if figure == "otr":
                flags = [identify(text) != direction[1] for text in texts]
                values.append(100 * statistics.fmean(flags))
                resampled.append(resampled_share(flags))
            else:
                references = [target for _, target in rows]
                scores, of_figures = compare_texts(texts, references, direction[1])
                values.append(scores["bleu"])
                resampled.append(of_figures["bleu"])
        found.append(statistics.fmean(values))
        bootstraps.append(np.mean(resampled, 0))
    return found, np.array(bootstraps)


def holm(p_values: list[float]) -> list[float]:
    """Corrected for their number (Holm 1979)."""
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = most
    return corrected


def p_of_both(differences: np.ndarray) -> float:
    """Two-sided p value of a mean difference, over seeds and sentences at once. differences [seeds,
    RESAMPLES]: of each seed, in each bootstrap draw of sentences. The variance of the mean is that
    over seeds plus that over draws; what seeds and sentences share is in both, so p is rather too
    large. t has the degrees of freedom of Welch and Satterthwaite, where the second variance counts
    as known. (A bootstrap over three or five seeds errs in up to 22 and 14 % of cases at 0.05.)
    1 of fewer than three seeds, which say nothing."""
    n, mean = len(differences), differences.mean()
    if n < 3:
        return 1.0
    of_seeds = differences.mean(1).var(ddof=1) / n
    of_sentences = differences.mean(0).var(ddof=1)
    if of_seeds == of_sentences == 0:
        return 1.0 if mean == 0 else 0.0
    freedom = (n - 1) * ((of_seeds + of_sentences) / max(of_seeds, 1e-12)) ** 2
    return p_of_t(abs(mean) / math.sqrt(of_seeds + of_sentences), min(freedom, 1e4))


def p_of_signs(differences: list[float]) -> float:
    """Two-sided p value of the exact sign test: how likely so many seeds, or more, would agree by
    chance. Seeds without a difference do not count."""
    signs = [x > 0 for x in differences if x]
    n, most = len(signs), max(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n)


def p_of_seeds(differences: list[float]) -> float:
    """Two-sided p value of a mean difference over seeds, by Student's t for pairs; 1 of fewer than
    three, which say nothing."""
    n, spread = len(differences), statistics.pstdev(differences)
    if n < 3 or spread == 0:
        return 1.0 if n < 3 or not differences[0] else 0.0
    return p_of_t(abs(statistics.fmean(differences)) / (spread / math.sqrt(n - 1)), n - 1)


def p_of_t(t: float, freedom: float) -> float:
    """How likely Student's t of so many degrees of freedom is outside of (-t, t)."""
    # The area below the density, with t = sqrt(freedom) tan(angle).
    angles = np.linspace(0, np.pi / 2, 200001)
    density = np.cos(angles) ** (freedom - 1)
    inside = density[angles <= math.atan(t / math.sqrt(freedom))]
    return float(1 - inside.sum() / density.sum())


def write_claims(folder: str, title: str, claims: list[Claim], about: str) -> None:
    """Replace a part of RESULTS.md, of this title, with what the test split says of some claims."""
    rows, p_values, measured = [], [], {}
    corpus, _ = read_corpus([TEST], "all")
    names = {name for claim in claims for name in (claim.better, claim.than)}
    seeds = common_seeds([read_scores(folder, name, TEST) for name in names])
    require(seeds, f"{', '.join(sorted(names))}: no seed of all was evaluated on {TEST}")
    for claim in claims:
        pairs = [(name, claim.figure) for name in (claim.better, claim.than)]
        for pair in pairs:
            if pair not in measured:
                measured[pair] = on_test(folder, *pair, seeds, corpus)
        (a, of_a), (b, of_b) = (measured[pair] for pair in pairs)
        sign = -1 if claim.figure == "otr" else 1
        differences = [x - y for x, y in zip(a, b, strict=True)]
        mean = statistics.fmean(differences)
        tests = p_of_both(of_a - of_b), p_of_signs(differences), p_of_seeds(differences)
        p_values.append(tests[0])
        better = sum(sign * x > 0 for x in differences)
        cells = [f"{statistics.fmean(x):.1f}" for x in (a, b)]
        cells += [describe(differences), f"{better} of {len(differences)}"]
        cells += [f"{p:.3f}" if p >= 0.0005 else "<0.001" for p in tests]
        rows.append((f"{claim.better} over {claim.than}, {claim.figure}", cells, sign * mean > 0))
    lines = [["claim", "its own", "the other's", "difference", "seeds"]]
    lines[0] += ["p, both", "p, signs", "p, t", "Holm", "established"]
    lines.append(["---"] + ["---:"] * 9)
    for (label, cells, right_way), p in zip(rows, holm(p_values), strict=True):
        lines.append([label, *cells, f"{p:.3f}", "yes" if right_way and p < SIGNIFICANT else "no"])
    about += (
        f" These are {len(seeds)} seeds. *Seeds*: how many agree with the claim. Three p values, "
        "all two-sided: of one t test whose variance is that over seeds plus that over bootstraps "
        "of sentences, of the exact sign test over seeds (of five that agree 0.062, of three "
        "0.250), and of Student's t over seeds alone, in pairs. Holm's correction for the number "
        "of claims is of the first; a claim is established where that is below 0.05, and where it "
        "is not, neither is the contrary."
    )
    with open(RESULTS, encoding="utf-8") as file:
        before, _, _ = file.read().partition("\n## ")
    parts = read_sections() | {title: about + "\n\n" + "\n".join(align(lines))}
    write_sections(before.strip(), parts)

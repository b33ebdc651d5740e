"""An evaluation's report: averages, versions, the Markdown table."""

from collections import Counter
from importlib.metadata import version

from plumbing.corpora import Direction
from plumbing.general import GENERAL
from plumbing.systems import System
from plumbing.testset import TestSet

METRICS = ("bleu", "otr")
KINDS = ("english", "source", "other", "empty")  # of off-target outputs

Parts = dict[str, list[Direction]]  # "supervised" and "zero-shot"


def average(rows: list[dict]) -> dict:
    """Means over directions of BLEU, OTR and floor; the off-target outputs of all of them."""
    off_target = sum((Counter(row["off_target"]) for row in rows), Counter())
    means = {name: sum(row[name] for row in rows) / len(rows) for name in (*METRICS, "floor")}
    sentences = sum(row["sentences"] for row in rows)
    return means | {"off_target": dict(off_target), "sentences": sentences}


class Reports:
    """The reports of several checkpoints on one test set. settings: those of evaluate.py."""

    def __init__(self, settings: dict):
        self.reports, self.settings = {}, settings

    def report(self, system: System, findings: dict, cost: dict) -> dict:
        """A system's report, for scores.json, with what it cost, {"tokens", "seconds"}."""
        report = findings | {
            "name": system.name,
            "settings": self.settings | system.own(),
            "decoding": system.describe(),
            "versions": {name: version(name) for name in ("sacrebleu", "langid", "torch")},
        }
        self.reports[system.name] = report | cost
        return report | cost

    def say_cuts(self, system: System, results: dict[str, dict]) -> None:
        """Where a system did not get the whole of a source."""
        for name, scores in results.items():
            if scores["sources_cut"]:
                print(f"{system.name}, {name}: {scores['sources_cut']:,} over-long sources cut")
            if left_out := scores.get("shots_left_out"):
                print(f"{system.name}, {name}: {left_out:,} prompts with fewer shots, to fit")


class Answers(Reports):
    """Of answers to other instructions than translations."""

    files = "model_outputs.json"

    def add(self, system: System, results: dict[str, dict], cost: dict) -> dict:
        """Add a system with its {"general": scores}; returns its report."""
        self.say_cuts(system, results)
        return self.report(system, results, cost)

    def __str__(self):
        """A line a system: the references' perplexity, and what the answers are like."""
        header = ["", "perplexity", "its tokens", "answers", "empty", "words each"]
        rows = [header, ["---"] + ["---:"] * 5]
        for name, report in self.reports.items():
            scores = report["general"]
            ppl = "-" if scores["perplexity"] is None else f"{scores['perplexity']:.2f}"
            counts = (scores[key] for key in ("response_tokens", "sentences", "empty"))
            rows.append([name, ppl, *(f"{n:,}" for n in counts), f"{scores['words']:.1f}"])
        files, lines = " ".join(self.settings["general"]), "\n".join(align(rows))
        about = "Perplexity of a token of the references, of its own tokenizer; ends count."
        return f"{lines}\n\n{costs(self.reports)}\n\n{files}. {about}"


class Comparison(Reports):
    """Of translations, side by side. supervised: the directions that count as such, perhaps more
    than were translated."""

    files = "hypotheses, sources, references"

    def __init__(self, directions: list[Direction], supervised: list[Direction], settings: dict):
        super().__init__(settings)
        self.parts = {
            "supervised": [direction for direction in directions if direction in supervised],
            "zero-shot": [direction for direction in directions if direction not in supervised],
        }

    def add(self, system: System, results: dict[str, dict], cost: dict) -> dict:
        """Add a system with its scores by direction and what it cost, {"tokens", "seconds"};
        returns its report, for scores.json."""
        self.say_cuts(system, results)
        averages = {
            title: average([results["-".join(direction)] for direction in directions])
            for title, directions in self.parts.items()
            if directions
        }
        return self.report(system, {"directions": results, "average": averages}, cost)

    def __str__(self):
        """The table and what its figures rest on."""
        scores = [*self.reports.values()][-1]["directions"].values()
        signatures = " and ".join(sorted({row["signature"] for row in scores}))
        files, candidates = " ".join(self.settings["data"]), self.settings["candidates"]
        return (
            f"{table(self.reports, self.parts)}\n\n{costs(self.reports)}\n\n{files}. SacreBLEU "
            f"{signatures}. OTR in %, langid among {candidates}."
        )


def compare(test: TestSet, settings: dict) -> Reports:
    """The reports to be, of what evaluate.py with these settings has read."""
    if GENERAL in test.corpus:
        return Answers(settings)
    settings = settings | {"candidates": test.candidates}
    return Comparison(list(test.corpus), test.supervised, settings)


def table(reports: dict[str, dict], parts: Parts) -> str:
    """Reports as in scores.json, {name: report}, side by side in Markdown. parts: {"supervised" |
    "zero-shot": directions}, each with its average below; last, what the off-target outputs of the
    zero-shot directions are."""
    header = ["direction", "floor"]
    header += [f"{name} {metric.upper()}" for name in reports for metric in METRICS]
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for title, directions in parts.items():
        for direction in directions:
            scores = [r["directions"]["-".join(direction)] for r in reports.values()]
            rows.append(table_row("→".join(direction), scores))
        if directions:
            scores = [r["average"][title] for r in reports.values()]
            rows.append(table_row(f"**{title}, average**", scores))
    lines = align(rows)
    if parts["zero-shot"]:
        lines += ["", "Off-target outputs in the zero-shot directions, % of all:"]
        lines += [off_target_line(name, r["average"]["zero-shot"]) for name, r in reports.items()]
    return "\n".join(lines)


def costs(reports: dict[str, dict]) -> str:
    """How each system decoded and what it cost."""
    lines = [
        f"- {name}: {r['decoding']}, {r['tokens']:,} tokens, {r['seconds']:.1f} s"
        for name, r in reports.items()
    ]
    return "\n".join(["Decoding, tokens that passed the network, seconds with loading:", *lines])


def table_row(label: str, scores: list[dict]) -> list[str]:
    """The cells of one line: the references' floor, then each report's figures."""
    figures = [row[metric] for row in scores for metric in METRICS]
    return [label, *(f"{figure:.1f}" for figure in [scores[0]["floor"], *figures])]


def align(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *figures in rows:
        cells = [label.ljust(widths[0])]
        cells += [f.rjust(width) for f, width in zip(figures, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def off_target_line(name: str, scores: dict) -> str:
    counts, sentences = scores["off_target"], scores["sentences"]
    shares = (f"{kind} {100 * counts.get(kind, 0) / sentences:.1f}" for kind in KINDS)
    return f"- {name}: {', '.join(shares)}"

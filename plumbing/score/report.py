"""An evaluation's report: averages, doubt, versions, the Markdown tables."""

from collections import Counter
from importlib.metadata import version

import numpy as np

from plumbing.corpus.corpus import Corpus, Direction
from plumbing.score.bootstrap import RESAMPLES, SIGNIFICANT, half_width, p_value
from plumbing.corpus.general import GENERAL
from plumbing.score.heatmaps import draw_reports
from plumbing.score.identify import CONFIDENCE, WINDOW, Identifier
from plumbing.score.pictures import draw_picture
from plumbing.score.repaired import Outputs, describe_changes
from plumbing.base.streams import in_colour
from plumbing.score.systems import System
from plumbing.score.tables import RESAMPLED, align, costs, doubts, table
from plumbing.score.testset import TestSet

MEANS = (*RESAMPLED, "floor", "length_ratio", "mixed", "mixed_floor")
SIGNATURES = ("signature", "chrf_signature")


def average(rows: list[dict]) -> dict:
    """Means over directions of scores, resampled ones too; the off-target outputs of all."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in MEANS}
    means["off_target"] = dict(sum((Counter(row["off_target"]) for row in rows), Counter()))
    means["sentences"] = sum(row["sentences"] for row in rows)
    resampled = {name: np.mean([row["resampled"][name] for row in rows], 0) for name in RESAMPLED}
    if "identifiers" in rows[0]:
        means["identifiers"] = {
            name: {
                key: sum(row["identifiers"][name][key] for row in rows) / len(rows)
                for key in ("otr", "floor")
            }
            for name in rows[0]["identifiers"]
        }
        means["agreement"] = sum(row["agreement"] for row in rows) / len(rows)
    return means | {"resampled": resampled}


def doubted(scores: dict, first: dict | None) -> dict:
    """Scores with half of the 95 % interval of each, and with the p value of its difference from
    the first system's, if there is one."""
    resampled = scores["resampled"]
    intervals = {name: half_width(resampled[name]) for name in RESAMPLED}
    if first is None:
        return scores | {"intervals": intervals}
    more = {name: scores[name] - first[name] for name in RESAMPLED}
    p_values = {
        name: p_value(first["resampled"][name], resampled[name], more[name]) for name in RESAMPLED
    }
    # Of two figures that are equal SacreBLEU's p is the smallest there is.
    differs = {name: more[name] != 0 and p_values[name] < SIGNIFICANT for name in RESAMPLED}
    return scores | {"intervals": intervals, "p": p_values, "differs": differs}


class Reports:
    """The reports of several systems on one test set. settings: those of evaluate.py."""

    def __init__(self, settings: dict):
        self.reports, self.settings = {}, settings

    def more_files(self, system: System, corpus: Corpus, texts: dict[str, list[str]]) -> dict:
        """{name: text} of files beside a system's texts."""
        return {}

    def report(self, system: System, findings: dict, cost: dict) -> dict:
        """A system's report, for scores.json, with what it cost, {"tokens", "seconds"}."""
        report = findings | {
            "name": system.name,
            "settings": self.settings | system.own(),
            "decoding": system.describe(),
        }
        versions = {name: version(name) for name in ("sacrebleu", "torch")}
        report["versions"] = versions | findings.get("versions", {})
        self.reports[system.name] = report | cost
        return without(report | cost, "resampled", "kinds")

    def draw(self, picture: str) -> None:
        """Pictures of the figures, in a file if it is named; here there are none."""

    def say_cuts(self, system: System, results: dict[str, dict]) -> None:
        """Where a system did not get the whole of a source, or of its demonstrations."""
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

    def __init__(
        self,
        directions: list[Direction],
        supervised: list[Direction],
        settings: dict,
        identifiers: list[Identifier],
    ):
        super().__init__(settings)
        self.identifiers, self.first = identifiers, None  # the Outputs of the first system
        self.parts = {
            "supervised": [direction for direction in directions if direction in supervised],
            "zero-shot": [direction for direction in directions if direction not in supervised],
        }

    def add(self, system: System, results: dict[str, dict], cost: dict) -> dict:
        """Add a system with its scores by direction; returns its report, for scores.json. The first
        one is what the others are compared with."""
        self.say_cuts(system, results)
        averages = {
            title: average([results["-".join(direction)] for direction in directions])
            for title, directions in self.parts.items()
            if directions
        }
        first = next(iter(self.reports.values()), None)
        findings = {
            part: {
                name: doubted(scores, first and first[part][name]) for name, scores in of.items()
            }
            for part, of in (("directions", results), ("average", averages))
        }
        others = {"identifiers": [identify.describe() for identify in self.identifiers]}
        others["versions"] = {x.name: x.version for x in self.identifiers}
        return self.report(system, findings | others, cost)

    def more_files(self, system: System, corpus: Corpus, texts: dict[str, list[str]]) -> dict:
        """{"repaired.md": what changed since the first system}, of any other."""
        directions = self.reports[system.name]["directions"]
        kinds = {name: scores["kinds"] for name, scores in directions.items()}
        outputs = Outputs(system.name, texts, kinds)
        if self.first is None:
            self.first = outputs
            return {}
        return {"repaired.md": describe_changes(corpus, self.first, outputs)}

    def draw(self, picture: str) -> None:
        """Heat maps on a terminal with colours, and in a file if it is named."""
        zero_shot = self.parts["zero-shot"]
        if in_colour():
            print(f"\n{draw_reports(self.reports, zero_shot)}")
        if picture:
            draw_picture(picture, self.reports, zero_shot)
            print(f"picture: {picture}")

    def __str__(self):
        """The tables and what their figures rest on."""
        scores = [*self.reports.values()][-1]["directions"].values()
        signatures = sorted({row[name] for row in scores for name in SIGNATURES})
        first, *_ = self.reports
        about = f"{' '.join(self.settings['data'])}. SacreBLEU {' and '.join(signatures)}. "
        about += "len: tokens of the outputs over those of the references. OTR in %, by "
        about += f"{'; '.join(identify.describe() for identify in self.identifiers)}. "
        about += f"mixed: % right as a whole, with {WINDOW} words confidently ({CONFIDENCE}) of "
        about += "another of the languages, in brackets that of the references. ±: 95 % of "
        about += f"{RESAMPLES:,} bootstraps over sentences."
        if len(self.reports) > 1:
            about += f" *: differs from {first}, p < {SIGNIFICANT} by paired bootstrap."
        texts = [table(self.reports, self.parts), doubts(self.reports, self.parts)]
        return "\n\n".join([*texts, costs(self.reports), about])


def make_reports(test: TestSet, settings: dict) -> Reports:
    """An empty collection for the reports of what evaluate.py with these settings has read."""
    if GENERAL in test.corpus:
        return Answers(settings)
    return Comparison(list(test.corpus), test.supervised, settings, test.identifiers)


def without(value: object, *keys: str) -> object:
    """Nested dicts without some keys."""
    if not isinstance(value, dict):
        return value
    return {name: without(part, *keys) for name, part in value.items() if name not in keys}

"""An evaluation's report: averages, intervals, versions, and the Markdown tables."""

from collections import Counter
from importlib.metadata import version

import numpy as np

from plumbing.score.bootstrap import RESAMPLES, SIGNIFICANT, half_width, p_value
from plumbing.score.identify import CONFIDENCE, WINDOW, Identifier

RESAMPLED = ("bleu", "chrf", "otr")
MEANS = (*RESAMPLED, "floor", "length_ratio", "mixed", "mixed_floor")
MEANS += ("loops", "loops_floor")
SIGNATURES = ("signature", "chrf_signature")
COLUMNS = {"BLEU": ("bleu", 1), "len": ("length_ratio", 2), "OTR": ("otr", 1)}  # key, decimals
KINDS = ("english", "source", "other", "empty")  # of off-target outputs


class Report:
    """Scores of several systems on one test set, side by side. supervised: the directions that
    count as such, perhaps more than were translated. settings: those of evaluate.py."""

    def __init__(
        self,
        directions: list[tuple[str, str]],
        supervised: list[tuple[str, str]],
        settings: dict,
        identifiers: list[Identifier],
    ):
        self.reports, self.settings, self.identifiers = {}, settings, identifiers
        self.parts = {
            "supervised": [direction for direction in directions if direction in supervised],
            "zero-shot": [direction for direction in directions if direction not in supervised],
        }

    def add(
        self, name: str, settings: object, decoding: str, scores: dict[str, dict], cost: dict
    ) -> dict:
        """Add a system with how it decodes, its scores by direction, and what it cost, {"tokens",
        "seconds"}; returns its report, for scores.json. Each is compared with the one before."""
        for direction, found in scores.items():
            if found["sources_cut"]:
                print(f"{name}, {direction}: {found['sources_cut']:,} over-long sources cut")
            if found["unfinished"]:
                limit = f"--max-new-tokens {settings.max_new_tokens}"
                print(f"{name}, {direction}: {found['unfinished']:,} outputs ended by {limit}")
        averages = {
            title: average([scores["-".join(direction)] for direction in directions])
            for title, directions in self.parts.items()
            if directions
        }
        *_, last = None, *self.reports.values()
        report = {
            part: {name: with_doubt(row, last and last[part][name]) for name, row in rows.items()}
            for part, rows in (("directions", scores), ("average", averages))
        }
        versions = {name: version(name) for name in ("sacrebleu", "torch")}
        report |= {
            "identifiers": [identify.describe() for identify in self.identifiers],
            "versions": versions | {x.name: x.version for x in self.identifiers},
            "name": name,
            "settings": self.settings | vars(settings),
            "decoding": decoding,
            "zero_shot": ["-".join(direction) for direction in self.parts["zero-shot"]],
        }
        self.reports[name] = report | cost
        return without(report | cost, "resampled")

    def __str__(self):
        """The tables and what their figures rest on."""
        if not self.reports:
            return ""
        scores = [*self.reports.values()][-1]["directions"].values()
        signatures = sorted({row[name] for row in scores for name in SIGNATURES})
        about = f"{' '.join(self.settings['data'])}. SacreBLEU {' and '.join(signatures)}. "
        about += "len: tokens of the outputs over those of the references. "
        if self.identifiers:
            about += f"OTR in %, by {'; '.join(x.describe() for x in self.identifiers)}. "
            about += f"mixed: % right as a whole, with {WINDOW} words confidently ({CONFIDENCE}) "
            about += "of another of the languages, in brackets that of the references. "
        about += "loops: % that say something three times in a row. "
        about += f"±: 95 % of {RESAMPLES:,} bootstraps over sentences."
        if len(self.reports) > 1:
            about += (
                f" *: differs from the system before it, p < {SIGNIFICANT} by paired bootstrap."
            )
        return "\n\n".join([self.table(), self.averages(), self.costs(), about])

    def table(self) -> str:
        """Every direction, and last what the off-target outputs of the zero-shot ones are."""
        header = ["direction", "floor"]
        header += [f"{name} {column}" for name in self.reports for column in COLUMNS]
        rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
        for title, directions in self.parts.items():
            for direction in directions:
                scores = [r["directions"]["-".join(direction)] for r in self.reports.values()]
                rows.append(table_row("→".join(direction), scores))
            if directions:
                scores = [r["average"][title] for r in self.reports.values()]
                rows.append(table_row(f"**{title}, average**", scores))
        lines = align(rows)
        if self.parts["zero-shot"] and self.identifiers:
            lines += ["", "Off-target outputs in the zero-shot directions, % of all:"]
            for name, report in self.reports.items():
                lines.append(off_target_line(name, report["average"]["zero-shot"]))
        return "\n".join(lines)

    def averages(self) -> str:
        """The averages with their intervals, chrF++, mixed outputs, and each identifier's OTR."""
        first = next(iter(self.reports.values()))["average"]
        others = next(iter(first.values())).get("identifiers", {})
        header = ["average", "BLEU", "chrF++", "OTR", "len", "mixed", "loops"]
        header += [f"OTR {name}" for name in others] + ["agree"] * bool(others)
        rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
        for title in filter(self.parts.get, self.parts):
            for name, report in self.reports.items():
                s = report["average"][title]
                row = [f"{title}, {name}"]
                row += [with_interval(s, x) for x in RESAMPLED]
                row.append(figure(s["length_ratio"], 2))
                floor = "" if s["mixed"] is None else f" ({figure(s['mixed_floor'])})"
                row.append(figure(s["mixed"]) + floor)
                row.append(f"{s['loops']:.1f} ({s['loops_floor']:.1f})")
                for found in s.get("identifiers", {}).values():
                    row.append(f"{found['otr']:.1f} ({found['floor']:.1f})")
                rows.append(row + ([f"{s['agreement']:.1f}"] if others else []))
        return "\n".join(align(rows))

    def costs(self) -> str:
        """How each system decoded and what it cost."""
        lines = ["Decoding, tokens that passed the network, seconds with loading:"]
        for name, r in self.reports.items():
            cost = f", {r['tokens']:,} tokens, {r['seconds']:.1f} s" if r["tokens"] else ""
            lines.append(f"- {name}: {r['decoding']}{cost}")
        return "\n".join(lines)


def average(rows: list[dict]) -> dict:
    """Means over directions of scores, resampled ones too; the off-target outputs of all."""
    means = {name: mean([row[name] for row in rows]) for name in MEANS}
    means["off_target"] = dict(sum((Counter(row["off_target"]) for row in rows), Counter()))
    means["sentences"] = sum(row["sentences"] for row in rows)
    means["unfinished"] = sum(row["unfinished"] for row in rows)
    measured = rows[0]["resampled"].keys()
    resampled = {name: np.mean([row["resampled"][name] for row in rows], 0) for name in measured}
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


def mean(values: list[float | None]) -> float | None:
    """Of those that were measured; None where none was."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def figure(value: float | None, digits: int = 1) -> str:
    """A figure of a table; "–" where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def with_interval(scores: dict, name: str) -> str:
    """ "12.3 ± 1.0*" """
    half = scores["intervals"].get(name)
    if half is None:
        return figure(scores[name])
    return f"{scores[name]:.1f} ± {half:.1f}{mark(scores, name)}"


def with_doubt(scores: dict, other: dict | None) -> dict:
    """Scores with half of the 95 % interval of each, and with the p value of its difference from
    another system's, if there is one."""
    resampled = scores["resampled"]
    intervals = {name: half_width(resampled[name]) for name in resampled}
    if other is None:
        return scores | {"intervals": intervals}
    more = {name: scores[name] - other[name] for name in resampled}
    p_values = {
        name: p_value(other["resampled"][name], resampled[name], more[name]) for name in resampled
    }
    # Of two figures that are equal SacreBLEU's p is the smallest there is.
    differs = {name: more[name] != 0 and p_values[name] < SIGNIFICANT for name in resampled}
    return scores | {"intervals": intervals, "p": p_values, "differs": differs}


def without(value: object, *keys: str) -> object:
    """Nested dicts without some keys."""
    if not isinstance(value, dict):
        return value
    return {name: without(part, *keys) for name, part in value.items() if name not in keys}


def mark(scores: dict, name: str) -> str:
    """ "*" where a score differs from that of the system before by more than chance."""
    return "*" * bool(scores.get("differs", {}).get(name))


def table_row(label: str, scores: list[dict]) -> list[str]:
    """The cells of one line: the references' floor, then each report's figures."""
    cells = [label, figure(scores[0]["floor"])]
    for row in scores:
        cells += [figure(row[key], digits) + mark(row, key) for key, digits in COLUMNS.values()]
    return cells


def off_target_line(name: str, scores: dict) -> str:
    counts, sentences = scores["off_target"], scores["sentences"]
    shares = (f"{kind} {100 * counts.get(kind, 0) / sentences:.1f}" for kind in KINDS)
    return f"- {name}: {', '.join(shares)}"


def align(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, the others to the right."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *figures in rows:
        cells = [label.ljust(widths[0])]
        cells += [f.rjust(width) for f, width in zip(figures, widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines

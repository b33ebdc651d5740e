"""Averages over directions and the table of an evaluation."""

from collections import Counter


def average(rows):
    """Means over directions of BLEU, OTR and floor, and the off-target outputs of all of them together."""
    return {k: sum(r[k] for r in rows) / len(rows) for k in ("bleu", "otr", "floor")} | {
        "off_target": dict(sum((Counter(r["off_target"]) for r in rows), Counter())),
        "sentences": sum(r["sentences"] for r in rows),
    }


def table(reports, parts):
    """The Markdown table of {name: report as in scores.json} side by side for parts, {"supervised" | "zero-shot":
    directions}, then what the zero-shot off-target outputs are."""
    rows = [["direction", "floor"] + [f"{name} {m}" for name in reports for m in ("BLEU", "OTR")]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 1))
    for title, pairs in parts.items():
        for key, label in [("-".join(p), "→".join(p)) for p in pairs] + [
            (title, f"**{title}, average**")
        ] * bool(pairs):
            found = [(r["directions"] | r["average"])[key] for r in reports.values()]
            rows.append(
                [label, f"{found[0]['floor']:.1f}"]
                + [f"{r[m]:.1f}" for r in found for m in ("bleu", "otr")]
            )
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = (
        [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        for row in rows
    )
    lines = [f"| {' | '.join(row)} |" for row in cells]
    if parts["zero-shot"]:
        lines += ["", "Off-target outputs in the zero-shot directions, % of all:"]
        for name, a in [(name, report["average"]["zero-shot"]) for name, report in reports.items()]:
            shares = {
                k: 100 * a["off_target"].get(k, 0) / a["sentences"]
                for k in ("english", "source", "other", "empty")
            }
            lines.append(
                f"- {name}: " + ", ".join(f"{k} {share:.1f}" for k, share in shares.items())
            )
    return "\n".join(lines)

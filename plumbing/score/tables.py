"""The Markdown tables of an evaluation."""

from plumbing.corpus.corpus import Direction

COLUMNS = {"BLEU": ("bleu", 1), "len": ("length_ratio", 2), "OTR": ("otr", 1)}  # key, decimals
RESAMPLED = ("bleu", "chrf", "otr")
KINDS = ("english", "source", "other", "empty")  # of off-target outputs

Parts = dict[str, list[Direction]]  # "supervised" and "zero-shot"


def table(reports: dict[str, dict], parts: Parts) -> str:
    """Reports as in scores.json, {name: report}, side by side in Markdown. parts: {"supervised" |
    "zero-shot": directions}, each with its average below; last, what the off-target outputs of the
    zero-shot directions are."""
    header = ["direction", "floor"]
    header += [f"{name} {column}" for name in reports for column in COLUMNS]
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


def doubts(reports: dict[str, dict], parts: Parts) -> str:
    """The averages with their intervals, chrF++, mixed outputs, and each identifier's OTR."""
    first = next(iter(reports.values()))["average"]
    others = next(iter(first.values())).get("identifiers", {})
    header = ["average", "BLEU", "chrF++", "OTR", "len", "mixed"]
    header += [f"OTR {name}" for name in others] + ["agree"] * bool(others)
    rows = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for title in filter(parts.get, parts):
        for name, report in reports.items():
            s = report["average"][title]
            row = [f"{title}, {name}"]
            row += [f"{s[x]:.1f} ± {s['intervals'][x]:.1f}{mark(s, x)}" for x in RESAMPLED]
            row += [f"{s['length_ratio']:.2f}", f"{s['mixed']:.1f} ({s['mixed_floor']:.1f})"]
            of_all = s.get("identifiers", {}).values()
            row += [f"{found['otr']:.1f} ({found['floor']:.1f})" for found in of_all]
            rows.append(row + ([f"{s['agreement']:.1f}"] if others else []))
    return "\n".join(align(rows))


def costs(reports: dict[str, dict]) -> str:
    """How each system decoded and what it cost."""
    lines = [
        f"- {name}: {r['decoding']}, {r['tokens']:,} tokens, {r['seconds']:.1f} s"
        for name, r in reports.items()
    ]
    return "\n".join(["Decoding, tokens that passed the network, seconds with loading:", *lines])


def mark(scores: dict, name: str) -> str:
    """ "*" where a score differs from the first system's by more than chance."""
    return "*" * bool(scores.get("differs", {}).get(name))


def table_row(label: str, scores: list[dict]) -> list[str]:
    """The cells of one line: the references' floor, then each report's figures."""
    cells = [label, f"{scores[0]['floor']:.1f}"]
    for row in scores:
        cells += [f"{row[key]:.{digits}f}{mark(row, key)}" for key, digits in COLUMNS.values()]
    return cells


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


def quoted(text: str) -> str:
    """A text on one line as code, in which nothing is markup."""
    text = " ".join(text.split())
    ticks = "`"
    while ticks in text:
        ticks += "`"
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}" if text else "(empty)"


def off_target_line(name: str, scores: dict) -> str:
    counts, sentences = scores["off_target"], scores["sentences"]
    shares = (f"{kind} {100 * counts.get(kind, 0) / sentences:.1f}" for kind in KINDS)
    return f"- {name}: {', '.join(shares)}"

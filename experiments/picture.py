"""Draw what evaluate.py measured of several checkpoints: zero-shot off-target ratio and BLEU.

    python experiments/picture.py --ckpt demo/base runs/stage1 runs/control runs/stage2

Reads each checkpoint's eval-SPLIT/scores.json and writes an SVG file, without any package.
"""

import argparse
import json
import os
import sys

LABEL, BAR, ROW, TOP = 90, 240, 30, 46  # widths and heights in pixels
PANELS = [
    ("zero-shot off-target ratio, %", "otr", "#c0504d", 100),
    ("zero-shot BLEU", "bleu", "#4f81bd", None),
]


def read(ckpt, split):
    path = os.path.join(ckpt, f"eval-{split}", "scores.json")
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)["average"]["zero-shot"]
    except (OSError, ValueError, KeyError) as error:
        sentence = f"{path}: {error}; expected the scores of an evaluation in zero-shot directions"
        sys.exit(f"error: {sentence}; make them with evaluate.py --ckpt {ckpt}")


def draw(rows):
    """The SVG text of [(label, {"otr", "bleu", "floor"})]."""
    width, height = LABEL + 2 * (BAR + 70), TOP + ROW * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for panel, (title, name, color, most) in enumerate(PANELS):
        x = LABEL + panel * (BAR + 70)
        scale = BAR / (most or max(max(scores[name] for _, scores in rows), 1))
        parts.append(f'<text x="{x}" y="24" font-weight="bold">{title}</text>')
        for i, (label, scores) in enumerate(rows):
            y, length = TOP + i * ROW, scores[name] * scale
            if panel == 0:
                parts.append(f'<text x="{x - 10}" y="{y + 14}" text-anchor="end">{label}</text>')
            parts.append(f'<rect x="{x}" y="{y}" width="{length:.1f}" height="18" fill="{color}"/>')
            parts.append(f'<text x="{x + length + 6:.1f}" y="{y + 14}">{scores[name]:.1f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ckpt", nargs="+", required=True, help="checkpoints that were evaluated")
    parser.add_argument("--split", default="test", help="name of the test set (default: test)")
    parser.add_argument("--out", default="docs/demo.svg", help="(default: docs/demo.svg)")
    s = parser.parse_args()
    svg = draw([(os.path.basename(ckpt.rstrip("/")), read(ckpt, s.split)) for ckpt in s.ckpt])
    with open(s.out, "w", encoding="utf-8") as f:
        f.write(svg)
    print(f"wrote {s.out}")

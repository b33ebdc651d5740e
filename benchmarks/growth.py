"""How the reading of data grows with its rows: seconds and peak memory of what train.py does with
--data and --pairs before it loads a model.

    python benchmarks/growth.py  # minutes; writes its section of RESULTS.md
    python benchmarks/growth.py --quick --rows 10000000  # prints; 10 million rows take 1.5 GB

Files of made-up rows of two languages, some 60 characters a side, lie in a temporary folder; each
is read in a process of its own.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FORMATS = ("tsv", "jsonl", "json", "paired")
READ = """
import contextlib, io, json, sys, time
sys.path.insert(0, {root!r})
from benchmarks.common import resident
from data import read_samples
from plumbing.run.record import checksum


def megabytes():
    return resident("VmHWM") / 2**20


before, began = megabytes(), time.time()
with contextlib.redirect_stdout(io.StringIO()):
    samples = read_samples([{path!r}], "supervised", pairs={pairs}, seed=1)
    checksum(samples)
print(json.dumps([time.time() - began, megabytes(), megabytes() - before, len(samples)]))
"""


def main() -> None:
    parser = common.flags(__doc__, repeats=False, quick="print and write nothing")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=FORMATS)
    parser.add_argument("--folder", help="where the files lie for a while")
    s, rows = parser.parse_args(), []
    for form in s.format:
        for count in s.rows:
            with tempfile.TemporaryDirectory(dir=s.folder) as folder:
                seconds, peak, above, drawn = measure(write_data(folder, form, count), s.pairs)
            row = {"format": form, "rows": count, "drawn": drawn, "seconds": round(seconds, 1)}
            row |= {"µs a row": round(1e6 * seconds / count, 1), "peak MB": round(peak)}
            rows.append(row | {"above imports": round(above)})
    text = f"""## Reading of data: `python benchmarks/growth.py`

{common.machine()}

{common.table(rows)}

With --pairs {s.pairs:,}: files are streams, of which that many samples of each direction are drawn.
"Above imports" is the peak less what the imports took."""
    print(text)
    if s.write or not s.quick:
        common.write("growth", text)


def write_data(folder: str, form: str, rows: int) -> str:
    """The path of a file of so many rows, or of one of two."""
    rng, words = random.Random(1), [f"word{i}" for i in range(5000)]
    with open(os.path.join(folder, "train.en-it.en"), "w") as en:
        with open(os.path.join(folder, "train.en-it.it"), "w") as it:
            for n in range(rows):
                text = " ".join(rng.choices(words, k=6))
                en.write(f"open the file {n} {text}\n")
                it.write(f"apri il file {n} {text[::-1]}\n")
    if form == "paired":
        return en.name
    path = os.path.join(folder, f"train.{form}")
    with open(path, "w") as out, open(en.name) as sources, open(it.name) as targets:
        out.write({"tsv": "en\tit\n", "json": "[", "jsonl": ""}[form])
        for n, (source, target) in enumerate(zip(sources, targets, strict=True)):
            source, target = source.strip(), target.strip()
            record = json.dumps({"translation": {"en": source, "it": target}})
            comma = ", " if n else ""
            out.write(
                {"tsv": f"{source}\t{target}\n", "json": comma + record}.get(form, record + "\n")
            )
        out.write("]" if form == "json" else "")
    return path


def measure(path: str, pairs: int) -> tuple[float, float, float, int]:
    """(seconds, peak MB, of them above what the imports need, samples drawn) of reading a file."""
    code = READ.format(root=ROOT, path=path, pairs=pairs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    common.end(main)

"""What `train.py --plan` says of memory, against what the same run then takes on this CPU.

    python benchmarks/plan.py          # three minutes; writes its section of RESULTS.md
    python benchmarks/plan.py --quick  # the demo alone, writes nothing

Measured: by how much the peak of a process that takes two steps exceeds what it had when it had
imported everything and read the data; once with every tensor given back to the system when it goes,
which is what its tensors need, and once as it is, with what glibc's heap keeps in its gaps.
"""

import ctypes
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from benchmarks.common import in_child
from benchmarks.sides import Ours, make_model
from benchmarks.train import SMOLLM
from data import Prompter, TuningSet
from plumbing.base import flags as cli
from plumbing.corpus.corpus import read_corpus
from plumbing.base.errors import require
from plumbing.checkpoint.folder import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from train import Settings, pairs_of_step, prepare

ROOT = Path(__file__).resolve().parent.parent
DATA = str(ROOT / "demo/data/train.tsv")
SETTINGS = {
    "demo, stage 1, batch 128": (common.DEMO, "--stage 1 --micro-batch-tokens 16384"),
    "135M, LoRA 16": ("135M", "--lora-rank 16 --batch-size 64"),
    "135M, full": ("135M", "--full --batch-size 32"),
    "135M, full, recompute": ("135M", "--full --recompute --batch-size 32"),
}


def planned(model: str, flags: list[str]) -> float:
    """GiB that `train.py --plan` prints."""
    command = [sys.executable, str(ROOT / "train.py"), "--plan", "--model", model, *flags]
    done = subprocess.run([*command, "--data", DATA], capture_output=True, text=True)
    require(done.returncode == 0, f"train.py --plan failed: {done.stderr.strip()[-300:]}")
    return float(re.search(r"activations \S+: (\S+) on each", done.stdout)[1])


def measured(model: str, flags: list[str], gaps: bool) -> float:
    """GiB by which a process grows in two steps of the same settings. gaps: the heap may keep what
    went."""
    if not gaps:
        ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks are mapped alone
    s = cli.parse(Settings, ["--model", model, "--data", DATA, "--template", "alpaca", *flags])
    corpus, _ = read_corpus(s.data, s.directions, pairs=s.pairs, seed=s.seed)
    prompter = Prompter(Tokenizer([model], Config.load(model)), s.template)
    tuning_set = TuningSet(corpus, prompter, s.max_length, s.pairs, s.seed)
    torch.ones(300, 300, requires_grad=True).mm(torch.ones(300, 300)).sum().backward()  # libraries
    before = common.resident("VmRSS")
    network, _ = prepare(s)
    ours = Ours(network, s)
    for step in range(2):
        ours.step(pairs_of_step(tuning_set, step, s.visits(len(tuning_set.samples))[0], s))
    return (common.resident("VmHWM") - before) / 2**30


def main() -> None:
    quick = common.flags(__doc__, quick="the demo alone").parse_args().quick
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        small = f"{temporary}/135M"
        if not quick:
            in_child(make_model, small, SMOLLM)
        for name, (model, flags) in list(SETTINGS.items())[: 1 if quick else None]:
            folder = small if model == "135M" else model
            plan = planned(folder, flags.split())
            case = measured, folder, flags.split()
            found, heap = in_child(*case, False), in_child(*case, True)
            off = f"{100 * (plan / found - 1):+.0f} %"
            row = {"setting": name, "planned GiB": plan, "measured GiB": found, "off": off}
            rows.append(row | {"with the heap's gaps": heap})
    text = f"""## Memory: `python benchmarks/plan.py`

{in_child(common.machine)}

{common.table(rows)}

Planned: what `train.py --plan` prints, tensors alone. Measured: by how much a process grows in two
steps where every tensor goes back to the system at once (mallopt). Without that glibc keeps gaps in
its heap, which the last column has too: on a CPU leave that much room above a plan."""
    print(text)
    if not quick:
        common.write("plan", text)


if __name__ == "__main__":
    common.end(main)

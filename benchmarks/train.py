"""Training speed and memory on this CPU, ours against transformers + PEFT.

    python benchmarks/train.py          # some minutes; writes its section of RESULTS.md
    python benchmarks/train.py --quick  # seconds, tiny sizes, writes nothing

Each row trains the same weights on the same samples in one process, ours and theirs in turn. A
step is all of a step: twins and their tokens, collation, forward, backward, clipping, AdamW. Before
a row is timed, both must find the same loss and gradient norm.
"""

import contextlib
import functools
import importlib.util
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft

from benchmarks import common
from benchmarks.common import in_child
from benchmarks.sides import ByLength, Ours, Padded, compute_padded, make_folders, peer_of, there
from data import EncodedSample, Prompter, Sample, TuningSet, TwinPair, read_samples
from plumbing.base.flags import DTYPES
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.run.log import SpeedMeter
from train import Settings, prepare_model

ALPHA, SEED = 0.05, 1
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative, of the first step's loss and gradient norm
NARROW = dict(hidden_size=72, intermediate_size=96, num_hidden_layers=2, vocab_size=4000)
NARROW |= dict(num_attention_heads=9, num_key_value_heads=3)
TINY = {"SmolLM2": NARROW, "demo": NARROW}


@dataclass(frozen=True)
class Row:
    """One comparison. micro: sizes of the peer's micro-batches, the fastest of which counts; empty:
    the peer is transformers.Trainer. in_order: the peer's samples as they come, not sorted."""

    name: str
    goal: float | None
    batch: int
    micro: tuple = (32,)
    stage: int = 1
    dtype: str = "fp32"
    rank: int = 64
    in_order: bool = False
    model: str = "demo"
    random_ids: bool = False  # no two prompts begin alike
    pairs: int = 200  # of each direction


AS_THEY_COME = Row("stage 1, batch 128, 32 as they come", 4, 128, in_order=True)
AUTHORS = Row("stage 2, batch 32, authors' way", 3.5, 32, stage=2)
SORTED = Row("stage 1, batch 32, sorted", 2, 32, micro=(8, 16, 32))
REAL = Row("SmolLM2, stage 1, batch 16", 3, 16, micro=(16,), in_order=True, model="SmolLM2")
REAL_2 = replace(REAL, name="SmolLM2, stage 2, batch 16, authors' way", goal=7, stage=2)
ROWS = [
    AS_THEY_COME,
    SORTED,
    replace(SORTED, name="stage 1, batch 128, sorted", batch=128),
    Row("stage 1, batch 32, Trainer by length", None, 32, micro=()),
    AUTHORS,
    REAL,
    replace(REAL, name="SmolLM2, the same, sorted", goal=None, micro=(4, 8, 16), in_order=False),
    replace(REAL, name="SmolLM2, random ids, batch 8", goal=None, batch=8, random_ids=True),
    REAL_2,
    replace(AS_THEY_COME, name=f"{AS_THEY_COME.name}, bf16", goal=None, dtype="bf16"),
    replace(AUTHORS, name=f"{AUTHORS.name}, bf16", goal=None, dtype="bf16"),
]


def quick(row: Row) -> Row:
    """The same comparison in tiny."""
    return replace(row, batch=4, micro=row.micro and (4,), rank=4, pairs=2)


class Work:
    """What both sides compute: the settings, the pairs of each step, and where the weights are."""

    def __init__(self, row: Row, folders: dict[str, tuple[str, str]]):
        """folders: {model: (its folder, that of a LoRA adapter)}."""
        self.row = row
        self.base, self.adapter = folders[row.model]
        alpha = ALPHA if row.stage == 2 else 0.0
        start = {"stage": row.stage, "model": self.base, "init": self.adapter}
        self.s = Settings(**start, alpha=alpha, dtype=row.dtype, device="cpu")
        self.tuning_set = tuning_set(self.base, row.pairs, row.random_ids)

    def ours(self) -> Ours:
        return Ours(prepare_model(self.s, None)[0], self.s)

    def peer(self) -> peft.PeftModel:
        return peer_of(self.base, self.adapter, self.row.dtype)

    def encoded(self) -> list[EncodedSample]:
        return list(self.tuning_set.encoded.values())

    def samples(self, step: int) -> list[Sample]:
        return self.tuning_set.of_step(step, self.row.batch, 10**6, SEED)

    def pairs(self, samples: list[Sample], step: int) -> list[TwinPair]:
        """The samples, shortest first, and in stage 2 their twins."""
        conflict = self.s.conflict if self.s.alpha else None
        return self.tuning_set.with_twins(samples, conflict, Random(f"{SEED} twins {step}"))

    def take(self, side: Ours | Padded, step: int) -> list[TwinPair]:
        """One step of a side, whose result is side.found; returns its pairs."""
        samples = self.samples(step)
        pairs = self.pairs(samples, step)
        if self.row.in_order and isinstance(side, Padded):
            place = {sample: i for i, sample in enumerate(samples)}
            pairs.sort(key=lambda pair: place[pair.positive.sample])
        side.step(pairs)
        return pairs


@functools.cache
def tuning_set(base: str, pairs: int, random_ids: bool) -> TuningSet:
    """The demo's training pairs, so many of each direction; random_ids: as long, but no two begin
    alike. Computes nothing with torch: children find it made."""
    config = Config.load(base)
    with contextlib.redirect_stdout(None):  # which says how many pairs there are
        data = [str(common.ROOT / "demo/data/train.tsv")]
        samples = read_samples(data, "supervised", pairs=pairs, seed=SEED)
    tuning_set = TuningSet(samples, Prompter(Tokenizer([base], config), "alpaca"), 512)
    tuning_set.encode(tuning_set.samples)
    if random_ids:
        rng, top = Random(SEED), config.vocab_size - 1
        for sample, *texts in list(tuning_set.encoded.values()):
            ids = [[rng.randint(3, top) for _ in text] for text in texts]
            tuning_set.encoded[sample] = EncodedSample(sample, *ids)
    return tuning_set


def compare(row: Row, folders: dict, repeats: int) -> dict:
    """summary() of the timed steps of a row. Raises InputError where the peer does other work."""
    work, batches = Work(row, folders), []
    ours = work.ours()
    if row.micro:
        peers = [Padded(work.peer(), work.s, size) for size in row.micro]
        work.take(ours, 0)
        for peer in peers:
            work.take(peer, 0)
            common.check_same(row.name, ours.found, peer.found, TOLERANCE[row.dtype])
        peer = min(peers, key=lambda peer: common.seconds_of(work.take, peer, 1))
        sides = [lambda step: work.take(ours, step)]
        sides += [lambda step: batches.append(work.take(peer, step))]
        seconds, size = common.in_turn(sides, repeats), peer.size
    else:
        seconds, size = against_trainer(work, ours, batches), row.batch
    meter = SpeedMeter(ours.model, "cpu")
    return summary(meter, batches, size, *seconds)


def against_trainer(work: Work, ours: Ours, batches: list) -> list[list[float]]:
    """Seconds of our steps and of the Trainer's over one epoch, without the first step, which is
    the check and warms both up; the pairs of the others are added to batches."""
    seconds = []

    def step(samples: list[EncodedSample]) -> None:
        batches.append(work.pairs([encoded.sample for encoded in samples], 0))
        ours.step(batches[-1])

    def after(samples: list[EncodedSample], loss: float) -> None:
        seconds.append(common.seconds_of(step, samples))
        if len(seconds) == 1:
            common.check_same(work.row.name, ours.found, {"loss": loss}, TOLERANCE[work.row.dtype])

    theirs = ByLength(work.peer(), work.encoded(), work.row.batch, -1).run(after)
    del batches[0]
    return [seconds[1:], theirs[1:]]


def summary(meter: SpeedMeter, batches: list, size: int, ours: list, theirs: list) -> dict:
    """Medians over the steps; FLOPs are the model's, the same for both sides."""
    tokens = [sum(pair.tokens for pair in pairs) for pairs in batches]
    padded = [compute_padded(pairs, size) for pairs in batches]
    responses = [
        sum(len(x.response) for pair in pairs for x in pair if x is not None) for pairs in batches
    ]
    flops = [
        meter.flops * (meter.body * t + meter.head * r)
        for t, r in zip(tokens, responses, strict=True)
    ]

    def rate(amounts: list, seconds: list) -> float:
        return common.median(a / s for a, s in zip(amounts, seconds, strict=True))

    return {
        "size": size,
        "tokens": round(common.median(tokens)),
        "padded": round(common.median(padded)),
        "seconds": (common.median(ours), common.median(theirs)),
        "tokens_per_s": (rate(tokens, ours), rate(tokens, theirs)),
        "flops_per_s": (rate(flops, ours), rate(flops, theirs)),
    }


def peak(row: Row, folders: dict, size: int, side: str) -> int:
    """Bytes by which a process of one side alone grows in two steps, from its imports on."""
    before = common.resident("VmRSS")
    work = Work(row, folders)
    if side == "theirs" and not row.micro:
        ByLength(work.peer(), work.encoded(), row.batch, 2).run(lambda *_: None)
    else:
        one = work.ours() if side == "ours" else Padded(work.peer(), work.s, size)
        for step in range(2):
            work.take(one, step)
    return common.resident("VmHWM") - before


def line(row: Row, found: dict, peaks: dict[str, float], memory: tuple[int, int]) -> dict:
    """A row of the table, ours / theirs where two figures stand."""
    ours, theirs = found["seconds"]
    share = [100 * flops / peaks[row.dtype] for flops in found["flops_per_s"]]
    name = row.name if len(row.micro) == 1 or not row.micro else f"{row.name} in {found['size']}"
    return {
        "setting": name,
        "dtype": row.dtype,
        "ratio": f"{theirs / ours:.2f}",
        "goal": row.goal,
        "seconds a step": f"{ours:.3f} / {theirs:.3f}",
        "tokens": found["tokens"],
        "with padding": found["padded"],
        "tokens/s": "{:,.0f} / {:,.0f}".format(*found["tokens_per_s"]),
        "% of GEMM peak": f"{share[0]:.0f} / {share[1]:.0f}",
        "peak MiB": " / ".join(f"{size / 2**20:,.0f}" for size in memory),
    }


def main() -> None:
    s = common.flags(__doc__, quick="one repeat of tiny sizes").parse_args()
    rows, shapes = ([quick(row) for row in ROWS], TINY) if s.quick else (ROWS, {})
    rows = there(rows, shapes)
    if importlib.util.find_spec("accelerate") is None:
        print("accelerate is not installed: no comparison with transformers.Trainer")
        rows = [row for row in rows if row.micro]
    repeats, sizes = (1, [(64, 64, 64)]) if s.quick else (s.repeats, common.SHAPES)
    peaks = {name: in_child(common.gemm_peak, DTYPES[name], "cpu", sizes) for name in TOLERANCE}
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(temporary, shapes, {row.model: row.rank for row in rows})
        for row in rows:
            print(row.name, flush=True)
            tuning_set(folders[row.model][0], row.pairs, row.random_ids)
            found = in_child(compare, row, folders, repeats)
            memory = [in_child(peak, row, folders, found["size"], x) for x in ("ours", "theirs")]
            lines.append(line(row, found, peaks, memory))
    text = report(lines, peaks, repeats)
    print(text)
    if s.write or not s.quick:
        common.write("train", text)


def report(lines: list[dict], peaks: dict[str, float], repeats: int) -> str:
    """The section of RESULTS.md."""
    gemm = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s in {name}" for name, flops in peaks.items())
    return f"""## Training: `python benchmarks/train.py`

{in_child(common.machine)} GEMM peak: {gemm}.

{common.table(lines)}

Ours / theirs; the ratio is their seconds over ours. Seconds: medians of {repeats} steps in turn, of
an epoch against the Trainer. Tokens: a median step's, twins included. FLOPs: the model's, 4 a token
and frozen weight, the head's for response tokens alone, the same for both: what ours computes once
counts for every sequence that begins so, hence its 100 % and more. Memory: by how much a
process of one side alone grows in two steps. "In n": the fastest of their micro-batches."""


if __name__ == "__main__":
    common.end(main)

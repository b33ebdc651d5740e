"""Greedy decoding on this CPU in fp32, ours against generate() of transformers.

    python benchmarks/decode.py          # some minutes; writes its section of RESULTS.md
    python benchmarks/decode.py --quick  # seconds, tiny sizes, writes nothing

The same weights and prompts in one process, ours and theirs in turn, after both have answered with
the same tokens; batches of similar length, theirs padded on the left, with the faster of their two
caches. With LoRA as it was trained, and merged.
"""

import contextlib
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import common
from benchmarks.common import in_child
from benchmarks.sides import make_folders, peer_of, there
from benchmarks.train import TINY
from data import Prompter, Sample
from evaluate import encode_prompts, greedy
from model import load_model, merge_lora
from plumbing.base.errors import plain, require
from plumbing.checkpoint.config import Config
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.compute.decoder import Decoder
from plumbing.corpus.corpus import read_corpus

CACHES = {"dynamic": None, "static": "static"}
LIMIT = 128  # new tokens of a translation; evaluate.py's default


@dataclass(frozen=True)
class Row:
    """One comparison. fixed: so many new tokens whatever they are; 0: up to EOS."""

    name: str
    goal: float | None
    batch: int
    prompts: int
    model: str = "demo"
    fixed: int = 0
    merged: bool = True


ROWS = [
    Row("greedy, batch 1", 1.3, 1, 16),
    Row("greedy, batch 64", 2, 64, 128),
    Row("SmolLM2, greedy, batch 1", 1, 1, 2, "SmolLM2", fixed=32),
    Row("SmolLM2, greedy, batch 16", 2, 16, 16, "SmolLM2", fixed=32),
]


def quick(row: Row) -> Row:
    """The same comparison in tiny; a random model may never say EOS."""
    return replace(row, batch=min(row.batch, 3), prompts=min(row.prompts, 3), fixed=4)


def read_prompts(base: str, count: int, batch: int, room: int) -> list[list[list[int]]]:
    """Batches of prompts from the demo's test split, of all directions, sorted by length."""
    config = Config.load(base)
    with contextlib.redirect_stdout(None):
        corpus, _ = read_corpus([str(common.ROOT / "demo/data/test.tsv")], "all")
    directions = [[Sample(name, *texts) for texts in rows] for name, rows in corpus.items()]
    samples = [sample for row in zip(*directions, strict=True) for sample in row][:count]
    prompter = Prompter(Tokenizer([base], config), "alpaca")
    prompts, _ = encode_prompts(prompter, samples, config.max_position_embeddings, room)
    prompts.sort(key=len)
    return [prompts[i : i + batch] for i in range(0, len(prompts), batch)]


def generate(model, batches: list, ends: list[int], new: int, cache: str | None, device):
    """What generate() answers to every prompt: the ids before EOS."""
    model.generation_config.eos_token_id = ends or None
    model.generation_config.pad_token_id = 0
    answers = []
    for prompts in batches:
        n = max(map(len, prompts))
        ids = torch.tensor([[0] * (n - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = [[0] * (n - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.tensor(mask, device=device), do_sample=False,
                num_beams=1, max_new_tokens=new, cache_implementation=cache,
            )  # fmt: skip
        rows = out[:, n:].tolist()
        answers += [list(takewhile(lambda token: token not in ends, row)) for row in rows]
    return answers


def against_generate(
    name: str,
    model,
    peer,
    batches: list,
    ends: list[int],
    new: int,
    repeats: int,
    least: float,
    caches: tuple[str, ...] = tuple(CACHES),
) -> dict:
    """Rows that agree, generated tokens (EOS is one), seconds of both sides and the peer's faster
    cache of some. Raises InputError where less than the share `least` of the outputs is the
    same."""
    device, decoder = model.lm_head.weight.device, Decoder(model, record=True)

    def ours(_=None) -> list[list[int]]:
        return [x for prompts in batches for x in greedy(decoder, prompts, {*ends}, new)]

    def theirs(_=None, cache: str = "dynamic") -> list[list[int]]:
        return generate(peer, batches, ends, new, CACHES[cache], device)

    answers, found, warm = ours(), {}, {}
    for cache in caches:
        try:
            outputs = theirs(cache=cache)
            warm[cache] = common.seconds_of(theirs, None, cache)
        except RuntimeError as error:  # the static one is compiled on CUDA: needs a compiler
            print(f"{name}: generate() fails with its {cache} cache: {plain(str(error), 200)}")
            continue
        found["same"] = sum(a == b for a, b in zip(answers, outputs, strict=True))
        sentence = f"{found['same']} of {len(answers)} outputs are those of generate()"
        require(found["same"] >= least * len(answers), f"{name}: {sentence}; no ratio")
    require(warm, f"{name}: generate() fails with every cache")
    cache = min(warm, key=warm.get)

    def first(_) -> None:  # the prompt alone, and the token after it
        for prompts in batches:
            greedy(decoder, prompts, {*ends}, 1)

    columns = common.in_turn([ours, lambda _: theirs(cache=cache), first], repeats)
    *seconds, before = map(common.median, columns)
    tokens = sum(min(len(answer) + 1, new) for answer in answers)
    found |= {"rows": len(answers), "tokens": tokens, "cache": cache, "seconds": seconds}
    weights = [p for name, p in model.named_parameters() if "embed_tokens" not in name]
    size = sum(p.nbytes for p in {*weights, model.lm_head.weight})  # tied or not
    steps = tokens - len(answers)  # one sentence after the other, where the batch is 1
    return found | {"reads": size * steps / (seconds[0] - before)}


def compare(row: Row, folders: dict, repeats: int) -> dict:
    """against_generate() of a row."""
    base, adapter = folders[row.model]
    model = load_model(adapter, torch.float32).eval()
    peer = peer_of(base, adapter, "fp32").eval()
    if row.merged:
        merge_lora(model)
        peer = peer.merge_and_unload()
    ends = [] if row.fixed else [*model.config.eos_token_id]
    new = row.fixed or LIMIT
    batches = read_prompts(base, row.prompts, row.batch, new)
    least = 0.5 if row.fixed else 1  # a random model may have ties
    return against_generate(row.name, model, peer, batches, ends, new, repeats, least)


def line(name: str, goal: float | None, found: dict) -> dict:
    """A row of the table, ours / theirs where two figures stand."""
    ours, theirs = found["seconds"]
    rate = [found["tokens"] / seconds for seconds in (ours, theirs)]
    return {
        "decoding": name,
        "ratio": f"{theirs / ours:.2f}",
        "goal": goal,
        "generated tokens/s": f"{rate[0]:,.1f} / {rate[1]:,.1f}",
        "ms a token": f"{1000 / rate[0]:.2f} / {1000 / rate[1]:.2f}",
        "tokens": found["tokens"],
        "rows that agree": f"{found['same']} of {found['rows']}",
        "their cache": found["cache"],
    }


def both_ways(rows: list[Row]) -> list[Row]:
    """Every comparison with LoRA merged, and with LoRA beside the weights."""
    plain = [replace(row, name=f"{row.name}, LoRA unmerged", merged=False) for row in rows]
    return [row for pair in zip(rows, plain, strict=True) for row in pair]


def main() -> None:
    s = common.flags(__doc__, quick="one repeat of tiny sizes").parse_args()
    rows, shapes = (both_ways(ROWS), {})
    if s.quick:
        rows, shapes = [quick(row) for row in rows], TINY
    rows = there(rows, shapes)
    repeats, lines = 1 if s.quick else s.repeats, []
    peak = common.in_child(common.reading_peak, 2**20 if s.quick else 2**30)
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(temporary, shapes, {row.model: 4 if s.quick else 64 for row in rows})
        for row in rows:
            print(row.name, flush=True)
            found = in_child(compare, row, folders, repeats)
            share = round(100 * found["reads"] / peak) if row.batch == 1 else None
            lines.append(line(row.name, row.goal, found) | {"% of reading": share})
    text = report(lines, repeats, peak)
    print(text)
    if s.write or not s.quick:
        common.write("decode", text)


def report(lines: list[dict], repeats: int, peak: float) -> str:
    """The section of RESULTS.md."""
    return f"""## Greedy decoding: `python benchmarks/decode.py`

{in_child(common.machine)} Reading: {peak / 1e9:.0f} GB/s.

{common.table(lines)}

Ours / theirs; the ratio is their seconds over ours, medians of {repeats} repeats in turn, fp32. The
demo's base with LoRA at random decodes prompts of the test split up to EOS, which is one of the
tokens; SmolLM2-135M-Instruct, with LoRA at random too, makes 32 tokens a row. Reading: what a sum
of 1 GiB reads; the share is of the weights' bytes, once for each token after the prompt."""


if __name__ == "__main__":
    common.end(main)

"""Why it works, in one figure: p of the tokens of an answer by their position, for several runs.

    python -m experiments.positions --ckpt runs/stage1 runs/control runs/stage2

Left, supervised directions: p of the reference under the right instruction I (lines) and under
wrong ones (dashed), which is what the penalties see. Right, zero-shot directions, which no run was
tuned on: p of the reference (lines) and of its English translation (dashed) under I.
"""

import os
import random
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from data import Prompter, Sample, draw_conflict
from model import load_model
from plumbing.base.errors import require
from plumbing.base.flags import DTYPES, DeviceSettings, option, ours, run_script
from plumbing.checkpoint.tokenizer import Tokenizer
from plumbing.corpus.corpus import read_corpus
from plumbing.run.record import read_setting
from tools.explain import response_terms

POSITIONS = 8
OUT = ours("experiments/positions.png")


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option((), "runs of the demo", "data")
    rows: int = option(50, "of each direction", "data", least=1)
    out: str = option(OUT, "file to write", "data")


def cases(corpus: dict, most: int) -> list[tuple[str, list, list[str]]]:
    """[(panel, the samples whose prompts are compared, the responses that go with them)]."""
    supervised = {d: len(rows) for d, rows in corpus.items() if "en" in d}
    rng, found = random.Random(0), []
    for direction, samples in corpus.items():
        for sample in samples[:most]:
            if direction in supervised:
                wrong = draw_conflict(direction, supervised, "target", rng)
                pair = [sample, sample._replace(direction=wrong)]
                found.append(("supervised", pair, [sample.target, sample.target]))
            else:
                to_english = corpus[direction[0], "en"]
                english = next(x.target for x in to_english if x.source == sample.source)
                found.append(("zero-shot", [sample, sample], [sample.target, english]))
    return found


def measure(folder: str, corpus: dict, s: Settings) -> dict[tuple[str, int], np.ndarray]:
    """{(panel, 0: the line or 1: the dashed one): mean p [POSITIONS]} of a model."""
    model = load_model(folder, DTYPES[s.dtype], s.device).to(DTYPES[s.dtype]).eval()
    template = read_setting(folder, "template", "alpaca")
    prompter = Prompter(Tokenizer([folder, model.source], model.config), template)
    room, by_position = model.config.max_position_embeddings, {}
    for panel, samples, responses in tqdm(cases(corpus, s.rows), desc=folder):
        for n, (sample, response) in enumerate(zip(samples, responses, strict=True)):
            prompt, _ = prompter.encode(sample, room - POSITIONS)
            ids = prompter.encode_response(response)[:POSITIONS]
            nats, _ = response_terms(model, [prompt], ids)
            for t, value in enumerate((-nats[0]).exp().tolist()):
                by_position.setdefault((panel, n), [[] for _ in range(POSITIONS)])[t].append(value)
    return {key: np.array([np.mean(x) for x in values]) for key, values in by_position.items()}


def draw(found: dict[str, dict], path: str) -> None:
    """The figure of {name: what measure() returned}."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        "supervised": "supervised: reference under I, and under wrong ones (dashed)",
        "zero-shot": "zero-shot, under I: reference, and English (dashed)",
    }
    for axis, (panel, title) in zip(axes, titles.items(), strict=True):
        for n, (name, of_run) in enumerate(found.items()):
            for line, style in enumerate(("-", "--")):
                label = name if style == "-" else None
                places = range(1, POSITIONS + 1)
                axis.plot(places, of_run[panel, line], style, color=f"C{n}", label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("position in the response")
    axes[0].set_ylabel("mean p(y_t)")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(s: Settings) -> None:
    require(s.ckpt, "expected --ckpt RUN ...")
    names = [os.path.basename(os.path.normpath(path)) for path in s.ckpt]
    labels = s.ckpt if len(set(names)) < len(names) else names
    texts, _ = read_corpus([ours("demo/data/dev.tsv")])
    corpus = {d: [Sample(d, *pair) for pair in pairs] for d, pairs in texts.items()}
    found = {name: measure(path, corpus, s) for name, path in zip(labels, s.ckpt, strict=True)}
    for name, of_run in found.items():
        for (panel, line), values in sorted(of_run.items()):
            kind = "dashed" if line else "line"
            print(name, panel, kind, " ".join(f"{p:.3f}" for p in values))
    draw(found, s.out)
    print(f"wrote {s.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

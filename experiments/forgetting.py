"""What tuning costs a model elsewhere: its loss on English prose, in nats a token.

    python -m experiments.forgetting --ckpt runs/smollm2 runs/experiments/real-target-seed-1

The prose is Python's own language reference as pydoc has it: no tuning data holds any of it. It
differs a little between versions of Python, so runs are compared under one of them. The figures go
into RUN/eval-prose/scores.json.
"""

import os
import pydoc_data.topics
from dataclasses import dataclass

import torch

from loss import mle
from model import load_model
from plumbing.base.errors import require
from plumbing.base.files import write_json
from plumbing.base.flags import DTYPES, DeviceSettings, option, run_script
from plumbing.checkpoint.tokenizer import Tokenizer

CHUNK, CHUNKS = 256, 40  # tokens of a piece of prose; pieces


@dataclass
class Settings(DeviceSettings):
    ckpt: list = option((), "runs or models", "data")


def prose(tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of the first CHUNKS pieces, of CHUNK tokens each."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    ids = tokenizer.encode(text[: CHUNK * CHUNKS * 8])
    return [ids[i : i + CHUNK] for i in range(0, CHUNK * CHUNKS, CHUNK)]


@torch.inference_mode()
def loss_on_prose(ckpt: str, s: Settings) -> float:
    """Mean nats a token. Raises InputError."""
    model = load_model(ckpt, DTYPES[s.dtype], s.device).eval()
    total = 0.0
    pieces = prose(Tokenizer([ckpt, model.source], model.config))
    for ids in pieces:
        logits = model(torch.tensor(ids[:-1]), [len(ids) - 1])  # [T, V]
        y = torch.tensor(ids[1:], device=logits.device)
        loss, weight = mle(logits, y)
        total += (loss / weight).item()
    return total / len(pieces)


def main(s: Settings) -> None:
    require(s.ckpt, "expected --ckpt RUN ...")
    for ckpt in s.ckpt:
        loss = loss_on_prose(ckpt, s)
        folder = os.path.join(ckpt, "eval-prose")
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, "scores.json"), {"nats a token": loss})
        print(f"{ckpt}: {loss:.3f} nats a token of English prose")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

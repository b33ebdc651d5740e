import json
import os
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ["HF_HUB_OFFLINE"] = "1"
from data import Prompter, TuningSet  # noqa: E402
from model import LlamaForCausalLM, save_model  # noqa: E402
from plumbing.folders import Config  # noqa: E402
from plumbing.tokenizer import Tokenizer  # noqa: E402

BASE = os.path.join(ROOT, "demo", "base")
TSV = "en\tit\tnl\tro\n" + "".join(
    f"open file {i} now\tapri il file {i} adesso\topen bestand {i} nu\tdeschide fișierul {i} acum\n"
    for i in range(40)
)


def tiny(seed=0, kv_heads=2, tied=True, **changes):
    """A random two-layer LLaMA that knows the demo's vocabulary."""
    torch.manual_seed(seed)
    fields = dict(
        vocab_size=4000,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(Config(**(fields | changes)))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.08)  # far from uniform, so that a wrong token shows
    return model.eval()


def script(name, *args, cwd=ROOT, processes=1, **how):
    """A script as a user runs it; under torchrun, on a free port, where there are several processes."""
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        if processes > 1
        else []
    )
    command = [sys.executable, *torchrun, os.path.join(ROOT, name), *args]
    return subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, **how
    )


def log(run, name="log.jsonl"):
    return [json.loads(line) for line in open(run / name)]


def prompt_of(tokenizer, direction, text, room, template="alpaca"):
    """(ids or None, whether the text was cut), as for training and decoding."""
    return Prompter(tokenizer, template).encode(direction, text, room)


def tuning_set(corpus, tokenizer, max_length, pairs=0, seed=0):
    return TuningSet(corpus, Prompter(tokenizer, "alpaca"), max_length, pairs, seed)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer([BASE], tiny().config)


@pytest.fixture
def folder(tmp_path):
    """A model folder and a corpus of 40 rows, in a place of their own."""
    save_model(tiny(), tmp_path / "model", BASE)
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    return tmp_path

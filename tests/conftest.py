import json
import os
import shutil
import subprocess
import sys

import forked
import pytest
import torch
from safetensors.torch import load_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ["HF_HUB_OFFLINE"] = "1"
forked.read_langid_once()
from data import Prompter, TuningSet, read_samples  # noqa: E402
from model import LlamaForCausalLM, save_model  # noqa: E402
from plumbing.checkpoint.config import Config  # noqa: E402
from plumbing.checkpoint.tokenizer import Tokenizer  # noqa: E402

BASE = os.path.join(ROOT, "demo", "base")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TSV = "en\tit\tnl\tro\n" + "".join(
    f"open file {i} now\tapri il file {i} adesso\topen bestand {i} nu\tdeschide fișierul {i} acum\n"
    for i in range(40)
)
TEXT = {
    "en": "The file could not be opened because it is damaged.",
    "it": "Impossibile aprire il file perché è danneggiato.",
    "nl": "Het bestand kan niet worden geopend omdat het beschadigd is.",
    "fr": "Impossible d'ouvrir le fichier, car il est endommagé.",
    "ro": "Fișierul nu poate fi deschis deoarece este deteriorat.",
}


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


def ids_of(lengths, seed=0):
    """Random tokens of sequences of these lengths, end to end."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(3, 4000, (sum(lengths),), generator=g)


def randomise_lora(model):
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)


def script(name, *args, cwd=ROOT, processes=1, module=False, input="", **how):
    """A script (or a module) as a user runs it, in a fork that has imported torch already; as
    torchrun starts it where there are several processes. With how, subprocess.run's, it is a
    process from its first line on."""
    what = ["-m", name] if module else [os.path.join(ROOT, name)]
    if how:
        assert processes == 1, "torchrun() starts several from nothing"
        return python(*what, *args, cwd=cwd, input=input, **how)
    arguments = [*map(str, [what[-1], *args])]
    results = forked.scripts(arguments, module, [str(cwd)] * processes, input)
    code = max((result.returncode for result in results), key=abs)
    said = ["".join(getattr(x, stream) for x in results) for stream in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, code, *said)


def torchrun(name, *args, cwd=ROOT, processes):
    """A script under torchrun, on a free port."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return python(*launcher, os.path.join(ROOT, name), *args, cwd=cwd)


def python(*arguments, **how):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **how)


def nodes(name, *args, places):
    """A script on as many nodes as there are places, their working directories, with one process
    each. The results by node."""
    arguments = [*map(str, [os.path.join(ROOT, name), *args])]
    return forked.scripts(arguments, False, [*map(str, places)], nodes=True)


def one_sentence(result, *words):
    """Asserts that a script ended with exit code 2 and one sentence that holds these words."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]


def log(run, name="log.jsonl"):
    return [json.loads(line) for line in open(run / name)]


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer([BASE], tiny().config)


@pytest.fixture
def tuning_set(tmp_path, tokenizer):
    """20 pairs of each direction with English."""
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    samples = read_samples([tmp_path / "train.tsv"], "supervised", pairs=20, seed=1)
    return TuningSet(samples, Prompter(tokenizer, "alpaca"), 512)


@pytest.fixture
def folder(tmp_path):
    """A model folder and a corpus of 40 rows, in a place of their own."""
    save_model(tiny(), tmp_path / "model", BASE)
    (tmp_path / "train.tsv").write_text(TSV, encoding="utf-8")
    return tmp_path


# A run, and the same run stopped

BARE = ["--data", "train.tsv", "--model", "model", "--pairs", 20, "--batch-size", 8, "--steps", 8]
BARE += ["--device", "cpu", "--save-every", 2]
RUN = [*BARE, "--lora-rank", 4, "--lora-dropout", 0.1]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, `whole`, with its last two checkpoints, step-000004 and step-000006."""
    folder = tmp_path_factory.mktemp("resume")
    save_model(tiny(), folder / "model", BASE)
    (folder / "train.tsv").write_text(TSV, encoding="utf-8")
    (folder / "dev.tsv").write_text("\n".join(TSV.split("\n")[:3]) + "\n", encoding="utf-8")
    result = script("train.py", *RUN, "--out", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run, stopped after its seventh step, with checkpoints after the fourth and sixth."""
    for name in ("model", "train.tsv", "dev.tsv", "whole"):
        os.symlink(finished / name, tmp_path / name)
    shutil.copytree(finished / "whole", tmp_path / "run.partial")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "run.partial" / name).unlink()
    lines = (finished / "whole" / "log.jsonl").read_text().split("\n")
    (tmp_path / "run.partial" / "log.jsonl").write_text("\n".join(lines[:7]) + "\n" + lines[7][:20])
    return tmp_path


def same(folder, a="whole", b="run"):
    x, y = (load_file(folder / run / "adapter_model.safetensors") for run in (a, b))
    equal = x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    return (
        equal and (folder / a / "log.jsonl").read_bytes() == (folder / b / "log.jsonl").read_bytes()
    )

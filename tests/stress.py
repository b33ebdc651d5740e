"""Kill train.py at random moments, many times, and compare what it ends with to a run in peace.

    python tests/stress.py [--kills 10]    # SIGKILLs in each of the four settings; four minutes

Every second kill waits until a checkpoint is being written. After each kill, every folder that
bears a checkpoint's name must load whole; after the last, weights, moments and log must be those of
the uninterrupted run, bit for bit.
"""

import argparse
import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import torch
from conftest import BASE, ROOT, TSV, tiny
from safetensors.torch import load_file

from model import load_model, save_model
from plumbing.files import read_json

COMMON = [
    "--data",
    "train.tsv",
    "--model",
    "model",
    "--device",
    "cpu",
    "--pairs",
    20,
    "--batch-size",
    8,
    "--save-every",
    3,
    "--lr",
    0.002,
    "--lora-rank",
    4,
    "--resume",
]
SETTINGS = {
    "stage 1, LoRA with dropout": ["--lora-dropout", 0.1],
    "stage 1, full": ["--full"],
    "stage 2, LoRA": ["--stage", 2, "--init", "first", "--alpha", 0.3],
    "stage 2, full, fp16": [
        "--stage",
        2,
        "--init",
        "model",
        "--full",
        "--alpha",
        0.3,
        "--dtype",
        "fp16",
    ],
}


def start(folder, out, args):
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "train.py"), *map(str, COMMON + args), "--out", out],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torture(folder, name, args, kills, rng, steps=300):
    """Run once in peace and once with `kills` kills; returns (kills, of them while a checkpoint was
    being written)."""
    args = [*args, "--steps", steps]
    peace, process = os.path.join(folder, f"{name}, peace"), start(folder, f"{name}, peace", args)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    partial, done, amid = os.path.join(folder, f"{name}.partial"), 0, 0
    while True:
        process, began = start(folder, name, args), time.time()
        newest = max(glob.glob(os.path.join(glob.escape(partial), "step-??????")), default=None)
        while process.poll() is None and done < kills:
            at_work = time.time() - began > 1 and os.path.exists(os.path.join(partial, "log.jsonl"))
            saving = glob.glob(os.path.join(glob.escape(partial), "step-*.partial")) and at_work
            if (
                saving
                if done % 2
                else at_work and os.path.getmtime(os.path.join(partial, "log.jsonl")) > began
            ):
                time.sleep(rng.random() * (0.004 if done % 2 else 0.2))
                process.send_signal(signal.SIGKILL)
                break
        said, _ = process.communicate()
        if newest:
            assert (
                f"resuming from {os.path.relpath(newest, folder)}" in said
                or process.returncode < 0
                and not said
            ), said
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        done += 1
        amid += bool(glob.glob(os.path.join(glob.escape(partial), "step-*.*")))
        # whoever has the name is whole
        for step in glob.glob(os.path.join(glob.escape(partial), "step-??????")):
            load_model(step)
            assert read_json(os.path.join(step, "state.json"))["step"] == int(step[-6:])
            load_file(os.path.join(step, "optimizer.safetensors"))
    assert done == kills and not os.path.exists(partial)
    for file in (
        "adapter_model.safetensors",
        "model.safetensors",
        f"step-{steps - 3:06}/optimizer.safetensors",
    ):
        if os.path.exists(os.path.join(peace, file)):
            a, b = (load_file(os.path.join(folder, run, file)) for run in (f"{name}, peace", name))
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file
    logs = [
        open(os.path.join(folder, run, "log.jsonl"), "rb").read()
        for run in (f"{name}, peace", name)
    ]
    assert logs[0] == logs[1] and logs[0].count(b"\n") == steps
    return done, amid


def make(folder):
    save_model(tiny(), os.path.join(folder, "model"), BASE)
    with open(os.path.join(folder, "train.tsv"), "w", encoding="utf-8") as f:
        f.write(TSV)
    said, _ = (process := start(folder, "first", ["--steps", 3])).communicate()
    assert process.returncode == 0, said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--kills", type=int, default=10, help="kills in each of the four settings (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0)
    s, folder = parser.parse_args(), tempfile.mkdtemp()
    make(folder)
    rng = random.Random(s.seed)
    for name, args in SETTINGS.items():
        done, amid = torture(folder, name, args, s.kills, rng)
        print(
            f"{name}: {done} kills, {amid} of them while a checkpoint was being written or "
            "removed; weights, moments and log equal",
            flush=True,
        )
    shutil.rmtree(folder)

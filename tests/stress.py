"""What ends train.py at the worst moment, and what --resume makes of it.

    python tests/stress.py [--kills 10] [--every 1]    # about ten minutes

In each of four settings: SIGKILLs at random moments, every second one while a checkpoint is being
written; a crash before (or in the middle of) every single rename, removal and write of a file; a
disk that is full from each of these writes on; and a second run on the same folder. After each, any
folder that bears a name must be whole and what the user put beside it be there; after the last,
weights, moments and log must be those of the uninterrupted run, bit for bit.
"""

import argparse
import errno
import glob
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import torch
from conftest import BASE, ROOT, TSV, tiny
from safetensors import SafetensorError
from safetensors.torch import load_file

import train
from model import load_model, save_model
from plumbing.base import flags
from plumbing.base.files import read_json
from plumbing.base.folders import LOCK, MARKS
from plumbing.checkpoint import tensors as weights
from plumbing.run.log import Logs

COMMON = ["--data", "train.tsv", "--model", "model", "--device", "cpu", "--pairs", 20]
COMMON += ["--batch-size", 8, "--lr", 0.002]
RANK_4 = ["--lora-rank", 4]
TWO = ["--stage", 2, "--alpha", 0.3]
SETTINGS = {
    "stage 1, LoRA with dropout": [*RANK_4, "--lora-dropout", 0.1],
    "stage 1, full": ["--full"],
    "stage 2, LoRA": [*TWO, *RANK_4, "--init", "first"],
    "stage 2, full, fp16": [*TWO, "--init", "model", "--full", "--dtype", "fp16"],
}
SHORT = ["--steps", 6, "--save-every", 1]


def start(folder, out, args):
    """train.py as a process of its own."""
    return subprocess.Popen(
        [sys.executable, f"{ROOT}/train.py", *map(str, COMMON + args), "--resume", "--out", out],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as in a fork: sums are split by threads
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make(folder):
    """A model, a corpus and a first run."""
    torch.set_num_threads(1)  # threads do not survive a fork
    save_model(tiny(), os.path.join(folder, "model"), BASE)
    with open(os.path.join(folder, "train.tsv"), "w", encoding="utf-8") as f:
        f.write(TSV)
    code, said = forked(folder, "first", [*RANK_4, "--steps", 3])
    assert code == 0, said


def check_names(folder, out):
    """Whoever has a name is whole."""
    pattern = os.path.join(glob.escape(os.path.join(folder, out)) + "*", "step-" + "[0-9]" * 6)
    for step in glob.glob(pattern):
        load_model(step)
        assert read_json(os.path.join(step, "state.json"))["step"] == int(step[-6:])
        load_file(os.path.join(step, "optimizer.safetensors"))
    if os.path.exists(os.path.join(folder, out)):
        load_model(os.path.join(folder, out))


def check_same(folder, a, b, last):
    """Two runs ended with the same weights, moments and log."""
    files = ("adapter_model.safetensors", "model.safetensors", f"{last}/optimizer.safetensors")
    for file in files:
        if os.path.exists(os.path.join(folder, a, file)):
            x, y = (load_file(os.path.join(folder, run, file)) for run in (a, b))
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), file
    x, y = (pathlib.Path(folder, run, "log.jsonl").read_bytes() for run in (a, b))
    assert x == y and x.count(b"\n") > 1


# Kills at random moments


def modified(path):
    """When a file was written last; 0 where there is none."""
    try:
        return os.path.getmtime(path)
    except FileNotFoundError:
        return 0


def torture(folder, name, args, kills, rng, steps=300):
    """Run once in peace and once with `kills` kills; returns (kills, of them while a checkpoint was
    being written)."""
    args = [*args, "--steps", steps, "--save-every", 3]
    peace, process = f"{name}, peace", start(folder, f"{name}, peace", args)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    partial, done, amid = os.path.join(folder, f"{name}.partial"), 0, 0
    unfinished = os.path.join(glob.escape(partial), "step-*.train-py-*")
    while True:
        process, began = start(folder, name, args), time.time()
        newest = max(glob.glob(os.path.join(glob.escape(partial), "step-??????")), default=None)
        while process.poll() is None and done < kills:
            log = os.path.join(partial, "log.jsonl")
            at_work = modified(log) > began
            if at_work and (done % 2 == 0 or glob.glob(unfinished)):
                time.sleep(rng.random() * (0.004 if done % 2 else 0.2))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        said, _ = process.communicate()
        if newest and not (process.returncode < 0 and not said):
            assert f"resuming from {os.path.relpath(newest, folder)}" in said, said
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        done += 1
        amid += bool(glob.glob(unfinished))
        check_names(folder, name)
    assert done == kills and not os.path.exists(partial)
    check_same(folder, peace, name, f"step-{steps - 3:06}")
    return done, amid


# Faults at chosen moments, in forked processes


class Fault:
    """Ends a process, or fills its disk, at the event of a number: a rename, a removal, a folder
    made, a file opened to be written, or the middle of its writing. counted: the events so far."""

    def __init__(self, out, kind, number):
        self.out, self.kind, self.number, self.counted = out, kind, number, 0

    def event(self, path, writes, half=None):
        """One event. writes: it needs room on the disk. half: leaves half of a file."""
        if not str(path).startswith(self.out) or (self.kind == "full" and not writes):
            return
        self.counted += 1
        if self.kind == "crash" and self.counted == self.number:
            half and half()
            os._exit(137)
        if self.kind == "full" and 0 < self.number <= self.counted:
            half and half()
            raise OSError(errno.ENOSPC, "No space left on device")

    def hook(self, event, args):
        """Of sys.addaudithook."""
        if event == "open":
            path, mode, flags = args
            if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR):
                self.event(path, LOCK not in path)
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            self.event(args[0], event == "os.mkdir")

    def install(self):
        write_bytes, write_row, save = pathlib.Path.write_bytes, Logs.write, weights.save_file

        def torn_bytes(path, data):
            self.event(path, True, lambda: write_bytes(path, data[: len(data) // 2]))
            return write_bytes(path, data)

        def torn_row(logs, *rows):
            self.event(self.out, True, lambda: logs.files[0].write(b'{"step": 3, "lo'))
            write_row(logs, *rows)

        def torn_tensors(tensors, path, metadata):
            half = pathlib.Path(path)
            try:
                self.event(path, True, lambda: half.open("wb").write(b"\x40" + bytes(99)))
            except OSError as error:
                raise SafetensorError(f"I/O error: {error}") from None
            save(tensors, path, metadata)

        if self.kind:
            sys.addaudithook(self.hook)
            pathlib.Path.write_bytes, Logs.write = torn_bytes, torn_row
            weights.save_file = torn_tensors


def forked(folder, out, args, kind=None, number=0, resume=True):
    """train.py in a fork of this process, which has imported all already: (its exit code, or that
    and the number of its events where the kind is "count"; what it said)."""
    said = os.path.join(folder, "said")
    process = os.fork()
    if process == 0:
        code = 99
        try:
            os.chdir(folder)
            os.sync = lambda: None  # a crash is of the process here, not of the machine
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1), os.dup2(output, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            sys.argv = ["train.py", *map(str, COMMON + args), "--out", out]
            sys.argv += ["--resume"] * resume
            fault = Fault(out, kind, number)
            fault.install()
            flags.run_script(train.main, train.Settings, "")
        except SystemExit as end:
            code = end.code or 0
            if kind and number == 0:
                sys.stdout.write(f"\nevents {fault.counted}")
        except BaseException as error:
            sys.stderr.write(f"Traceback {error!r}")
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), pathlib.Path(said).read_text()


def faults(folder, name, args, kind, every=1, first=1):
    """Run once in peace, and once with a fault at each event, going on after it; returns their
    number. Half of the runs replace a finished one."""
    args = [*args, *SHORT]
    code, said = forked(folder, f"{name}, short", args)
    assert code == 0, said
    code, said = forked(folder, f"{name}, {kind}", args, kind)
    assert code == 0, said
    events = int(said.split("events ")[1]) + 12  # some more where a finished run is replaced
    for number in range(first, events + 1, every):
        out = f"{name} {kind} {number}"
        path = os.path.join(folder, out)
        mine = [f"{path}.old/notes", f"{path}.partial/step-000002.backup/notes"]
        for note in mine:
            os.makedirs(os.path.dirname(note))
            pathlib.Path(note).write_text("mine")
        replaces = number % 2 == 1
        if replaces:
            shutil.copytree(os.path.join(folder, "first"), path)
        code, said = forked(folder, out, args, kind, number, not replaces)
        where = f"{name}, {kind} at event {number}: {said}"
        if code == 0:  # fewer events than that
            assert number > events - 14, where
        elif kind == "crash":
            assert code == 137, where
        else:
            sentences = [line for line in said.split("\n") if line.startswith("error: ")]
            assert code == 2 and len(sentences) == 1 and "Traceback" not in said, where
        check_names(folder, out)
        begun = os.path.exists(f"{path}.partial/settings.json")
        resume = begun or not read_json(f"{path}/settings.json")["steps"] == 3 if replaces else True
        code, said = forked(folder, out, args, resume=resume)
        assert code == 0, f"{where}, then {said}"
        check_same(folder, f"{name}, short", out, "step-000005")
        mine[1] = mine[1].replace(".partial", "")
        assert all(pathlib.Path(note).read_text() == "mine" for note in mine), where
        left = [p for p in glob.glob(f"{glob.escape(path)}*/**", recursive=True) if is_left(p)]
        assert not left and not os.path.exists(f"{path}.partial"), (where, left)
        shutil.rmtree(path), shutil.rmtree(f"{path}.old")
    return len(range(first, events + 1, every))


def is_left(path):
    """Whether it is of a moment alone."""
    name = os.path.basename(path.rstrip("/"))
    return name == LOCK or any(mark in path for mark in MARKS)


# Two runs at once


def second(folder, name, args, steps=60):
    """A second run on the folder of a first one is refused; the first one ends as in peace. Returns
    how often it was tried."""
    args, out = [*args, "--steps", steps, "--save-every", 3], f"{name}, held"
    process, tries = start(folder, out, args), 3
    log = os.path.join(folder, f"{out}.partial", "log.jsonl")
    while not os.path.exists(log) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # it holds its folder, and cannot end meanwhile
    try:
        for n in range(tries):
            code, said = forked(folder, out, [*args, "--save-every", 1 + n])
            assert code == 2 and f"is being written by process {process.pid} on " in said, said
    finally:
        process.send_signal(signal.SIGCONT)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    code, _ = forked(folder, f"{out}, peace", args)
    check_same(folder, f"{out}, peace", out, f"step-{steps - 3:06}")
    return tries


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="in each setting (default: 10)")
    parser.add_argument("--every", type=int, default=1, help="of so many events one (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    s, folder = parser.parse_args(), tempfile.mkdtemp()
    make(folder)
    rng = random.Random(s.seed)
    for name, args in SETTINGS.items():
        done, amid = torture(folder, name, args, s.kills, rng)
        print(
            f"{name}: {done} kills, {amid} of them while a checkpoint was being written or removed;"
            f" {faults(folder, name, args, 'crash', s.every)} crashes,"
            f" {faults(folder, name, args, 'full', s.every)} full disks,"
            f" {second(folder, name, args)} second runs; weights, moments and log equal",
            flush=True,
        )
    shutil.rmtree(folder)

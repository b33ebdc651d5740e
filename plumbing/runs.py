"""A run's folder: its checkpoints, how a stopped run is gone on with, and what made it.

While a run is on its way OUT is called OUT.partial; its checkpoints, step-000100 and so on, lie in
there. Each is written aside, synced and then renamed, holds safetensors and JSON alone, and is
itself a folder that can be loaded. The first process alone writes.
"""

import glob
import json
import os
import platform
import shutil
import subprocess
import zlib
from collections.abc import Callable

import torch
from safetensors import SafetensorError

from plumbing.corpora import Sample
from plumbing.distributed import RANK, WORLD
from plumbing.errors import InputError, require
from plumbing.files import ROOT, publish_folder, read_json, remove_folder, write_json
from plumbing.meters import LOGS, Logs
from plumbing.progress import Checkpoint, Progress
from plumbing.weights import write_tensors

# What may be another when a run is gone on with.
MAY_CHANGE = {"out", "resume", "save_every", "keep", "device", "recompute", "micro_batch_tokens"}
MAY_CHANGE |= {"lr", "dtype", "versions"}


class Run:
    """The folder of one run, from its beginning to its name; `keep` checkpoints stay in it."""

    def __init__(self, out: str, keep: int):
        self.out, self.partial, self.keep = out, out + ".partial", keep

    def checkpoints(self) -> list[str]:
        """The folders of the whole checkpoints, oldest first."""
        pattern = os.path.join(glob.escape(self.partial), "step-" + "[0-9]" * 6)
        return sorted(glob.glob(pattern))

    def refuse_to_overwrite(self, resume: bool) -> None:
        """Raise InputError where OUT is somebody else's, or a stopped run that is not resumed. A
        finished run is replaced, when the new one is finished."""
        settings = os.path.join(self.out, "settings.json")
        ours = not os.path.exists(self.out) or os.path.exists(settings)
        require(ours, f"{self.out} exists and is no run of train.py; choose another --out")
        require(
            resume or not self.checkpoints(),
            f"{self.partial}: a stopped run; --resume goes on with it, deleting the folder starts "
            "anew",
        )

    def step_folder(self, step: int) -> str:
        """The checkpoint after so many steps."""
        return os.path.join(self.partial, f"step-{step:06}")

    def is_finished(self) -> bool:
        """Whether OUT has its name, and no newer run is on its way."""
        return os.path.exists(self.out) and not os.path.exists(self.partial)

    def find_checkpoint(self, record: dict) -> Checkpoint | None:
        """The newest whole checkpoint of a stopped run; None: begin at the first step. Incomplete
        ones are deleted. Raises InputError where the newest is damaged, or where the run was begun
        with another record (settings and data), but for what may change on the way."""
        for path in glob.glob(os.path.join(glob.escape(self.partial), "step-*.*")):
            print(f"{path}: an incomplete checkpoint, ignored")
            shutil.rmtree(path, ignore_errors=True)
        checkpoints = self.checkpoints()
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        state = read_json(os.path.join(newest, "state.json"))
        begun = read_json(os.path.join(newest, "settings.json"))
        require(
            state.pop("crc32", None) == state_checksum(state),
            f"{newest}/state.json: damaged (wrong checksum); delete that checkpoint to go on from "
            "the one before it",
        )
        changed = [
            f"{name} is {value}, was {begun.get(name)}"
            for name, value in record.items()
            if name not in MAY_CHANGE and begun.get(name) != value
        ]
        sentence = f"when {self.partial} was begun; choose another --out"
        require(not changed, f"--resume: {'; '.join(changed)} {sentence}")
        print(f"resuming from {newest}")
        return Checkpoint(newest, state)

    def begin(
        self,
        record: dict,
        checkpoint: Checkpoint | None,
        write_model: Callable[[str], None],
        optimizer,
    ) -> None:
        """Make the folder, settings.json in it, and the logs as a checkpoint left them.
        write_model(folder) and the optimizer's state make the checkpoints to come."""
        self.record, self.write_model, self.optimizer = record, write_model, optimizer
        if RANK == 0:
            os.makedirs(self.partial, exist_ok=True)
            write_json(os.path.join(self.partial, "settings.json"), record)
        self.logs = Logs(self.partial, checkpoint.folder if checkpoint else None)

    def save(self, progress: Progress) -> str:
        """Write a checkpoint; returns its folder. Older ones than the newest `keep` are deleted,
        except for the best. Where the disk is full the others stay and InputError is raised."""
        name = self.step_folder(progress.step)
        folder = name + ".partial"
        try:
            self.write_model(folder)
            write_tensors(folder, "optimizer", self.optimizer.moments)
            if RANK == 0:
                for file in ("settings.json", *LOGS):
                    shutil.copy(os.path.join(self.partial, file), folder)
                state = progress.to_state() | {"scaler": self.optimizer.scaler.state_dict()}
                checked = state | {"crc32": state_checksum(state)}
                write_json(os.path.join(folder, "state.json"), checked)
                publish_folder(folder, name)
                for old in self.checkpoints()[: -self.keep]:
                    if old != self.step_folder(progress.best.step):
                        remove_folder(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{name} was not written ({error}); older ones are untouched: make room, then "
                "--resume"
            ) from None
        return name

    def finish(self, best: int, best_by: str) -> None:
        """Give the run its name, with the model as it is, or, unless it is 0, as it was after the
        step `best`, the best by a figure of --dev."""
        if best == 0:
            self.write_model(self.partial)
        elif RANK == 0:
            leave = shutil.ignore_patterns("optimizer*", "state.json", *LOGS)
            folder = self.step_folder(best)
            shutil.copytree(folder, self.partial, dirs_exist_ok=True, ignore=leave)
        chosen = f", which is step {best}, the best by {best_by} of --dev" if best else ""
        self.publish(self.record, chosen)

    def clear(self) -> None:
        """Delete what is on its way."""
        if RANK == 0:
            remove_folder(self.partial)

    def publish(self, record: dict, note: str = "") -> None:
        """Give the folder its name, now that a model lies in it, and say so."""
        if RANK == 0:
            write_json(os.path.join(self.partial, "settings.json"), record)
            publish_folder(self.partial, self.out)
        print(f"saved {self.out}{note}")


def explosion(
    step: int, figures: dict, saved: str | None, lr: float, samples: list[Sample]
) -> InputError:
    """The sentence for a loss or gradient that is not finite: where, and how to go on."""
    texts = " | ".join(f"{'-'.join(x.direction)} {x.source:.40}" for x in samples)
    return InputError(
        f"step {step}: loss {figures['loss']}, gradient norm {figures['grad_norm']}; "
        f"{saved or 'no checkpoint'} holds the state before it; lower --lr {lr:g} or leave fp16, "
        f"then --resume; samples: {texts:.300}"
    )


def state_checksum(state: dict) -> int:
    return zlib.crc32(repr(state).encode())


def read_setting(folder: str, name: str, default: object) -> object:
    """What settings.json of a run says of `name`; the default where it says nothing of its type. A
    folder "" is no run."""
    path = os.path.join(folder, "settings.json")
    if not folder or not os.path.exists(path):
        return default
    value = read_json(path).get(name)
    return value if isinstance(value, type(default)) else default


def tuned_directions(folders: list[str]) -> list[tuple[str, str]]:
    """What the first of these models that says so was tuned on; none of them: an empty list.
    Raises InputError where one is no folder."""
    for folder in folders:
        expected = "expected a run of train.py or a model in Hugging Face format"
        require(os.path.isdir(folder), f"{folder}: no such folder; {expected}")
    tuned = (read_setting(folder, "supervised", []) for folder in folders)
    return [tuple(str(name).split("-")) for name in next(filter(None, tuned), [])]


def provenance(settings: dict, corpus: dict) -> dict:
    """What a run is made of: settings, directions, checksums of their data, versions."""
    return json.loads(json.dumps(settings)) | {
        "supervised": ["-".join(direction) for direction in corpus],
        "data_crc32": {"-".join(d): zlib.crc32(repr(x).encode()) for d, x in corpus.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "processes": WORLD,
            "git": git_commit(),
        },
    }


def git_commit() -> str:
    """The commit of this code, with -dirty where files were changed."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"

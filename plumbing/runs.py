"""A run's folder: its checkpoints, how a stopped run is gone on with, and what made it.

While a run is on its way OUT is called OUT.partial; its checkpoints, step-000100 and so on, lie in
there. Each is written aside, synced and then renamed, holds safetensors and JSON alone, and is
itself a folder that can be loaded. The first process alone writes.
"""

import glob
import os
import platform
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import torch
from safetensors import SafetensorError

from plumbing.distributed import RANK, WORLD
from plumbing.errors import InputError, require
from plumbing.files import publish_folder, read_json, remove_folder, write_json
from plumbing.meters import LOGS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Best(NamedTuple):
    """The best checkpoint so far by a figure of --dev; in tuples, so that the least is the best."""

    otr: float = 1e30  # in %; 0 where the loss alone decides
    mle: float = 1e30
    step: int = 0  # 0: none yet


@dataclass
class Progress:
    """How far a run is: with the seed, all that its random choices depend on."""

    step: int = 0
    updates: int = 0  # steps that changed the weights: fp16 may skip some
    seen: int = 0  # tokens
    best: Best = Best()
    scaler: dict = field(default_factory=dict)  # the state of fp16's loss scale

    @classmethod
    def from_state(cls, state: dict) -> "Progress":
        """As state.json tells it."""
        known = {f.name: state[f.name] for f in fields(cls)}
        return cls(**known | {"best": Best(*state["best"])})

    def advance(self, tokens: int, updated: bool) -> None:
        """One more step is done."""
        self.step += 1
        self.seen += tokens
        self.updates += int(updated)

    def to_state(self) -> dict:
        return asdict(self) | {"best": list(self.best)}


class Checkpoint(NamedTuple):
    """A checkpoint on the disk: its folder and what its state.json says."""

    folder: str
    state: dict


class Run:
    """The folder of one run, from its beginning to its name."""

    def __init__(self, out: str):
        self.out, self.partial = out, out + ".partial"

    def checkpoints(self) -> list[str]:
        """The folders of the whole checkpoints, oldest first."""
        pattern = os.path.join(glob.escape(self.partial), "step-" + "[0-9]" * 6)
        return sorted(glob.glob(pattern))

    def refuse_to_overwrite(self, resume: bool) -> None:
        """Raise InputError where OUT is somebody else's, or a stopped run that is not resumed."""
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

    def find_checkpoint(self, record: dict, may_change: set[str]) -> Checkpoint | None:
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
            if name not in may_change and begun.get(name) != value
        ]
        sentence = f"when {self.partial} was begun; choose another --out"
        require(not changed, f"--resume: {'; '.join(changed)} {sentence}")
        print(f"resuming from {newest}")
        return Checkpoint(newest, state)

    def clear(self) -> None:
        """Delete what is on its way."""
        if RANK == 0:
            remove_folder(self.partial)

    def begin(self, record: dict) -> None:
        """Make the folder, with settings.json."""
        if RANK == 0:
            os.makedirs(self.partial, exist_ok=True)
            write_json(os.path.join(self.partial, "settings.json"), record)

    @contextmanager
    def new_checkpoint(self, state: dict, keep: int, best: int = 0) -> Iterator[str]:
        """A checkpoint is written into the folder that this gives; afterwards that has its name.
        `state` is what state.json will say, with its "step". Older checkpoints than the newest
        `keep` are deleted, except for that of the step `best`. Where the disk is full the others
        stay and InputError is raised."""
        name = self.step_folder(state["step"])
        folder = name + ".partial"
        try:
            yield folder
            if RANK == 0:
                for file in ("settings.json", *LOGS):
                    shutil.copy(os.path.join(self.partial, file), folder)
                checked = state | {"crc32": state_checksum(state)}
                write_json(os.path.join(folder, "state.json"), checked)
                publish_folder(folder, name)
                for old in self.checkpoints()[:-keep]:
                    if step_of(old) != best:
                        remove_folder(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{name} was not written ({error}); older ones are untouched: make room, then "
                "--resume"
            ) from None

    def finish(self, record: dict, best: int = 0) -> None:
        """Give the run its name, now that its model lies in the folder; with `best`, the model of
        the checkpoint after that step."""
        if RANK == 0:
            if best:
                leave = shutil.ignore_patterns("optimizer*", "state.json", *LOGS)
                folder = self.step_folder(best)
                shutil.copytree(folder, self.partial, dirs_exist_ok=True, ignore=leave)
            write_json(os.path.join(self.partial, "settings.json"), record)
            publish_folder(self.partial, self.out)


def step_of(checkpoint: str) -> int:
    return int(checkpoint[-6:])


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


def provenance(corpus: dict) -> dict:
    """What a run was made of beside its settings: directions, checksums of their data, versions."""
    return {
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

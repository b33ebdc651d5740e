"""A run's folder: its checkpoints, how a stopped run is gone on with, and what made it.

While a run is on its way OUT is called OUT.partial; its checkpoints, step-000100 and so on, lie in
there. Each is written aside, synced and then renamed, holds safetensors and JSON alone, and is
itself a folder that can be loaded. The first process alone writes.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from safetensors import SafetensorError

from plumbing.checkpoint.card import write_card
from plumbing.base.processes import RANK, require_agreement
from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW, read_json, write_json
from plumbing.run.lock import in_turn, locked
from plumbing.run.log import LOGS, Logs, logged_steps
from plumbing.run.progress import Best, Checkpoint, Progress
from plumbing.run.record import SETTINGS, checksum, refuse_changes
from plumbing.run.removal import (
    LOCK,
    NOT_FINITE,
    free_name,
    made,
    others,
    publish_folder,
    remove_folder,
    remove_made,
    restore_folder,
)
from plumbing.checkpoint.tensors import write_tensors

SMALL = {LOCK, SETTINGS, SETTINGS + NEW}  # all that a run may have before its settings.json
STEP = re.compile(r"step-\d{6,}")


class Run:
    """The folder of one run, from its beginning to its name; `keep` checkpoints stay in it."""

    def __init__(self, out: str, keep: int):
        name = os.path.basename(out)
        require(not name.endswith(".partial"), f"--out {out}: .partial is for runs on their way")
        linked = os.path.islink(out) or name in (".", "..")
        self.out = os.path.realpath(out) if linked else out
        self.partial, self.keep = self.out + ".partial", keep
        self.pruned = False  # a run that was killed may have left one checkpoint too many

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it no other run has this folder. Raises InputError."""
        with locked(self.partial):
            if RANK == 0:
                restore_folder(self.out)
                with suppress(OSError):
                    os.unlink(os.path.join(self.out, LOCK))  # of a run that was killed at its end
            yield

    def step_folder(self, step: int) -> str:
        """The checkpoint after so many steps."""
        return os.path.join(self.partial, f"step-{step:06}")

    def checkpoints(self) -> list[str]:
        """The folders of the whole checkpoints, oldest first."""
        names = os.listdir(self.partial) if os.path.isdir(self.partial) else []
        steps = sorted(int(name[5:]) for name in names if STEP.fullmatch(name))
        return [self.step_folder(step) for step in steps]

    def refuse_to_overwrite(self, resume: bool) -> None:
        """Raise InputError where OUT is somebody else's, or a stopped run that is not resumed. A
        finished run is replaced, when the new one is finished."""
        if os.path.exists(self.out):
            ours = os.path.exists(os.path.join(self.out, SETTINGS))
            require(ours, f"{self.out} exists and is no run of train.py; choose another --out")
        names = made(self.partial) if RANK == 0 else set()  # which would be replaced
        strange = sorted(name for name in names - SMALL if not name.startswith("step-"))
        begun = SETTINGS in names
        sentence = f"{self.partial} holds {', '.join(strange)}, and is no run of train.py"
        require(begun or not strange, f"{sentence}: move it, or choose another --out")
        if not resume:
            self.refuse_to_delete()
        sentence = f"{self.partial}: a stopped run; --resume goes on with it, deleting the folder"
        require(resume or not self.checkpoints(), f"{sentence} starts anew")

    def refuse_to_delete(self) -> None:
        """Raise InputError where OUT, which is to be replaced, holds what is not ours."""
        found = others(self.out) if os.path.isdir(self.out) else []
        advice = "which is no part of that run: move it, or choose another --out"
        require(not found, f"{self.out} holds {found and found[0]}, {advice}")

    def refuse_to_destroy(self, folders: list[str | None]) -> None:
        """Raise InputError where OUT is, or holds, one of the folders that the run is made from."""
        for folder in filter(None, folders):
            source = os.path.realpath(folder)
            for own in map(os.path.realpath, (self.out, self.partial)):
                inside = source == own or source.startswith(own + os.sep)
                sentence = f"--out {self.out} would replace {folder}, which the run is made from"
                require(not inside, f"{sentence}; choose another --out")

    def is_finished(self, record: dict) -> bool:
        """Whether OUT has its name, and no newer run is on its way. Raises InputError where that
        run has another record, and where another node has another folder of that name."""
        begun = os.path.exists(os.path.join(self.partial, SETTINGS))
        names = [os.path.basename(path) for path in self.checkpoints()]
        require_agreement(f"--resume: {self.out}", [os.path.exists(self.out), begun, *names])
        if not os.path.exists(self.out) or begun or names:
            return False
        refuse_changes(self.out, read_json(os.path.join(self.out, SETTINGS)), record)
        return True

    def find_checkpoint(self, record: dict) -> Checkpoint | None:
        """The newest whole checkpoint of a stopped run; None: begin at the first step. Raises
        InputError where the newest is damaged, or where the run was begun with another record
        (settings and data), but for what may change on the way."""
        self.refuse_to_delete()
        checkpoints = self.checkpoints()
        if not checkpoints:
            begun = os.path.join(self.partial, SETTINGS)
            if os.path.exists(begun):
                refuse_changes(self.partial, read_json(begun), record)
            return None
        newest = checkpoints[-1]
        advice = "delete that checkpoint to go on from the one before it"
        expected = f"a file of a checkpoint; {advice}"
        state = read_json(os.path.join(newest, "state.json"), expected)
        begun = read_json(os.path.join(newest, SETTINGS), expected)
        refuse_changes(self.partial, begun, record)
        intact = state.pop("crc32", None) == checksum(state) and "step" in state
        require(intact, f"{newest}/state.json: damaged (wrong checksum); {advice}")
        whole = logged_steps(newest) == state["step"]
        require(whole, f"{newest}/{LOGS[0]}: missing or damaged; {advice}")
        best = self.step_folder(state["best"][-1])
        if state["best"][-1] and not os.path.isdir(best):
            print(f"{best}, the best so far, is gone: the best of the others will be chosen")
            state["best"] = list(Best())
        print(f"resuming from {newest}")
        return Checkpoint(newest, state)

    def begin(self, record: dict, checkpoint: Checkpoint | None = None) -> None:
        """Clear the folder but for its checkpoints, and write settings.json."""
        if RANK == 0:
            self.clear(rf"{STEP.pattern}({re.escape(NOT_FINITE)}\d*)?" if checkpoint else "")
            write_json(os.path.join(self.partial, SETTINGS), record)

    def open(self, checkpoint: Checkpoint | None, write_model: Callable, optimizer) -> None:
        """Open the logs as a checkpoint left them. write_model(folder) and the optimizer's state
        make the checkpoints to come."""
        self.write_model, self.optimizer = write_model, optimizer
        self.logs = Logs(self.partial, checkpoint.folder if checkpoint else None)

    def clear(self, keep: str = "") -> None:
        """Delete what this program made in OUT.partial, but for its lock and names like `keep`."""
        for name in sorted(os.listdir(self.partial)):
            if name.startswith("step-") and name.endswith(NEW):
                print(f"{os.path.join(self.partial, name)}: an incomplete checkpoint, deleted")
        own = f"{re.escape(LOCK)}|{re.escape(SETTINGS)}"  # whose folder it is stays known
        remove_made(self.partial, re.compile(f"{own}|{keep}"))

    def save(self, progress: Progress) -> bool:
        """Write a checkpoint. Where the disk is full the others stay and InputError is raised.
        Weights that are not finite are no checkpoint, and False: what comes next will say so."""
        if not self.optimizer.is_finite():
            return False
        self.pruned = False
        name = self.step_folder(progress.step)
        folder = name + NEW
        try:
            self.write_model(folder)
            write_tensors(folder, "optimizer", self.optimizer.moments)
            if RANK == 0:
                for file in (SETTINGS, *LOGS):
                    shutil.copy(os.path.join(self.partial, file), folder)
                state = progress.to_state() | {"scaler": self.optimizer.scaler.state_dict()}
                state |= {"crc32": checksum(state)}
                write_json(os.path.join(folder, "state.json"), state)
                publish_folder(folder, name)
        except (OSError, SafetensorError) as error:
            if RANK == 0 and os.path.isdir(folder):
                remove_made(folder)
            raise InputError(
                f"{name} was not written ({error}); older ones are untouched: make room, then "
                "--resume"
            ) from None
        return True

    def prune(self, progress: Progress) -> None:
        """Delete older checkpoints than the newest `keep`, except for the best. To be called when
        the loss after the newest was finite: before that it is not known to be good."""
        if RANK == 0 and not self.pruned:
            for old in self.checkpoints()[: -self.keep]:
                if old != self.step_folder(progress.best.step):
                    remove_folder(old)
        self.pruned = True

    def explosion(self, progress: Progress, figures: dict, blamed: list, lr: float) -> InputError:
        """The sentence for a loss or gradient that is not finite after the last step of progress,
        with the samples to blame. A checkpoint of that step is set aside: its weights are what is
        not well."""
        newest = self.step_folder(progress.step)
        if RANK == 0 and os.path.isdir(newest):
            os.rename(newest, free_name(newest + NOT_FINITE))
        older = [path for path in self.checkpoints() if path != newest]
        begin = "no checkpoint was made before it: lower --lr {}, or leave fp16, and begin anew"
        resume = "{} is the last one with a finite loss after it: lower --lr {}, or leave fp16, "
        advice = begin.format(f"{lr:g}")
        if older:
            advice = resume.format(older[-1], f"{lr:g}") + "then --resume goes on from there"
        found = f"loss {figures['loss']}, gradient norm {figures['grad_norm']}"
        samples = " | ".join(f"{'-'.join(x.direction)} {x.source:.40}" for x in blamed)
        return InputError(f"step {progress.step + 1}: {found}; {advice}; samples: {samples:.300}")

    def finish(self, progress: Progress, best_by: str) -> None:
        """Give the run its name, with the model as it is, or as it was at the best step by a figure
        of --dev. Raises InputError where the last update left weights that are not finite."""
        best = progress.best.step
        if best == 0:
            sentence = f"step {progress.step} left weights that are not finite; lower --lr"
            advice = "--resume goes on from the last checkpoint, if there is one"
            require(self.optimizer.is_finite(), f"{sentence}, or leave fp16: {advice}")
            self.write_model(self.partial)
        elif RANK == 0:
            leave = shutil.ignore_patterns("optimizer*", "state.json", "eval-*", SETTINGS, *LOGS)
            folder = self.step_folder(best)
            shutil.copytree(folder, self.partial, dirs_exist_ok=True, ignore=leave)
        self.prune(progress)
        chosen = f", which is step {best}, the best by {best_by} of --dev" if best else ""
        self.publish(chosen)

    def publish(self, note: str = "") -> None:
        """Give the folder its name, now that a model lies in it, and say so."""
        if RANK == 0:
            for name in os.listdir(self.partial):
                if NOT_FINITE in name:
                    remove_folder(os.path.join(self.partial, name))
            with in_turn(self.partial):  # an evaluation may be writing there
                write_card(self.partial, os.path.basename(self.out))
                publish_folder(self.partial, self.out)
            os.unlink(os.path.join(self.out, LOCK))
        print(f"saved {self.out}{note}")

"""A run's folder: its checkpoints, how a stopped run is gone on with, and how it gets its name.

While a run is on its way OUT is called OUT.partial; its checkpoints, step-000100 and so on, lie in
there. Each is written aside, synced and then renamed, holds safetensors and JSON alone, and is
itself a folder that can be loaded. The first process alone writes.
"""

import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from safetensors import SafetensorError

from plumbing.base.errors import InputError, require
from plumbing.base.files import NEW, read_json, write_json
from plumbing.base.folders import (
    LOCK,
    MARKS,
    NOT_FINITE,
    SETTINGS,
    clear_folder,
    is_ours,
    publish_folder,
    remove_folder,
    restore_folder,
    strange_files,
)
from plumbing.base.lock import in_turn, locked
from plumbing.base.processes import RANK, WORLD, progress_bar, require_agreement
from plumbing.checkpoint.card import write_card
from plumbing.checkpoint.tensors import locate_tensors, read_tensors, write_tensors
from plumbing.compute.optimizer import Optimizer
from plumbing.run.log import LOGS, Logs, SpeedMeter, logged_steps
from plumbing.run.record import refuse_changes

STEP = re.compile(r"step-\d{6,}")
KEEP = 2  # checkpoints that stay, besides the best
NONE_YET = [1e30, 1e30, 0]  # the best so far by --dev: OTR (0 where it does not count), loss, step


class Run:
    """The folder of one run, from its beginning to its name, and how far the run is: `step` steps
    are done, `updates` of which changed the weights (fp16 may skip some), `seen` tokens."""

    def __init__(self, out: str, save_every: int, best_by: str = ""):
        """save_every: steps between checkpoints, 0 for none. best_by: "otr" or "mle" of --dev, by
        which the checkpoint is chosen that the run ends with."""
        name = os.path.basename(out)
        require(not name.endswith(".partial"), f"--out {out}: .partial is for runs on their way")
        longest = len(os.fsencode(f"{name}{max(MARKS, key=len)}"))
        sentence = f"--out {out}: its name has no room for the marks of a folder on its way"
        require(longest <= 255, f"{sentence}; choose a shorter one")
        self.out, self.partial = out, f"{out}.partial"
        self.save_every, self.best_by = save_every, best_by
        self.step, self.updates, self.seen, self.best = 0, 0, 0, NONE_YET
        self.checkpoint, self.state = None, {}  # what a resumed run goes on from
        self.stop_asked = False

    # Before the first step

    @contextmanager
    def held(self, made_from: list[str | None], resume: bool) -> Iterator[None]:
        """Within it no other run has this folder. Raises InputError, also where it would replace
        what is not ours, a stopped run, or one of the folders that the run is made from."""
        with locked(self.partial):
            if RANK == 0:
                restore_folder(self.out)
                with suppress(OSError):
                    os.unlink(os.path.join(self.out, LOCK))  # of a run that was killed at its end
            self.refuse_to_overwrite(resume)
            self.refuse_to_destroy(made_from)
            try:
                yield
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(str(error) or self.what_resume_does()) from None

    def refuse_to_overwrite(self, resume: bool) -> None:
        """Raise InputError where OUT is somebody else's, or a stopped run that is not resumed. A
        finished run is replaced, when the new one is finished."""
        if os.path.isdir(self.out):
            ours = os.path.exists(os.path.join(self.out, SETTINGS))
            require(ours, f"{self.out} exists and is no run of train.py; choose another --out")
        if not resume:
            self.refuse_to_delete()
        require(not os.path.isfile(self.out), f"{self.out} is a file; choose another --out")
        begun = os.path.exists(os.path.join(self.partial, SETTINGS))
        entries = os.scandir(self.partial) if RANK == 0 else []
        found = sorted(entry.name for entry in entries if is_ours(entry))  # and may be deleted
        of_moment = (LOCK, SETTINGS, SETTINGS + NEW)
        names = [x for x in found if x not in of_moment and not x.startswith("step-")]
        sentence = f"{self.partial} holds {', '.join(names)}, and is no run of train.py"
        require(begun or not names, f"{sentence}: move it, or choose another --out")
        sentence = f"{self.partial}: a stopped run; --resume goes on with it, deleting the folder"
        require(resume or not self.checkpoints(), f"{sentence} starts anew")

    def refuse_to_delete(self) -> None:
        """Raise InputError where OUT, which is to be replaced, holds what is not ours."""
        found = strange_files(self.out) if os.path.isdir(self.out) else []
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

    def find(self, record: dict) -> bool:
        """Find the newest whole checkpoint of a stopped run, if there is one. False: OUT has its
        name, nothing is left to do. Raises InputError where the run was begun with another record
        (settings and data), but for what may change on the way, or where the newest is damaged."""
        begun = os.path.join(self.partial, SETTINGS)
        found = self.checkpoints()
        names = [os.path.basename(path) for path in found]
        there = [os.path.exists(self.out), os.path.exists(begun), *names]
        require_agreement(f"--resume: {self.out}", there)
        if os.path.exists(self.out) and not os.path.exists(begun) and not found:
            refuse_changes(self.out, read_json(os.path.join(self.out, SETTINGS)), record)
            return False
        self.refuse_to_delete()
        if not found:
            if os.path.exists(begun):
                refuse_changes(self.partial, read_json(begun), record)
            return True
        self.checkpoint, advice = (
            found[-1],
            "delete that checkpoint to go on from the one before it",
        )
        expected = f"a file of a checkpoint; {advice}"
        self.state = read_json(os.path.join(self.checkpoint, "state.json"), expected)
        begun = read_json(os.path.join(self.checkpoint, SETTINGS), expected)
        refuse_changes(self.partial, begun, record)
        whole = self.state.keys() >= {"step", "updates", "seen", "best", "lora", "scaler"}
        require(whole, f"{self.checkpoint}/state.json: damaged; {advice}")
        whole = logged_steps(self.checkpoint) == self.state["step"]
        require(whole, f"{self.checkpoint}/{LOGS[0]}: missing or damaged; {advice}")
        self.step, self.updates, self.seen = (self.state[x] for x in ("step", "updates", "seen"))
        self.best = self.state["best"] if self.best_by else NONE_YET
        if self.best[-1] and not os.path.isdir(self.step_folder(self.best[-1])):
            print(
                f"{self.step_folder(self.best[-1])}, the best so far, is gone: the best of the "
                "others will be chosen"
            )
            self.best = NONE_YET
        print(f"resuming from {self.checkpoint}")
        return True

    def begin(
        self,
        record: dict,
        model: torch.nn.Module,
        optimizer: Optimizer,
        save_model: Callable,
        steps: int,
    ) -> None:
        """Take the optimizer's state from the checkpoint, if there is one; clear the folder but for
        its checkpoints; open the logs. save_model(folder) writes the model. steps: of the whole
        run. Raises InputError."""
        self.model, self.optimizer, self.save_model = model, optimizer, save_model
        self.last = steps
        if self.checkpoint:
            lora = model.lora and vars(model.lora)
            damaged = f"{self.checkpoint}/adapter_config.json: damaged; delete {self.checkpoint}"
            require(self.state["lora"] == lora, damaged)
            places = locate_tensors(self.checkpoint, "optimizer", optimizer.moments)
            moments = dict(read_tensors(places, optimizer.moments, None, optimizer.device))
            optimizer.set_state(self.updates, moments, self.state["scaler"])
        if RANK == 0:
            for name in sorted(os.listdir(self.partial)):
                if name.startswith("step-") and name.endswith(NEW):
                    print(f"{os.path.join(self.partial, name)}: an incomplete checkpoint, deleted")
            steps = rf"|{STEP.pattern}({re.escape(NOT_FINITE)})?" if self.checkpoint else ""
            clear_folder(self.partial, rf"{re.escape(LOCK)}|{re.escape(SETTINGS)}{steps}")
            write_json(os.path.join(self.partial, SETTINGS), record)
        self.logs = Logs(self.partial, self.checkpoint)
        self.meter = SpeedMeter(model, optimizer.device)

    # Step by step

    def steps(self, name: str) -> Iterator[int]:
        """The numbers of the steps that are left, with a progress bar. After Ctrl-C the step that
        is on its way is finished, and a checkpoint saved; KeyboardInterrupt says what goes on."""
        bar = progress_bar(total=self.last, initial=self.step, desc=name, unit="step")
        with bar, self.interruptible():
            for step in range(self.step, self.last):
                self.meter.start()
                yield step
                bar.set_postfix_str(self.brief)
                bar.update()
                if self.stop_asked and self.step < self.last:
                    saved = self.step_folder(self.step)
                    if not os.path.isdir(saved) and not self.save():
                        raise KeyboardInterrupt(self.what_resume_does())
                    raise KeyboardInterrupt(
                        f"interrupted after step {self.step:,} of {self.last:,}: {saved} is saved, "
                        "and the same command with --resume goes on from there"
                    )

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it Ctrl-C asks for a stop after the step; a second one ends the script at once, as
        does the first where there are several processes, which would not agree on the step."""

        def ask(*_):
            self.stop_asked = True
            signal.signal(signal.SIGINT, usual)
            print("\nstopping after this step; Ctrl-C again stops at once", flush=True)

        usual = signal.getsignal(signal.SIGINT)
        if WORLD == 1 and usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    def what_resume_does(self) -> str:
        """For a run that was interrupted at any other moment."""
        found = self.checkpoints()
        place = f"goes on from {found[-1]}" if found else "begins at the first step"
        return f"interrupted: the same command with --resume {place}"

    def log(self, result, shares: list[list], rate: float) -> None:
        """One more step is done, whose loss was finite: train.py's StepResult, and the
        micro-batches of every process."""
        self.prune()
        batches = [batch for share in shares for batch in share if batch.pairs]  # none idle
        tokens, responses = sum(len(b.ids) for b in batches), sum(len(b.y) for b in batches)
        self.step, self.seen = self.step + 1, self.seen + tokens
        self.updates += int(result.updated)
        row = {"step": self.step} | result.figures | {"lr": rate}
        row |= {"response_tokens": sum(b.positives for b in batches), "tokens": self.seen}
        positives = [pair.positive for batch in batches for pair in batch.pairs]
        others = [x for x in positives if x.sample.direction is None]
        if others:
            row |= {"general": len(others)}
            row |= {"general_tokens": sum(len(x.response) for x in others)}
        speed = self.meter.stop(self.step, tokens, responses, result.computed)
        self.logs.write(row, speed)
        losses = [f"{x} {row[x]:.3f}" for x in ("mle", "ul") if row.get(x) is not None]
        self.brief = ", ".join([*losses, f"{speed['tokens_per_s']:,.0f} tokens/s"])

    def save_is_due(self, dev: bool) -> bool:
        """Whether a checkpoint belongs here. finish() writes the last step's weights, so there one
        is written for --dev alone."""
        at_end = self.step == self.last
        due = self.save_every > 0 and (at_end or self.step % self.save_every == 0)
        due = due and self.step > 0
        return due and (dev or not at_end)

    def save(self) -> bool:
        """Write a checkpoint. Where the disk is full the others stay and InputError is raised.
        Weights that are not finite are no checkpoint, and False: what comes next will say so."""
        if not self.optimizer.is_finite():
            return False
        name = self.step_folder(self.step)
        folder = name + NEW
        try:
            self.save_model(folder)
            write_tensors(folder, "optimizer", self.optimizer.moments)
            if RANK == 0:
                for file in (SETTINGS, *LOGS):
                    shutil.copy(os.path.join(self.partial, file), folder)
                write_json(os.path.join(folder, "state.json"), self.to_state())
                publish_folder(folder, name)
        except (OSError, SafetensorError) as error:
            if RANK == 0 and os.path.isdir(folder):
                shutil.rmtree(folder)
            raise InputError(
                f"{name} was not written ({error}); older ones are untouched: make room, then "
                "--resume"
            ) from None
        return True

    def to_state(self) -> dict:
        """For state.json."""
        state = {name: getattr(self, name) for name in ("step", "updates", "seen", "best")}
        lora = self.model.lora and vars(self.model.lora)
        return state | {"lora": lora, "scaler": self.optimizer.scaler.state_dict()}

    def compare(self, figures: dict[str, float]) -> None:
        """Log a checkpoint's figures of --dev, and note it where they are the best so far."""
        self.logs.extend(figures)
        if self.best_by and math.isfinite(figures["dev_mle"]):
            otr = figures["dev_otr"] if self.best_by == "otr" else 0
            self.best = min(self.best, [otr, figures["dev_mle"], self.step])

    def prune(self) -> None:
        """Delete older checkpoints than the newest KEEP, except for the best. It is called when the
        loss after the newest was finite: before that it is not known to be good."""
        if RANK == 0:
            for old in self.checkpoints()[:-KEEP]:
                if old != self.step_folder(self.best[-1]):
                    remove_folder(old)

    def explosion(self, figures: dict, blamed: list, lr: float) -> InputError:
        """The sentence for a loss or gradient that is not finite after the last step, with the
        samples of the micro-batches to blame. A checkpoint of that step is set aside: its weights
        are not well."""
        newest = self.step_folder(self.step)
        if RANK == 0 and os.path.isdir(newest):
            if os.path.isdir(newest + NOT_FINITE):
                remove_folder(newest + NOT_FINITE)
            os.rename(newest, newest + NOT_FINITE)
        older = [path for path in self.checkpoints() if path != newest]
        advice = (
            f"no checkpoint was made before it: lower --lr {lr:g}, or leave fp16, and begin anew"
        )
        if older:
            advice = f"{older[-1]} is the last one with a finite loss after it: lower --lr {lr:g}, "
            advice += "or leave fp16, then --resume goes on from there"
        found = f"loss {figures['loss']}, gradient norm {figures['grad_norm']}"
        samples = [pair.positive.sample for batch in blamed for pair in batch.pairs]
        some = " | ".join(f"{x.name} {x.source:.40}" for x in samples)
        return InputError(f"step {self.step + 1}: {found}; {advice}; samples: {some:.300}")

    # The end

    def finish(self) -> None:
        """Give the run its name, with the model as it is, or as it was at the best step by a figure
        of --dev. Raises InputError where the last update left weights that are not finite."""
        best = self.best[-1]
        if not best:
            sentence = f"step {self.step} left weights that are not finite; lower --lr"
            advice = "--resume goes on from the last checkpoint, if there is one"
            require(self.optimizer.is_finite(), f"{sentence}, or leave fp16: {advice}")
            self.save_model(self.partial)
        elif RANK == 0:
            leave = shutil.ignore_patterns("optimizer*", "state.json", "eval-*", SETTINGS, *LOGS)
            folder = self.step_folder(best)
            shutil.copytree(folder, self.partial, dirs_exist_ok=True, ignore=leave)
        self.prune()
        self.logs.close()
        chosen = f", which is step {best}, the best by {self.best_by} of --dev" if best else ""
        publish(self.partial, self.out, chosen)

    def step_folder(self, step: int) -> str:
        """The checkpoint after so many steps."""
        return os.path.join(self.partial, f"step-{step:06}")

    def checkpoints(self) -> list[str]:
        """The folders of the whole checkpoints, oldest first."""
        names = os.listdir(self.partial) if os.path.isdir(self.partial) else []
        steps = sorted(int(name[5:]) for name in names if STEP.fullmatch(name))
        return [self.step_folder(step) for step in steps]


def publish(partial: str, out: str, note: str = "") -> None:
    """Give a folder its name, now that a model lies in it, and say so."""
    if RANK == 0:
        for name in os.listdir(partial):
            if NOT_FINITE in name:
                remove_folder(os.path.join(partial, name))
        with in_turn(partial):  # an evaluation may be writing there
            write_card(partial, os.path.basename(out))
            publish_folder(partial, out)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(out, LOCK))
    print(f"saved {out}{note}")

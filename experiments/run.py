"""Train and evaluate the grid of experiments/grid.py on the demo, then write RESULTS.md.

    python -m experiments.run                      # whatever is missing; hours on two cores
    python -m experiments.run --only main --seeds 2
    python -m experiments.run --only ''            # the tables and figures alone
    python -m experiments.run --only rows          # the rows of the paper's tables, test split
    python -m experiments.run --only claims        # CLAIMS, once stated, on the test split

Runs lie in runs/experiments; what is finished is not done again, what was stopped goes on. Each is
a command that trains and one that evaluates for each test set, which begun.json there keeps: where
the grid says another one, a run is refused and an evaluation made again.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from experiments import abilities
from experiments.grid import (
    ABILITIES,
    ABILITIES_DEV,
    ABOUT_CLAIMS,
    ABOUT_REAL_CLAIMS,
    BASES,
    CLAIMS,
    DEV,
    FOLDER,
    GROUPS,
    PROSE,
    REAL_CLAIMS,
    RUNS,
    SHORTCUT,
    SYSTEMS,
    SYSTEMS_SEEDS,
    TEST,
    Claim,
    Run,
)
from experiments.results import (
    read_sections,
    run_folder,
    scores_path,
    system_folder,
    write_claims,
    write_results,
)
from plumbing.base.errors import InputError, require
from plumbing.base.files import read_json, write_json
from plumbing.base.flags import ROOT, DeviceSettings, option, run_script
from plumbing.base.lock import locked

BEGUN = os.path.join(FOLDER, "begun.json")
EXPECTED = "an object of this program's; delete it, and the runs of which it is"
SHOTS = "demo/data/shots.tsv"  # rows of dev
KNOWN = [*GROUPS, "rows", "claims", "real-claims"]  # rows: of the paper's tables
USUAL = [name for name in KNOWN if "real" not in name and name != "claims"]
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# glibc gives large blocks back to the system after each use, and training asks for them again.
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


@dataclass
class Settings(DeviceSettings):
    only: str = option(" ".join(USUAL), f"of {' '.join(KNOWN)}, in one text", "run")
    seeds: int = option(100, "at most so many of each group", "run", least=1)
    jobs: int = option(2, "runs at a time, which share the cores", "run", least=1, most=100)

    def groups(self) -> list[str]:
        """What is asked for. Raises InputError."""
        names = [name for name in self.only.split(" ") if name]
        for name in names:
            require(name in KNOWN, f"--only {name}: expected some of {' '.join(KNOWN)}")
        return names


class Step(NamedTuple):
    """A command, once what it needs is made."""

    command: list[str]
    files: list[str]  # which it makes; where they are, it is done
    needs: list[str]  # names of steps
    log: str
    again: bool = False  # what other commands made is replaced, not refused


folder_of = functools.partial(run_folder, FOLDER)


class Plan:
    """The steps of what is asked for, {name: Step}, each behind those that it needs. The name is
    the folder that it makes."""

    def __init__(self, dtype: str):
        self.steps, self.dtype = {}, dtype

    def add_group(self, name: str, seed: int) -> None:
        for run in GROUPS[name].runs if seed <= GROUPS[name].seeds else ():
            self.add_run(run, seed, GROUPS[name].tests or RUNS[run].tests)

    def add_run(self, name: str, seed: int, tests: tuple[str, ...] = ()) -> str:
        """The steps that make a run and evaluate it; the name of the first."""
        run = RUNS[name]
        out = folder_of(name, seed) if run.flags else run.start
        if run.flags:
            self.add_training(run, out, seed)
        for data in tests:
            self.add_test(run, out, data)
        return out

    def add_training(self, run: Run, out: str, seed: int) -> None:
        needs = [self.add_run(run.start, seed)] if run.start else []
        needs += [self.add_base(base) for base in BASES if f"--model {base}" in run.flags]
        own = "--penalty" in run.flags or "keep-source" in run.flags
        script = ["-m", "experiments.penalties"] if own else ["train.py"]
        command = [*script, *run.flags.split(), "--seed", str(seed), "--out", out]
        command += ["--init", folder_of(run.start, seed)] if run.start else []
        command += ["--dtype", self.dtype, "--resume"]
        files = [os.path.join(out, "settings.json")]
        self.steps.setdefault(out, Step(command, files, needs, out + ".log"))

    def add_test(self, run: Run, out: str, data: str) -> None:
        path, needs = scores_path(out, data), [out] if run.flags else []
        script, told = ["evaluate.py"], ["--data", DEV if data == SHORTCUT else data]
        if data.endswith("json"):
            script = ["-m", "experiments.abilities"]
        elif data == SHORTCUT:
            script = ["-m", "experiments.shortcut"]
        elif data == PROSE:
            script, told = ["-m", "experiments.forgetting"], []
        command = [*script, "--ckpt", out, *told, "--dtype", self.dtype]
        if data == DEV and run.rows:
            command += ["--rows", str(run.rows)]
        elif script == ["evaluate.py"] and data != DEV and run.batch:
            command += ["--batch-size", str(run.batch)]
        log = f"{out}.log" if run.flags else os.path.join(FOLDER, "real-base.log")
        self.steps.setdefault(os.path.dirname(path), Step(command, [path], needs, log, again=True))

    def add_base(self, base: str) -> str:
        command = ["demo/make_base.py", *BASES[base].split(), "--out", base]
        step = Step(command, [os.path.join(base, "config.json")], [], base + ".log")
        self.steps.setdefault(base, step)
        return base

    def add_systems(self, seed: int) -> None:
        """The rows of the paper's tables; the base's has no seed."""
        systems = {name: x for name, x in SYSTEMS.items() if x.run or seed == 1}
        needs = [self.add_run(x.run, seed) for x in systems.values() if x.run]
        command = ["-m", "experiments.baselines", "--data", TEST, "--shots-from", SHOTS]
        command += ["--max-new-tokens", "64"]
        command += ["--dtype", self.dtype, "--systems"]
        command += [
            f"{name}.{seed}={system_folder(FOLDER, x, seed)}{x.own}" for name, x in systems.items()
        ]
        files = [
            scores_path(system_folder(FOLDER, x, seed), TEST, f"{name}.{seed}")
            for name, x in systems.items()
        ]
        name = os.path.join(FOLDER, f"systems-{seed}")
        self.steps[name] = Step(command, files, list(dict.fromkeys(needs)), name + ".log", True)

    def add_claims(self, claims: list[Claim], seed: int) -> None:
        """The runs that some claims are about, on the test split."""
        for name in sorted({name for x in claims for name in (x.better, x.than)}):
            self.add_run(name, seed, (TEST,))

    def commands(self, name: str) -> list[list[str]]:
        """A step's command, that of what it needs, and so on."""
        found = [self.steps[name].command]
        for need in self.steps[name].needs:
            found += [x for x in self.commands(need) if x not in found]
        return found


def plan_of(s: Settings) -> Plan:
    """What is asked for, one seed after the other, so that a grid that is stopped has whole rows.
    Raises InputError."""
    plan, only = Plan(s.dtype), s.groups()
    most = max([SYSTEMS_SEEDS, *(group.seeds for group in GROUPS.values())])
    for seed in range(1, min(s.seeds, most) + 1):
        for name in only:
            if name in GROUPS:
                plan.add_group(name, seed)
        if "rows" in only and seed <= SYSTEMS_SEEDS:
            plan.add_systems(seed)
        if "claims" in only and seed <= GROUPS["main"].seeds:
            plan.add_claims(CLAIMS, seed)
        if "real-claims" in only and seed <= GROUPS["real"].seeds:
            plan.add_claims(REAL_CLAIMS, seed)
    return plan


class Runner:
    """Makes what is missing of a plan, some steps at a time. Raises InputError where what is there
    comes from other commands."""

    def __init__(self, plan: Plan, jobs: int, device: str):
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.env = KEEPING | {"OMP_NUM_THREADS": threads} | os.environ
        self.plan, self.jobs, self.device = plan, jobs, device
        self.begun = read_begun()
        self.waiting = [name for name in plan.steps if not self.is_made(name)]
        self.running = {}  # {name: its process}

    def is_made(self, name: str) -> bool:
        step, commands = self.plan.steps[name], self.plan.commands(name)
        known, partial = self.begun.get(name), f"{name}.partial"
        there = [path for path in (*step.files, partial) if os.path.exists(path)]
        if not there:
            return False
        if step.again:
            made = checksums(step.files)
            return made is not None and known == Begun(commands, made)
        advice = f"delete {partial if there[0] == partial else name}, to make it anew"
        require(known, f"{there[0]}: {BEGUN} does not say how it was begun; {advice}")
        if known.commands != commands:
            other = [x for x in known.commands if x not in commands]
            sentence = f"comes from {' '.join(other[0])}" if other else "needs other runs now"
            raise InputError(f"{name} {sentence}; {advice}")
        return os.path.exists(step.files[0])

    def run(self) -> None:
        """Begin the first step of which nothing that it needs is missing, and so on."""
        try:
            with tqdm(total=len(self.waiting), unit="step", disable=not self.waiting) as bar:
                while self.waiting or self.running:
                    for name in [*self.waiting]:
                        missing = {*self.waiting, *self.running}
                        ready = missing.isdisjoint(self.plan.steps[name].needs)
                        if ready and len(self.running) < self.jobs:
                            self.waiting.remove(name)
                            self.begin(name)
                            names = [os.path.relpath(x, FOLDER) for x in self.running]
                            bar.set_postfix_str(", ".join(names))
                    time.sleep(0.1)
                    for name, process in [*self.running.items()]:
                        if process.poll() is not None:
                            self.end(name)
                            bar.update()
        finally:  # what still runs goes on with --resume later
            handlers = [signal.signal(number, signal.SIG_IGN) for number in ENDING]
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                process.wait()
            for number, handler in zip(ENDING, handlers, strict=True):
                signal.signal(number, handler)

    def begin(self, name: str) -> None:
        """Start a step, and say before by what it is made. What is made again is known only once
        it is whole; figures of other commands go first, or evaluate.py would write beside them."""
        step = self.plan.steps[name]
        self.begun.pop(name, None)
        for path in step.files if step.again else ():
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        if not step.again:
            self.begun[name] = Begun(self.plan.commands(name))
        self.write()
        device = ["--device", self.device] if "--dtype" in step.command else []
        with open(step.log, "a", encoding="utf-8") as log:
            self.running[name] = start([*step.command, *device], self.env, log)

    def end(self, name: str) -> None:
        code = self.running.pop(name).returncode
        step = self.plan.steps[name]
        require(not code, f"{' '.join(step.command)} ended with {code}; see {step.log}")
        if step.again:
            self.begun[name] = Begun(self.plan.commands(name), checksums(step.files))
            self.write()

    def write(self) -> None:
        write_json(BEGUN, {name: x._asdict() for name, x in self.begun.items()})


class Begun(NamedTuple):
    """How a step was begun: its command, and those that made what it needs."""

    commands: list[list[str]]
    made: list[int] | None = None  # of an evaluation: the checksums of its files


def read_begun() -> dict[str, Begun]:
    """{name: how a step was begun}. Raises InputError."""
    found = {}
    for name, value in (read_json(BEGUN, EXPECTED) if os.path.exists(BEGUN) else {}).items():
        commands = value.get("commands") if isinstance(value, dict) else None
        whole = isinstance(commands, list) and all(isinstance(x, list) and x for x in commands)
        texts = whole and all(isinstance(word, str) for x in commands for word in x)
        require(texts, f"{BEGUN}: {name} is {str(value)[:50]}; expected {EXPECTED}")
        found[name] = Begun(commands, value.get("made"))
    return found


def checksums(paths: list[str]) -> list[int] | None:
    """Of some files, None where one is missing."""
    if not all(map(os.path.isfile, paths)):
        return None
    sums = []
    for path in paths:
        with open(path, "rb") as file:
            sums.append(zlib.crc32(file.read()))
    return sums


def start(command: list[str], env: dict[str, str], log) -> subprocess.Popen:
    """A script of this project, begun."""
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=log)


def main(s: Settings) -> None:
    only = s.groups()
    os.chdir(ROOT)
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(143))  # as Ctrl-C: its children end too
    with locked(FOLDER):
        read_sections()  # before the hours
        plan = plan_of(s)
        told = {x for step in plan.steps.values() for x in step.command}
        if told & {ABILITIES, ABILITIES_DEV} and not os.path.exists(ABILITIES_DEV):
            abilities.make(FOLDER)
        Runner(plan, s.jobs, s.device).run()
        write_results(FOLDER, only)
        if "claims" in only:
            write_claims(FOLDER, "Claims", CLAIMS, ABOUT_CLAIMS)
        if "real-claims" in only:
            write_claims(FOLDER, "A real model: claims", REAL_CLAIMS, ABOUT_REAL_CLAIMS)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

"""Train and evaluate the grid of experiments/grid.py on the demo, then write RESULTS.md.

    python experiments/run.py                      # whatever is missing; hours on two cores
    python experiments/run.py --only main --seeds 2
    python experiments/run.py --only ''            # the tables and figures alone
    python experiments/run.py --only systems       # the rows of the paper's tables, test split
    python experiments/run.py --only claims        # CLAIMS, once stated, on the test split

Runs lie in runs/experiments; what is finished is not done again, what was stopped goes on. Each is
a command of train.py and one of evaluate.py for each test set, which begun.json there keeps: where
the grid says another one, that is refused.
"""

import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Lock

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from experiments import abilities  # noqa: E402
from experiments.grid import (  # noqa: E402
    ABILITIES,
    ABILITIES_DEV,
    BASES,
    CLAIMS,
    FOLDER,
    GROUPS,
    RUNS,
    SYSTEMS,
    SYSTEMS_SEEDS,
    TEST,
    System,
)
from experiments.results import scores_path, write_claims, write_results  # noqa: E402
from plumbing.cli import DeviceSettings, option, run_script  # noqa: E402
from plumbing.errors import InputError, require  # noqa: E402
from plumbing.files import read_json, write_json  # noqa: E402

BEGUN = os.path.join(FOLDER, "begun.json")
EXPECTED = "an object of this program's; delete it, and the runs of which it is"
SHOTS = "demo/data/shots.tsv"  # rows of dev
# glibc gives large blocks back to the system after each use; keeping them makes training on a CPU
# about a third faster.
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
KNOWN = [*GROUPS, "systems", "claims"]


@dataclass
class Settings(DeviceSettings):
    only: str = option(" ".join(KNOWN[:-1]), f"of {' '.join(KNOWN)}, in one text")
    seeds: int = option(100, "at most so many of each group", least=1)
    jobs: int = option(2, "runs at a time, which share the cores", least=1, most=100)

    def groups(self) -> list[str]:
        """What is asked for. Raises InputError."""
        for name in self.only.split():
            require(name in KNOWN, f"--only {name}: expected some of {' '.join(KNOWN)}")
        return self.only.split()


def folder_of(name: str, seed: int) -> str:
    return os.path.join(FOLDER, f"{name}-seed-{seed}")


def wanted(groups: list[str], most_seeds: int) -> list[tuple[str, int]]:
    """(run, seed) of these groups, each behind the one that it starts from; one seed after the
    other, so that a grid that is stopped has whole rows."""
    found = {}
    for seed in range(1, most_seeds + 1):
        for group in groups:
            for name in GROUPS[group].runs if seed <= GROUPS[group].seeds else ():
                if start := RUNS[name].start:
                    found[start, seed] = None
                found[name, seed] = None
    return list(found)


def claimed(most_seeds: int) -> list[tuple[str, int]]:
    """(run, seed) of the runs that CLAIMS are about, and of those that they start from."""
    names = {name for claim in CLAIMS for name in (claim.better, claim.than)}
    names = [RUNS[name].start for name in sorted(names) if RUNS[name].start] + sorted(names)
    seeds = range(1, min(most_seeds, GROUPS["main"].seeds) + 1)
    return list(dict.fromkeys((name, seed) for seed in seeds for name in names))


def system_folder(system: System, seed: int) -> str:
    """The checkpoint of a row of the paper's tables."""
    return folder_of(system.run, seed) if system.run else "demo/base"


def systems_of(seed: int) -> dict[str, str]:
    """{row of the paper's tables: what --systems is told of it}."""
    return {name: f"{name}.{seed}={system_folder(x, seed)}{x.own}" for name, x in SYSTEMS.items()}


def training(name: str, seed: int) -> list[list[str]]:
    """The commands that make a run: its own, that of what it starts from, and so on."""
    run = RUNS[name]
    command = ["train.py", *run.flags.split(), "--seed", str(seed)]
    command += ["--out", folder_of(name, seed)]
    command += ["--init", folder_of(run.start, seed)] if run.start else []
    return [[*command, "--resume"], *(training(run.start, seed) if run.start else [])]


class Runner:
    """Trains and evaluates, some runs at a time."""

    def __init__(self, jobs: int, device: tuple[str, ...] = ()):
        """device: flags of every command."""
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.env = KEEPING | os.environ | {"OMP_NUM_THREADS": threads}
        self.pool, self.futures, self.lock = ThreadPoolExecutor(jobs), {}, Lock()
        self.device = device
        self.waiting = ThreadPoolExecutor(1000)  # threads that wait for others' runs
        self.children, self.stopped = set(), False
        # {run or evaluation: the command that it was begun with, and those of what it starts from}
        self.begun = read_json(BEGUN, EXPECTED) if os.path.exists(BEGUN) else {}

    def after(self, before: list[Future], task, *args) -> Future:
        """The future of a task that is begun once others are done."""

        def begin():
            for future in before:
                future.result()
            return self.pool.submit(task, *args).result()

        return self.waiting.submit(begin)

    def submit(self, name: str, seed: int, tests: tuple[str, ...] = ()) -> Future:
        """Make a run, behind what it starts from and what was asked of it already, which were
        submitted before. tests: instead of the run's own."""
        keys = (RUNS[name].start, seed), (name, seed)
        before = [self.futures[key] for key in keys if key in self.futures]
        future = self.after(before, self.make, name, seed, tests or RUNS[name].tests)
        self.futures[name, seed] = future
        return future

    def make(self, name: str, seed: int, tests: tuple[str, ...]) -> None:
        out, commands = folder_of(name, seed), training(name, seed)
        self.ensure(out, [os.path.join(out, "settings.json")], commands, out)
        for data in tests:
            path = scores_path(out, data)
            kind = "--general" if data.endswith(".json") else "--data"
            command = ["evaluate.py", "--ckpt", out, kind, data]
            self.ensure(os.path.dirname(path), [path], [command, *commands], out)

    def submit_systems(self, seed: int) -> Future:
        """The rows of the paper's tables, once their runs are made."""
        before = [self.futures[x.run, seed] for x in SYSTEMS.values() if x.run]
        return self.after(before, self.compare, seed)

    def compare(self, seed: int) -> None:
        command = ["evaluate.py", "--data", TEST, "--shots-from", SHOTS, "--max-new-tokens", "64"]
        commands = [[*command, "--systems", *systems_of(seed).values()]]
        paths = []
        for name, system in SYSTEMS.items():
            paths.append(scores_path(system_folder(system, seed), TEST, f"{name}.{seed}"))
            commands += training(system.run, seed) if system.run else []
        self.ensure(f"systems {seed}", paths, commands, os.path.join(FOLDER, f"systems-{seed}"))

    def ensure(self, key: str, files: list[str], commands: list[list[str]], out: str) -> None:
        """Do the first of these commands unless its files are there. Raises InputError where what
        is there was begun with others, or nobody knows with which."""
        there = [path for path in (*files, f"{out}.partial") if os.path.exists(path)]
        known, trains = self.begun.get(key) if there else None, commands[0][0] == "train.py"
        sentence = f"{there and there[0]}: {BEGUN} does not say how it was begun"
        require(known or not (there and trains), f"{sentence}; delete {out}, to make it anew")
        if known and known != commands:
            pairs = zip(known, commands, strict=False)
            was = next((old for old, new in pairs if old != new), known[-1])
            raise InputError(f"{key} comes from {' '.join(was)}; delete {out}, to make it anew")
        if known and all(map(os.path.exists, files)):
            return
        self.note(key, commands)
        with open(out + ".log", "a", encoding="utf-8") as log:
            code = self.call([*commands[0], *self.device], log)
        require(not code, f"{' '.join(commands[0])} ended with {code}; see {out}.log")

    def note(self, key: str, commands: list[list[str]]) -> None:
        """Say what a run is made by, before it is begun."""
        with self.lock:
            self.begun[key] = commands
            write_json(BEGUN, self.begun)

    def call(self, command: list[str], log) -> int:
        """Run a script of this project; its exit code."""
        with self.lock:
            if self.stopped:
                return 1
            command = [sys.executable, *command]
            child = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)
            self.children.add(child)
        code = child.wait()
        self.children.discard(child)
        return code

    def stop(self) -> None:
        """End what is running, and begin nothing more; --resume goes on with it later."""
        with self.lock:
            self.stopped = True
            for child in self.children:
                child.terminate()
        self.waiting.shutdown(wait=False, cancel_futures=True)
        self.pool.shutdown(wait=False, cancel_futures=True)


def make_inputs(jobs: list[tuple[str, int]]) -> None:
    """What some runs need besides the demo. Raises InputError."""
    told = " ".join(f"{RUNS[name].flags} {' '.join(RUNS[name].tests)}" for name, _ in jobs)
    if ABILITIES in told and not os.path.exists(ABILITIES_DEV):
        abilities.make(FOLDER)
    for base, flags in BASES.items():
        if f"--model {base} " in told and not os.path.exists(os.path.join(base, "config.json")):
            new = f"{base}.new"
            command = [sys.executable, "demo/make_base.py", *flags.split(), "--out", new]
            code = subprocess.call(command)
            require(not code, f"{' '.join(command)} ended with {code}")
            os.rename(f"{new}_log.jsonl", f"{base}_log.jsonl")
            os.rename(new, base)


def main(s: Settings) -> None:
    only = s.groups()
    os.chdir(ROOT)
    os.makedirs(FOLDER, exist_ok=True)
    seeds = range(1, min(s.seeds, SYSTEMS_SEEDS) + 1) if "systems" in only else ()
    claims = claimed(s.seeds) if "claims" in only else []
    jobs = wanted([name for name in only if name in GROUPS], s.seeds)
    jobs += [(x.run, seed) for seed in seeds for x in SYSTEMS.values() if x.run]
    jobs = list(dict.fromkeys([*jobs, *claims]))
    make_inputs(jobs)
    runner = Runner(s.jobs, ("--device", s.device.split(":")[0], "--dtype", s.dtype))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: its children end too
    try:
        futures = [runner.submit(*job) for job in jobs]
        futures += [runner.submit_systems(seed) for seed in seeds]
        futures += [runner.submit(*job, (TEST,)) for job in claims]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            future.result()
    except BaseException:
        runner.stop()
        raise
    write_results(FOLDER, only)
    if claims:
        write_claims(FOLDER)


if __name__ == "__main__":
    run_script(main, Settings)

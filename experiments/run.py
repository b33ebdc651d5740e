"""Train and evaluate the grid of experiments/grid.py on the demo, then write RESULTS.md.

    python experiments/run.py                      # whatever is missing; hours on two cores
    python experiments/run.py --only main --seeds 2
    python experiments/run.py --only ''            # the tables and figures alone
    python experiments/run.py --only systems       # the rows of the paper's tables, test split
    python experiments/run.py --only claims        # CLAIMS, once stated, on the test split

Runs lie in runs/experiments; what is finished is not done again, what was stopped goes on. Each is
a command of train.py and one of evaluate.py for each test set, which done.json there keeps.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Lock

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from experiments import abilities  # noqa: E402
from experiments.grid import (  # noqa: E402
    ABILITIES,
    ABILITIES_DEV,
    BASE_MORE,
    CLAIMS,
    FOLDER,
    GROUPS,
    RUNS,
    SYSTEMS,
    SYSTEMS_SEEDS,
    TEST,
)
from experiments.results import scores_path, write_claims, write_results  # noqa: E402

DONE = os.path.join(FOLDER, "done.json")
SHOTS = "demo/data/shots.tsv"  # rows of dev
ON_TEST = ("systems", "claims")


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


def systems_of(seed: int) -> dict[str, str]:
    """{row of the paper's tables: what --systems is told of it}."""
    folders = {x.run: folder_of(x.run, seed) if x.run else "demo/base" for x in SYSTEMS.values()}
    return {name: f"{name}.{seed}={folders[x.run]}{x.own}" for name, x in SYSTEMS.items()}


class Runner:
    """Trains and evaluates, some runs at a time."""

    def __init__(self, jobs: int):
        self.env = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        self.pool, self.futures, self.lock = ThreadPoolExecutor(jobs), {}, Lock()
        self.waiting = ThreadPoolExecutor(1000)  # threads that wait for others' runs
        self.done = json.load(open(DONE, encoding="utf-8")) if os.path.exists(DONE) else {}

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
        out, run = folder_of(name, seed), RUNS[name]
        command = ["train.py", *run.flags.split(), "--seed", str(seed), "--out", out]
        if run.start:
            command += ["--init", folder_of(run.start, seed)]
        self.ensure(out, os.path.join(out, "settings.json"), [*command, "--resume"], out)
        for data in tests:
            path = scores_path(out, data)
            kind = "--general" if data.endswith(".json") else "--data"
            command = ["evaluate.py", "--ckpt", out, kind, data]
            self.ensure(os.path.dirname(path), path, command, out)

    def submit_systems(self, seed: int) -> Future:
        """The rows of the paper's tables, once their runs are made."""
        before = [self.futures[x.run, seed] for x in SYSTEMS.values() if x.run]
        return self.after(before, self.compare, seed)

    def compare(self, seed: int) -> None:
        command = ["evaluate.py", "--data", TEST, "--shots-from", SHOTS, "--systems"]
        command += systems_of(seed).values()
        last = [*SYSTEMS][-1]
        path = scores_path(folder_of(SYSTEMS[last].run, seed), TEST, f"{last}.{seed}")
        self.ensure(f"systems {seed}", path, command, os.path.join(FOLDER, f"systems-{seed}"))

    def ensure(self, key: str, file: str, command: list[str], out: str) -> None:
        """Do what was not done; SystemExit where it was, with another command."""
        if os.path.exists(file) and key in self.done:
            if self.done[key] != command:
                was = " ".join(self.done[key])
                sys.exit(f"error: {key} was made by {was}; delete that folder, or name it anew")
            return
        with open(out + ".log", "a", encoding="utf-8") as log:
            code = self.call(command, log)
        if code:
            sys.exit(f"error: {' '.join(command)} ended with {code}; see {out}.log")
        with self.lock:
            self.done[key] = command
            with open(DONE + ".new", "w", encoding="utf-8") as written:
                json.dump(self.done, written, indent=1)
            os.replace(DONE + ".new", DONE)

    def call(self, command: list[str], log) -> int:
        """Run a script of this project; its exit code."""
        command = [sys.executable, *command]
        return subprocess.call(command, cwd=ROOT, env=self.env, stdout=log, stderr=log)


def make_inputs(jobs: list[tuple[str, int]]) -> None:
    """What some runs need besides the demo."""
    told = " ".join(f"{RUNS[name].flags} {' '.join(RUNS[name].tests)}" for name, _ in jobs)
    if ABILITIES in told and not os.path.exists(ABILITIES_DEV):
        abilities.make(FOLDER)
    if BASE_MORE in told and not os.path.exists(os.path.join(BASE_MORE, "config.json")):
        command = [sys.executable, "demo/make_base.py", "--more", "--out", f"{BASE_MORE}.new"]
        if code := subprocess.call(command):
            sys.exit(f"error: {' '.join(command)} ended with {code}")
        os.rename(f"{BASE_MORE}.new", BASE_MORE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    known = [*GROUPS, *ON_TEST]
    usual = " ".join([*GROUPS, "systems"])
    parser.add_argument("--only", default=usual, help=f"of {' '.join(known)} (default: {usual})")
    parser.add_argument("--seeds", type=int, default=100, help="at most so many of each group")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    s = parser.parse_args()
    os.chdir(ROOT)
    os.makedirs(FOLDER, exist_ok=True)
    only = s.only.split()
    if set(only) - set(known) or s.jobs < 1:
        sys.exit(f"error: --only {s.only}, --jobs {s.jobs}: expected {' '.join(known)}; 1 or more")
    seeds = range(1, min(s.seeds, SYSTEMS_SEEDS) + 1) if "systems" in only else ()
    jobs = wanted([name for name in only if name in GROUPS], s.seeds)
    jobs += [(x.run, seed) for seed in seeds for x in SYSTEMS.values() if x.run]
    jobs += claimed(s.seeds) if "claims" in only else []
    jobs = list(dict.fromkeys(jobs))
    make_inputs(jobs)
    runner = Runner(s.jobs)
    futures = [runner.submit(*job) for job in jobs]
    futures += [runner.submit_systems(seed) for seed in seeds]
    if "claims" in only:
        futures += [runner.submit(*job, (TEST,)) for job in claimed(s.seeds)]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            future.result()
    except BaseException:
        runner.waiting.shutdown(wait=False, cancel_futures=True)
        runner.pool.shutdown(wait=False, cancel_futures=True)
        raise
    write_results(FOLDER)
    if "claims" in only and CLAIMS:
        write_claims(FOLDER)


if __name__ == "__main__":
    main()

"""Train and evaluate the grid of experiments/grid.py on the demo, then write RESULTS.md.

    python experiments/run.py                      # whatever is missing; hours on two cores
    python experiments/run.py --only main --seeds 2
    python experiments/run.py --only ''            # the tables and figures alone
    python experiments/run.py --claims             # CLAIMS, once stated, on the test split

Runs lie in runs/experiments; what is finished is not done again, what was stopped goes on. Each is
a command of train.py and one of evaluate.py, which done.json there keeps.
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
from experiments.grid import CLAIMS, GROUPS, RUNS  # noqa: E402
from experiments.results import write_claims, write_results  # noqa: E402

FOLDER = os.path.join("runs", "experiments")
DONE = os.path.join(FOLDER, "done.json")


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


class Runner:
    """Trains and evaluates, some runs at a time."""

    def __init__(self, jobs: int):
        self.env = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        self.pool, self.futures, self.lock = ThreadPoolExecutor(jobs), {}, Lock()
        self.done = json.load(open(DONE, encoding="utf-8")) if os.path.exists(DONE) else {}

    def submit(self, name: str, seed: int, data: str) -> Future:
        """What it starts from was submitted before, so that nobody waits for it in vain."""
        before = self.futures.get((RUNS[name].start, seed))
        future = self.pool.submit(self.make, name, seed, data, before)
        self.futures[name, seed] = future
        return future

    def make(self, name: str, seed: int, data: str, before: Future | None) -> None:
        if before:
            before.result()
        out, run = folder_of(name, seed), RUNS[name]
        command = ["train.py", *run.flags.split(), "--seed", str(seed), "--out", out]
        if run.start:
            command += ["--init", folder_of(run.start, seed)]
        if self.is_due(out, command, "settings.json"):
            self.call([*command, "--resume"], out)
            self.note(out, command)
        split = os.path.splitext(os.path.basename(data))[0]
        key, command = f"{out} {split}", ["evaluate.py", "--ckpt", out, "--data", data]
        if self.is_due(key, command, os.path.join(f"eval-{split}", "scores.json")):
            self.call(command, out)
            self.note(key, command)

    def is_due(self, key: str, command: list[str], file: str) -> bool:
        """Whether it was not done; SystemExit where it was, with another command."""
        if not os.path.exists(os.path.join(key.split(" ")[0], file)) or key not in self.done:
            return True
        if self.done[key] != command:
            was = " ".join(self.done[key])
            sys.exit(f"error: {key} was made by {was}; delete that folder, or name the run anew")
        return False

    def note(self, key: str, command: list[str]) -> None:
        with self.lock:
            self.done[key] = command
            with open(DONE + ".new", "w", encoding="utf-8") as file:
                json.dump(self.done, file, indent=1)
            os.replace(DONE + ".new", DONE)

    def call(self, command: list[str], out: str) -> None:
        with open(out + ".log", "a", encoding="utf-8") as log:
            code = subprocess.call(
                [sys.executable, *command], cwd=ROOT, env=self.env, stdout=log, stderr=log
            )
        if code:
            sys.exit(f"error: {' '.join(command)} ended with {code}; see {out}.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default=" ".join(GROUPS), help="groups of the grid")
    parser.add_argument("--seeds", type=int, default=100, help="at most so many of each group")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    parser.add_argument("--claims", action="store_true", help="test CLAIMS on the test split")
    s = parser.parse_args()
    os.chdir(ROOT)
    os.makedirs(FOLDER, exist_ok=True)
    unknown = set(s.only.split()) - set(GROUPS)
    if unknown or s.jobs < 1:
        sys.exit(f"error: --only {s.only}, --jobs {s.jobs}: expected {' '.join(GROUPS)}; 1 or more")
    jobs = [(*job, "demo/data/dev.tsv") for job in wanted(s.only.split(), s.seeds)]
    if s.claims:
        names = {name for claim in CLAIMS for name in (claim.better, claim.than)}
        seeds = range(1, min(s.seeds, GROUPS["main"].seeds) + 1)
        jobs = [(name, seed, "demo/data/test.tsv") for name in sorted(names) for seed in seeds]
    runner = Runner(s.jobs)
    futures = [runner.submit(*job) for job in jobs]
    try:
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            future.result()
    except BaseException:
        runner.pool.shutdown(wait=False, cancel_futures=True)
        raise
    write_results(FOLDER)
    if s.claims:
        write_claims(FOLDER)


if __name__ == "__main__":
    main()

"""Show the logs of runs in TensorBoard: writes event files, follows a run that is on its way.

    python -m experiments.to_tensorboard runs/stage1.partial runs/stage2 [--follow]
    tensorboard --logdir runs

The event files lie beside log.jsonl.
"""

import argparse
import json
import os
import time

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    raise SystemExit("error: TensorBoard is not installed; pip install tensorboard") from None


def rows(path, done):
    """The whole lines of a JSON-lines file after the first `done`."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f.read().split("\n")[done:-1]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", nargs="+", help="run folders, finished or partial")
    parser.add_argument("--follow", action="store_true", help="go on until interrupted")
    s = parser.parse_args()
    for run in s.run:
        if not os.path.exists(os.path.join(run, "log.jsonl")):
            raise SystemExit(
                f"error: {run}/log.jsonl: no such file; expected a run folder of train.py"
            )
    writers, done = (
        {run: SummaryWriter(run) for run in s.run},
        dict.fromkeys(((run, name) for run in s.run for name in ("log.jsonl", "speed.jsonl")), 0),
    )
    while True:
        for (run, name), n in done.items():
            new = rows(os.path.join(run, name), n)
            done[run, name] += len(new)
            for row in new:
                for key, value in row.items():
                    if key != "step" and value is not None:
                        writers[run].add_scalar(key, value, row["step"])
            writers[run].flush()
        if not s.follow:
            break
        time.sleep(5)
    print(", ".join(f"{run}: {done[run, 'log.jsonl']} steps" for run in s.run))

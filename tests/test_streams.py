"""A reader that goes away, or a terminal without a letter, ends no run."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, RUN, log

SAY = """
import sys
from plumbing.base.streams import steady
steady()
for _ in range(9):
    print("it \\u2192 nl " * 9999)
    print("it \\u2192 nl " * 99, file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_the_terminal_lacks_is_a_question_mark(encoding):
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SAY], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 7 and b"Error" not in done.stderr
    arrow = "→".encode(encoding, "replace")
    assert done.stdout.startswith(b"it " + arrow) and done.stderr.startswith(b"it " + arrow)


@pytest.mark.parametrize("closed", ["| head -c 1", "2>&1 | head -c 1", ">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_pipe_is_silence(closed):
    command = f"exec 3>&1; ({sys.executable} -c '{SAY}'; echo rc=$? >&3) {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "rc=7" in done.stdout and "Error" not in done.stderr, done.stderr


@pytest.mark.parametrize("closed", ["2>&1 | head -c 1", ">&- 2>&-"])
def test_training_into_a_closed_pipe_ends_well(finished, tmp_path, closed):
    args = " ".join(map(str, [*RUN, "--out", tmp_path / "run"]))
    command = f"{sys.executable} {ROOT}/train.py {args} {closed}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=finished)
    assert done.returncode == 0 and len(log(tmp_path / "run")) == 8

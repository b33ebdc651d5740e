"""A folder that one process at a time writes."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from plumbing.base.errors import InputError
from plumbing.run.lock import locked
from plumbing.run.removal import LOCK

HOLD = """
import sys
from plumbing.run.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder):
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path):
    process = holder(tmp_path / "run")
    with pytest.raises(InputError, match=f"is being written by process {process.pid} on .*; wait"):
        with locked(str(tmp_path / "run")):
            pass
    process.communicate("")
    with locked(str(tmp_path / "run")):
        assert os.listdir(tmp_path / "run") == [LOCK]
    assert not (tmp_path / "run").exists()  # it was empty


def test_a_lock_dies_with_its_process(tmp_path):
    process = holder(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with locked(str(tmp_path / "run")):
        (tmp_path / "run" / "log").write_text("x")
    assert os.listdir(tmp_path / "run") == ["log"]


def test_a_folder_may_get_another_name_while_it_is_held(tmp_path):
    with locked(str(tmp_path / "run.partial")):
        os.rename(tmp_path / "run.partial", tmp_path / "run")
        with locked(str(tmp_path / "run.partial")):  # that of another run, which is refused nothing
            pass
    assert os.listdir(tmp_path / "run") == [LOCK]  # whoever renames it removes it

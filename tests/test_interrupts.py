"""Ctrl-C before a script has begun."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import train  # noqa: F401
from plumbing.base import interrupts


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_ctrl_c_while_packages_are_imported_is_one_word(name, seconds):
    command = [sys.executable, os.path.join(ROOT, name), "-h"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background too
    )
    modules = f"/proc/{process.pid}/maps"
    while os.path.exists(modules) and "libtorch" not in open(modules).read():
        time.sleep(0.01)  # Python itself is there, and torch is on its way
    time.sleep(seconds / 10)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and said == "error: interrupted\n", said


def test_who_imports_a_script_keeps_his_own_ctrl_c():
    assert "train" in sys.modules and signal.getsignal(signal.SIGINT) is not interrupts.stop

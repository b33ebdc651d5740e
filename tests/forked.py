"""Scripts in forks of a process that has imported torch: imports are most of a short run."""

import copy
import functools
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver

try:
    from langid import langid
except ImportError:  # on a machine with a card, perhaps
    langid = None

LONGEST = 300  # seconds
PACKAGES = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "safetensors.torch"]
AHEAD = multiprocessing.get_context("forkserver")
AHEAD.set_forkserver_preload([*PACKAGES, "sentencepiece", "sacrebleu", "ahead"])


def start_server():
    """The process that is forked. It finds ahead.py beside this file."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


def read_langid_once():
    """langid's model takes seconds to read: each use has a copy, which set_languages may cut."""
    if langid is None:
        return
    read = functools.cache(langid.LanguageIdentifier.from_modelstring)

    def read_again(*texts, **how):
        return copy.copy(read(*texts, **how))

    langid.LanguageIdentifier.from_modelstring = read_again


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(arguments, module, folder, streams, variables):
    """What `python arguments` (or `python -m arguments`) does in a folder, with environment
    variables, and files for its standard input, output and error."""
    os.chdir(folder)
    os.environ.update(variables)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.stdin = open(0, closefd=False)
    sys.argv = arguments
    sys.path[0] = folder if module else os.path.dirname(arguments[0])
    if module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def scripts(arguments, module, folders, text=""):
    """Runs it to its end in a process for each folder; several share the work as if torchrun had
    started them. text: the standard input of each. The results are as of subprocess.run with
    capture_output and text."""
    start_server()
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    meet["WORLD_SIZE"] = str(len(folders))
    with tempfile.TemporaryDirectory() as place:
        started = []
        for rank, folder in enumerate(folders):
            variables = meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            streams = [os.path.join(place, f"{rank} {x}") for x in ("stdin", "stdout", "stderr")]
            for path in streams:
                with open(path, "w", encoding="utf-8", newline="") as file:
                    file.write(text if path.endswith("stdin") else "")
            how = (arguments, module, folder, streams, variables if len(folders) > 1 else {})
            started.append((AHEAD.Process(target=run, args=how), streams))
        for process, _ in started:
            process.start()
        end = time.monotonic() + LONGEST
        for process, _ in started:
            process.join(max(0, end - time.monotonic()))
        late = [process for process, _ in started if process.exitcode is None]
        for process in late:
            process.kill()
        if late:
            raise subprocess.TimeoutExpired(arguments, LONGEST)
        return [
            subprocess.CompletedProcess(arguments, process.exitcode, *map(read, streams[1:]))
            for process, streams in started
        ]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()

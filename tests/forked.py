"""Scripts in forks of a process that has imported torch: imports are most of a short run.

What a fork does not try is how Python starts and ends, a script's own imports, and another order of
sets (all forks have one hash seed). Scripts that are begun from nothing try that: tests/stress.py,
torchrun and python of conftest.py.
"""

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
from multiprocessing import connection, forkserver

try:
    from langid import langid
except ImportError:  # on a machine with a card, perhaps
    langid = None

HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST = 300  # seconds
GRACE = 10  # seconds of the others, when one of several processes has failed
PACKAGES = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "safetensors.torch"]
AHEAD = multiprocessing.get_context("forkserver")
AHEAD.set_forkserver_preload([*PACKAGES, "sentencepiece", "sacrebleu", "ahead"])


def start_server():
    """The process that is forked. It finds ahead.py beside this file."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, before]))
    try:
        forkserver.ensure_running()
    finally:
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
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.stdin = open(0, closefd=False)
    sys.argv = arguments
    ours = (HERE, os.path.dirname(HERE))  # of pytest's path
    others = [path for path in sys.path if os.path.realpath(path) not in ours]
    sys.path[:] = [folder if module else os.path.dirname(arguments[0]), *others]
    if module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def scripts(arguments, module, folders, text="", nodes=False):
    """Runs it to its end in a process for each folder; several share the work as if torchrun had
    started them, each on a node of its own or all on one. text: the standard input of each. The
    results are as of subprocess.run with capture_output and text."""
    start_server()
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    meet["WORLD_SIZE"] = str(len(folders))
    with tempfile.TemporaryDirectory() as place:
        started, outputs = [], []
        for rank, folder in enumerate(folders):
            variables = dict(os.environ)
            if len(folders) > 1:
                variables |= meet | {"RANK": str(rank), "LOCAL_RANK": "0" if nodes else str(rank)}
            streams = [os.path.join(place, f"{rank} {x}") for x in ("stdin", "stdout", "stderr")]
            for path in streams:
                with open(path, "w", encoding="utf-8", newline="") as file:
                    file.write(text if path.endswith("stdin") else "")
            how = (arguments, module, folder, streams, variables)
            started.append(AHEAD.Process(target=run, args=how))
            outputs.append(streams[1:])
        try:
            for process in started:
                process.start()
            late = wait(started)
        finally:
            for process in filter(multiprocessing.process.BaseProcess.is_alive, started):
                process.kill()
                process.join()
        texts = [[*map(read, paths)] for paths in outputs]
        if late:
            raise subprocess.TimeoutExpired(
                arguments, LONGEST, *map("".join, zip(*texts, strict=True))
            )
        return [
            subprocess.CompletedProcess(arguments, process.exitcode, *said)
            for process, said in zip(started, texts, strict=True)
        ]


def wait(started):
    """Until all have ended, or for some time after one has failed. Whether they took too long."""
    end, failed = time.monotonic() + LONGEST, False
    while running := [process for process in started if process.exitcode is None]:
        left = end - time.monotonic()
        if left <= 0:
            return not failed
        connection.wait([process.sentinel for process in running], left)
        if not failed and any(process.exitcode for process in started):
            end, failed = time.monotonic() + GRACE, True
    return False


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()

"""How many threads torch computes with beside other programs.

OpenMP's threads spin where they wait for each other. All of them wait where the system has put one
aside for another program. Beside one busy program two threads on two CPUs are therefore far slower
than one (docs/training.md).
"""

import os
import time

import torch

STAT = "/proc/stat"  # how long each CPU has been busy; Linux alone has it
PERIOD = 0.5  # the least seconds between two looks
SPARED = 0.4  # CPUs that other programs may use before a thread is given up
OF_USER = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # torchrun sets the first one too


class Threads:
    """Torch's number of threads, which follows the CPUs that other programs leave free. It stays as
    it is where the user has set it, and where the system does not say what the CPUs do."""

    def __init__(self):
        self.most = torch.get_num_threads()
        numbers = (os.environ.get(name, "") for name in OF_USER)
        chosen = any(number.isdecimal() and int(number) > 0 for number in numbers)
        self.before = None if chosen else look()

    def fit(self, device: torch.device | str) -> None:
        """Set the number by what other programs have used since the last look, unless that was just
        now, or the network computes elsewhere than on the CPU."""
        if not self.before or torch.device(device).type != "cpu":
            return
        if time.monotonic() - self.before[0] < PERIOD:
            return
        before, self.before = self.before, look()
        if not self.before:
            return
        seconds, busy, own = (b - a for a, b in zip(before, self.before, strict=True))
        cpus = len(os.sched_getaffinity(0))
        wanted = threads_beside((busy - own) / seconds, cpus, self.most)
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)


def threads_beside(others: float, cpus: int, most: int) -> int:
    """The number of threads, at most `most`, where other programs use `others` of our CPUs."""
    if cpus < most:  # OMP_PROC_BIND binds this thread to one CPU and the others to other CPUs
        return most
    return max(1, min(most, int(cpus - others + SPARED)))


def look() -> tuple[float, float, float] | None:
    """Seconds of the clock, seconds that the CPUs we may use were busy, seconds that this process
    has computed. None where the system does not say."""
    try:
        with open(STAT) as file:
            rows = [line.split() for line in file if line.strip()]
    except OSError:
        return None
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # A row is a CPU's name, then its ticks for programs, for programs with nice, for the system.
    ticks = sum(int(x) for row in rows if row[0] in ours for x in row[1:4])
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


THREADS = Threads()  # it looks for the first time when a script begins

"""The number of threads follows what other programs use; here the system and the clock are told."""

import pytest
import torch
from conftest import tiny

from plumbing.compute import threads
from plumbing.compute.decoder import Decoder


@pytest.mark.parametrize(
    "others, cpus, most, wanted",
    [
        (0.0, 2, 2, 2),
        (0.3, 2, 2, 2),  # a little is no reason
        (0.6, 2, 2, 1),  # what one busy loop gets beside two threads on two CPUs
        (1.0, 2, 2, 1),
        (1.4, 2, 2, 1),  # two loops beside one thread
        (2.0, 2, 2, 1),  # never none
        (-0.1, 2, 2, 2),
        (3.0, 16, 16, 13),
        (3.0, 16, 8, 8),  # torch began with a thread for each core, of two CPUs
        (0.0, 1, 8, 8),  # the threads are bound to CPUs, this one to one
    ],
)
def test_threads_are_as_many_as_the_cpus_that_others_leave(others, cpus, most, wanted):
    assert threads.threads_beside(others, cpus, most) == wanted


class System:
    """What the system says, and how many threads torch has."""

    def __init__(self, place, patch):
        self.clock, self.own, self.number, self.stat = 100.0, 3.0, 2, place / "stat"
        patch.setattr(threads, "STAT", str(self.stat))
        patch.setattr(threads.time, "monotonic", lambda: self.clock)
        patch.setattr(threads.time, "process_time", lambda: self.own)
        patch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
        patch.setattr(threads.os, "sysconf", lambda _: 100, raising=False)
        patch.setattr(torch, "get_num_threads", lambda: self.number)
        patch.setattr(torch, "set_num_threads", lambda number: setattr(self, "number", number))
        for name in threads.OF_USER:
            patch.delenv(name, raising=False)
        self.ticks = 1000
        self.write()

    def write(self):
        """CPUs 1 and 2 are not ours, and what CPUs do not do for programs does not count."""
        rows = ["cpu 9 9 9 9", f"cpu0 {self.ticks} 20 30 777 55", f"cpu1 {self.ticks * 5} 0 0 1"]
        self.stat.write_text("\n".join([*rows, "cpu2 0 0 0 1", "cpu3 40 50 60 7", "intr 5"]))

    def go_on(self, seconds, own, others):
        self.clock, self.own = self.clock + seconds, self.own + own
        self.ticks += round(100 * (own + others))
        self.write()


@pytest.fixture
def system(tmp_path, monkeypatch):
    return System(tmp_path, monkeypatch)


def test_a_thread_is_given_up_beside_another_program_and_taken_again_after_it(system):
    own = threads.Threads()
    system.go_on(1, own=2, others=0)
    own.fit("cpu")
    assert system.number == 2
    system.go_on(2, own=2.6, others=1.4)  # in two seconds
    own.fit("cuda:0")
    assert system.number == 2  # the network does not compute here
    own.fit(torch.device("cpu"))
    assert system.number == 1
    system.go_on(0.1, own=0.1, others=0)
    own.fit("cpu")
    assert system.number == 1  # too soon
    system.go_on(1, own=1, others=0)
    own.fit("cpu")
    assert system.number == 2


@pytest.mark.parametrize("value, number", [("2", 2), ("", 1), ("0", 1), ("many", 1)])
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_the_user_has_set_stays(system, monkeypatch, name, value, number):
    monkeypatch.setenv(name, value)
    own = threads.Threads()
    system.go_on(1, own=1, others=1)
    own.fit("cpu")
    assert system.number == number


def test_nothing_changes_where_the_system_does_not_say_what_the_cpus_do(system):
    system.stat.unlink()
    own = threads.Threads()
    system.clock += 1
    own.fit("cpu")
    assert system.number == 2


def test_each_layer_asks_on_its_way_forward_and_back(monkeypatch):
    """A step may take long beside other programs: it does not wait for the next one."""
    asked, model = [], tiny()  # of two layers
    monkeypatch.setattr(threads.THREADS, "fit", lambda device: asked.append(str(device)))
    with torch.no_grad():
        decoder = Decoder(model)
        decoder.reserve([[1, 2], [3]], 2, 4)
        decoder.prefill([[1, 2], [3]])
        decoder.step([[4], [5]])
    assert asked == ["cpu"] * 4
    asked.clear()
    loss = model(torch.tensor([1, 2, 3]), [3]).sum()
    assert asked == ["cpu"] * 2
    loss.backward()
    assert asked == ["cpu"] * 4

"""Samples drawn while files are read: the same ones, in the same order, as from a list of all."""

import random

import numpy as np
import pytest

from plumbing.corpus.corpus import Sample
from plumbing.corpus.drawing import Checksum, Draw, Tally, draw
from plumbing.run.record import checksum

PAIR = ("en", "it")
SAMPLES = [Sample(PAIR, f"open {i % 30} è\u2028'\"", f"apri {i % 30}") for i in range(100)]


def tally(samples, chosen=True, keep=False, keep_blank=False):
    found = Tally(chosen, keep, keep_blank)
    for sample in samples:
        found.add(sample)
    return found


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000])
@pytest.mark.parametrize("pairs", [0, 1, 10, 5000])
def test_the_draw_is_that_of_a_shuffled_list(n, pairs):
    """As it was when all samples were held: a run that was begun then can be gone on with."""
    for seed in (1, 2):
        shuffled = list(range(n))
        random.Random(f"{seed} {PAIR}").shuffle(shuffled)
        assert list(draw(n, pairs, seed, PAIR)) == shuffled[: pairs or None]


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_the_checksum_of_items_one_at_a_time_is_that_of_the_list(n):
    assert Checksum(SAMPLES[:n]).value() == checksum(SAMPLES[:n])
    other = [SAMPLES[0]._replace(others=("x", "\ud800")), 3, "a', 'b"]
    assert Checksum(other).value() == checksum(other)


def test_a_tally_counts_what_it_does_not_keep():
    blank = Sample(PAIR, "", "vuoto")
    found = tally([*SAMPLES, blank])
    assert (found.count, found.blank, found.kept) == (100, 1, None)
    assert found.duplicates() == 100 - len(set(SAMPLES)) == 70
    assert tally(SAMPLES + [blank], keep=True).kept == SAMPLES
    assert tally([blank] + SAMPLES, keep=True, keep_blank=True).kept == [blank] + SAMPLES
    assert tally([]).duplicates() == tally([blank]).duplicates() == 0
    unchosen = tally(SAMPLES, chosen=False)
    assert unchosen.count == 100 and unchosen.hashes is unchosen.kept is unchosen.checksum is None


@pytest.mark.parametrize("pairs", [1, 7, 100, 300])
def test_a_second_pass_fetches_what_was_drawn_in_the_order_of_the_draw(pairs):
    found = Draw(tally(SAMPLES), pairs, 3, PAIR)
    assert all(found.offer(sample) for sample in SAMPLES) and found.next is None
    assert found.samples == [SAMPLES[i] for i in draw(100, pairs, 3, PAIR)]
    assert found.samples.crc32 == checksum(SAMPLES)


def test_a_sample_that_is_another_one_now_is_noticed_if_it_was_drawn():
    changed = [sample._replace(target="altro") for sample in SAMPLES]
    found = Draw(tally(SAMPLES), 10, 1, PAIR)
    drawn = set(draw(100, 10, 1, PAIR))
    assert [n for n, sample in enumerate(changed) if not found.offer(sample)] == sorted(drawn)
    shorter = Draw(tally(SAMPLES), 10, 1, PAIR)
    assert all(map(shorter.offer, SAMPLES[: max(drawn)])) and shorter.next is not None


def test_hashes_are_8_bytes_each():
    assert np.frombuffer(tally(SAMPLES).hashes, np.int64).nbytes == 800

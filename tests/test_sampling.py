"""Which samples a step visits."""

from collections import namedtuple
from itertools import pairwise

import pytest

from plumbing.sampling import pack, visits


def test_every_epoch_is_a_new_permutation_of_all_samples(encoded):
    n = len(encoded.samples)
    first, second = (
        [
            item[0]
            for step in range(e * 4, e * 4 + 4)
            for item in encoded.of_step(step, n // 4, 2 * n, seed=1)
        ]
        for e in (0, 1)
    )
    assert n % 4 == 0 and set(first) == set(second) and len(set(first)) == n and first != second
    # whatever was asked before
    assert [i[0] for i in encoded.of_step(3, n // 4, 2 * n, seed=1)] == first[-n // 4 :]
    # the last step is what is left, not a full batch
    assert len(encoded.of_step(1, n - 5, n + 3, seed=1)) == 8


@pytest.mark.parametrize("tokens", [1, 7, 10, 10**6])
def test_packing_keeps_the_order_and_the_budget(tokens):
    Item = namedtuple("Item", "tokens")
    items = [Item(n) for n in (3, 3, 4, 5, 2, 9, 1)]
    groups = pack(items, tokens)
    assert [item for group in groups for item in group] == items and all(groups)
    assert all(sum(x.tokens for x in g) <= tokens or len(g) == 1 for g in groups)
    for a, b in pairwise(groups):  # no group has room for the next item
        assert sum(x.tokens for x in a) + b[0].tokens > tokens


def test_visits_cover_every_sample_once_an_epoch_and_end_with_the_total():
    for n, batch, total in [(7, 3, 21), (7, 7, 10), (5, 2, 12)]:
        steps = [visits(step, batch, total, n, seed=1) for step in range(-(-total // batch))]
        flat = [i for step in steps for i in step]
        assert len(flat) == total and all(len(step) == batch for step in steps[:-1])
        for epoch in range(total // n):
            assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert visits(2, 3, 21, 7, seed=1) != visits(2, 3, 21, 7, seed=2)

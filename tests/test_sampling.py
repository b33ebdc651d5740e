"""Which samples a step visits."""

from collections import namedtuple
from itertools import pairwise

import pytest

from plumbing.corpus.sampling import deal, pack, visits


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
        numbers = [range(i, min(i + batch, total)) for i in range(0, total, batch)]
        steps = [visits(some, n, seed=1) for some in numbers]
        flat = [i for step in steps for i in step]
        assert len(flat) == total and all(len(step) == batch for step in steps[:-1])
        for epoch in range(total // n):
            assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert visits(range(6, 9), 7, seed=1) != visits(range(6, 9), 7, seed=2)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_dealing_gives_every_item_to_one_process_and_shares_alike(world):
    items = [f"item {i}" for i in range(50)]
    sizes = [(i * 37) % 101 for i in range(50)]
    shares = deal(items, sizes, world)
    assert sorted(sum(shares, [])) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    total = [sum(sizes[items.index(item)] for item in share) for share in shares]
    assert max(total) - min(total) <= max(sizes)
    if world == 1:
        assert [sizes[items.index(item)] for item in shares[0]] == sorted(sizes)


def test_a_few_items_a_turn_do_not_all_go_to_the_first_process():
    turns = [deal(["only"], [3], 4, turn) for turn in range(8)]
    counts = [sum(len(shares[rank]) for shares in turns) for rank in range(4)]
    assert counts == [2, 2, 2, 2] and all(sum(map(len, shares)) == 1 for shares in turns)
    assert deal([], [], 2) == [[], []]

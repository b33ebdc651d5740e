"""Which samples a step visits, which go through the model together, and in which process."""

import functools
import random


def visits(numbers: range, n: int, seed: object) -> list[int]:
    """Which of n samples the visits of these numbers are to; every n of them are an epoch, a new
    permutation."""
    return [permutation(n, f"{seed} epoch {i // n}")[i % n] for i in numbers]


@functools.lru_cache(4)
def permutation(n: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(n), n)


def pack(items: list, tokens: int) -> list[list]:
    """Neighbours in groups of at most `tokens` tokens, as item.tokens counts them, or of one."""
    groups, size = [], 0
    for item in items:
        if not groups or size + item.tokens > tokens:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.tokens
    return groups


def deal(items: list, sizes: list[int], world: int, turn: int = 0) -> list[list]:
    """Items dealt over `world` processes like cards, smallest first, so that the shares are alike
    in number and in size. Dealing begins with another process each turn: with few items a turn,
    otherwise, the first process would get them all."""
    order = sorted(range(len(items)), key=sizes.__getitem__)
    dealt = [items[i] for i in order]
    return [dealt[(rank - turn) % world :: world] for rank in range(world)]


def whole_rows(samples: list) -> list[tuple]:
    """(its number, the sample) of those without a blank side."""
    return [(n, sample) for n, sample in enumerate(samples) if not sample.blank]


def share_rows(corpus: dict, rank: int, world: int) -> dict:
    """{direction: the numbers of a process's share of its rows without a blank side}, of those that
    it has some of."""
    shares = {}
    for turn, (direction, samples) in enumerate(corpus.items()):
        rows = whole_rows(samples)
        lengths = [len(sample.source) for _, sample in rows]
        if share := deal([n for n, _ in rows], lengths, world, turn)[rank]:
            shares[direction] = share
    return shares

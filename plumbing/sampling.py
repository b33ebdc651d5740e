"""Which samples a step visits, which go through the model together, and in which process."""

import functools
import random


def visits(step: int, batch_size: int, total: int, n: int, seed: int) -> list[int]:
    """Which of n samples one step visits, out of `total` visits. Every epoch is a new permutation;
    the last step is shorter."""
    numbers = range(step * batch_size, min((step + 1) * batch_size, total))
    return [permutation(n, f"{seed} epoch {i // n}")[i % n] for i in numbers]


@functools.lru_cache(2)
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
    """{direction: the numbers of a process's share of its rows without a blank side}."""
    shares = {}
    for turn, (direction, samples) in enumerate(corpus.items()):
        rows = whole_rows(samples)
        lengths = [len(sample.source) for _, sample in rows]
        shares[direction] = deal([n for n, _ in rows], lengths, world, turn)[rank]
    return shares

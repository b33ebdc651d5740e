"""The order in which samples are visited: a function of the seed and the step alone."""

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

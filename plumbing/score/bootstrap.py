"""How far a score may be chance: bootstraps over sentences as SacreBLEU does, with its seed."""

import functools
import os

import numpy as np

from plumbing.base.errors import require

RESAMPLES = 1000
SIGNIFICANT = 0.05


@functools.lru_cache(64)
def draws(n: int, seed: int | None) -> np.ndarray:
    """[RESAMPLES, n], which of n sentences each bootstrap takes."""
    return np.random.default_rng(seed).choice(n, size=(RESAMPLES, n), replace=True)


def resamples(n: int) -> np.ndarray:
    """[RESAMPLES, n], the numbers of the sentences in each bootstrap: the same ones for every
    system and metric. The variable SACREBLEU_SEED sets the seed, as it does for SacreBLEU."""
    return draws(n, read_seed())


def read_seed() -> int | None:
    """SACREBLEU_SEED, or SacreBLEU's own seed; None: another one every time. Raises InputError."""
    seed = os.environ.get("SACREBLEU_SEED", "12345").lower()
    expected = "expected a whole number from 0 on, or none"
    require(seed == "none" or seed.isdecimal(), f"SACREBLEU_SEED is {seed!r}; {expected}")
    return None if seed == "none" else int(seed)


def resampled_share(flags: list[bool]) -> np.ndarray:
    """[RESAMPLES], the % of the sentences that have a flag in each bootstrap."""
    values = np.array(flags, "float64")
    return 100 * values[resamples(len(values))].mean(1)


def half_width(scores: np.ndarray) -> float:
    """Half of the interval that holds 95 % of the resampled scores."""
    ordered, cut = np.sort(scores), len(scores) // 40
    return float(0.5 * (ordered[-cut - 1] - ordered[cut]))


def p_value(first: np.ndarray, other: np.ndarray, difference: float) -> float:
    """How often two systems would differ by `difference`, the real one, by chance: of the same
    resamples of both, [RESAMPLES] each, how many differ from one another by so much more than on
    average (Koehn 2004, as SacreBLEU's paired bootstrap has it)."""
    differences = np.abs(other - first)
    more = int(np.sum(differences - differences.mean() > abs(difference)))
    return (more + 1) / (len(differences) + 1)

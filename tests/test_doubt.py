"""Bootstraps over sentences."""

import numpy as np
import pytest

from plumbing.score.bootstrap import RESAMPLES, draws, half_width, p_value, resampled_share, resamples
from plumbing.base.errors import InputError


def test_the_same_sentences_are_drawn_for_every_system_and_the_seed_is_the_users(monkeypatch):
    first = resamples(30)
    assert first.shape == (RESAMPLES, 30) and (first == resamples(30)).all()
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    assert (resamples(30) == draws(30, 7)).all()
    assert not (draws(30, 7) == first).all()


@pytest.mark.parametrize("seed", ["abc", "-3", "1.5", ""])
def test_a_seed_that_is_none_is_refused(monkeypatch, seed):
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    with pytest.raises(InputError, match="SACREBLEU_SEED is .*; expected a whole number"):
        resamples(3)


def test_an_interval_covers_what_it_says():
    """A share of 30 % of 200 sentences: the binomial's 95 % interval is 6.4 wide on each side."""
    flags = [True] * 60 + [False] * 140
    shares = resampled_share(flags)
    assert shares.mean() == pytest.approx(30, abs=0.4)
    assert half_width(shares) == pytest.approx(6.4, abs=0.5)
    assert half_width(resampled_share([True] * 9)) == 0


def test_a_difference_is_significant_where_it_is_and_chance_where_it_is_not():
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.5
    worse = right & (rng.random(400) < 0.7)
    alike = right.copy()
    alike[:4] = ~alike[:4]
    first, other, same = (resampled_share(list(x)) for x in (right, worse, alike))
    assert p_value(first, other, 100 * (worse.mean() - right.mean())) < 0.01
    assert p_value(first, same, 100 * (alike.mean() - right.mean())) > 0.05
    assert p_value(first, first, 0.0) == 1 / (RESAMPLES + 1)  # as SacreBLEU has it

"""Eq. 1 to 3 against their formulas, in closed form and by gradcheck."""

import math

import pytest
import torch

import loss


def logits_with_margin(margin, dtype=torch.float32):
    """One position over 5 tokens: token 2 leads all others together by `margin` nats."""
    z = torch.zeros(1, 5, dtype=dtype)
    z[0, 2] = margin + math.log(4)
    return z.requires_grad_()


def test_sums_and_counts_are_the_equations_term_by_term():
    z, y = torch.randn(7, 11, dtype=torch.float64), torch.randint(11, (7,))
    p = z.softmax(-1)[torch.arange(7), y]
    assert loss.mle(z, y)[1] == loss.unlikelihood(z, y)[1] == 7
    torch.testing.assert_close(loss.mle(z, y)[0], -p.log().sum())
    torch.testing.assert_close(loss.unlikelihood(z, y)[0], -(1 - p).log().sum())


@pytest.mark.parametrize("margin", [0.0, 20.0, 50.0])
def test_unlikelihood_is_exact_and_its_gradient_alive_where_p_rounds_to_one(margin):
    z = logits_with_margin(margin)
    value, _ = loss.unlikelihood(z, torch.tensor([2]))
    value.backward()
    assert value.item() == pytest.approx(math.log1p(math.exp(margin)), rel=1e-6)
    p = 1 / (1 + math.exp(-margin))
    assert z.grad[0, 2].item() == pytest.approx(p, rel=1e-5)  # dL/dz_y = p
    # dL/dz_j = -p p_j / (1 - p)
    assert z.grad[0, [0, 1, 3, 4]].sum().item() == pytest.approx(-p, rel=1e-5)


def test_the_naive_form_is_the_same_until_p_rounds_to_one():
    y = torch.tensor([2])
    small, large = logits_with_margin(3.0), logits_with_margin(20.0)
    torch.testing.assert_close(loss.log_not_p_naive(small, y), loss.log_not_p(small, y))
    assert loss.log_not_p_naive(large, y).isinf() and loss.log_not_p(large, y).isfinite()


@pytest.mark.parametrize("margin", [-40.0, 0.0, 20.0, 50.0])
def test_gradcheck_in_float64(margin):
    z = logits_with_margin(margin, torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss.unlikelihood(z, torch.tensor([2]))[0], z)
    assert torch.autograd.gradcheck(lambda z: loss.mle(z, torch.tensor([2]))[0], z)


def test_half_precision_logits_are_summed_in_fp32():
    z, y = torch.randn(300, 50).bfloat16(), torch.randint(50, (300,))
    for term in (loss.mle, loss.unlikelihood):
        assert term(z, y)[0].dtype == torch.float32
        torch.testing.assert_close(term(z, y)[0], term(z.float(), y)[0])


def test_objective_with_alpha_zero_is_stage_one_and_alpha_weighs_the_unlikelihood_alone():
    m, u = torch.tensor(12.0), torch.tensor(5.0)
    assert loss.language_aware(m, 4, u, 2, 0.0) == 3.0
    assert loss.language_aware(m, 4, u, 2, 0.5) == 3.0 + 0.5 * 2.5
    # no twin: no division by zero
    assert loss.language_aware(m, 4, torch.tensor(0.0), 0, 0.5) == 3.0


def test_no_tokens_give_zero_not_nan():
    empty, none = torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)
    assert loss.mle(empty, none)[0] == loss.unlikelihood(empty, none)[0] == 0

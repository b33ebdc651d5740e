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


def pairs_of_two():
    """Logits under I and I~ of two pairs, of 3 and 2 tokens, with their weights."""
    torch.manual_seed(0)
    right, wrong = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in "ab")
    w = torch.tensor([1.0, 2.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    return right, wrong, torch.tensor([0, 6, 3, 3, 1]), w, torch.tensor([0, 0, 0, 1, 1])


def gap_by_hand(right, wrong, y, w, tokens):
    terms = [
        w[t] * (right[t].softmax(-1)[y[t]].log() - wrong[t].softmax(-1)[y[t]].log()) for t in tokens
    ]
    return sum(terms) / sum(w[t] for t in tokens)


def test_penalties_of_a_gap_are_their_formulas_pair_by_pair():
    right, wrong, y, w, pair = pairs_of_two()
    gaps = [gap_by_hand(right, wrong, y, w, tokens) for tokens in ((0, 1, 2), (3, 4))]
    value, weight = loss.preference(right, wrong, y, w, pair)
    expected = sum(n * torch.log(1 + torch.exp(-g)) for n, g in zip((4, 1), gaps, strict=True))
    torch.testing.assert_close(value, expected)
    assert weight == w.sum()
    value, _ = loss.hinge(right, wrong, y, w, pair, margin=0.5)
    expected = sum(n * max(0, 0.5 - g.item()) for n, g in zip((4, 1), gaps, strict=True))
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("penalty", [loss.preference, loss.hinge])
def test_penalties_of_a_gap_have_right_gradients_and_none_where_both_are_alike(penalty):
    right, wrong, *rest = pairs_of_two()
    assert torch.autograd.gradcheck(lambda a, b: penalty(a, b, *rest)[0], (right, wrong))
    z = right.detach().requires_grad_()
    penalty(z, z, *rest)[0].backward()
    torch.testing.assert_close(z.grad, torch.zeros_like(z.grad))


@pytest.mark.parametrize("penalty", [loss.preference, loss.hinge])
def test_weights_of_zero_and_no_pairs_give_zero_not_nan(penalty):
    right, wrong, y, w, pair = pairs_of_two()
    value, weight = penalty(right, wrong, y, 0 * w, pair)
    value.backward()
    assert value == weight == 0 and right.grad.abs().sum() == 0
    assert penalty(right[:0], wrong[:0], y[:0], w[:0], pair[:0])[0] == 0

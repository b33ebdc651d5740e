"""The paper's loss (arXiv 2403.14399, Eq. 1 to 3): pure functions.

Sums over tokens, not means: a step divides the sum over its whole batch by the weight of its whole
batch, so how the batch was split into micro-batches and over processes cannot change the gradient.
Symbols in shapes: R response tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mle(logits: Tensor, y: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
    """Eq. 1, L_MLE = - sum_t log p(y_t | I, x, y_<t).

    logits [R, V] under the right instruction I, at the positions before each response token; y [R]
    the response tokens; w [R] their weights, by default 1. Returns (sum of w_t times the loss in
    nats, a fp32 or fp64 scalar; sum of w)."""
    return weighted_sum(-log_p(logits, y), w)


def unlikelihood(logits: Tensor, y: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
    """Eq. 2, L_UL = - sum_t log(1 - p(y_t | I~, x, y_<t)).

    logits [R, V] under the conflicting instruction I~; y [R] the same response tokens; w and what
    is returned as in mle."""
    return weighted_sum(-log_not_p(logits, y), w)


def language_aware(mle_sum, mle_weight, ul_sum, ul_weight, alpha: float):
    """Eq. 3, L = L_MLE + alpha * L_UL, each a weighted mean over its own response tokens.

    The sums may be of one micro-batch, the weights are the whole step's. Stage 1: alpha = 0."""
    return mle_sum / mle_weight + alpha * ul_sum / (ul_weight or 1)  # 0 where there is no twin


def log_p(logits: Tensor, y: Tensor) -> Tensor:
    """log p(y_t) [R], in fp32 at least, from logits [R, V]."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(z, y, reduction="none")


def log_not_p(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p(y_t)) [R], in fp32 at least, from logits [R, V].

    The naive form is log_not_p_naive: where p rounds to 1, which is where the model is most wrong,
    it gives -inf and a gradient of NaN. The authors' code clamps 1 - p at 1e-9, which gives a
    gradient of 0 there. Here, with m = z_y - logsumexp(z without z_y), the margin of y over all
    other tokens, p = sigmoid(m) and log(1 - p) = logsigmoid(-m), which is accurate everywhere. The
    gradient of -log(1 - p) in m is p itself."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = z.scatter(-1, y[:, None], -torch.inf).logsumexp(-1)  # [R]
    margin = z.gather(-1, y[:, None])[:, 0] - others  # [R]
    return F.logsigmoid(-margin)


def log_not_p_naive(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p(y_t)) [R] as the paper writes it; for comparison alone (tests/test_loss.py).

    In fp32 1 - p is 0 from a margin of 16 to 17 nats on, by the size of the vocabulary."""
    p = logits.softmax(-1).gather(-1, y[:, None])[:, 0]  # [R]
    return torch.log(1 - p)


def weighted_sum(losses: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """(sum of the losses [R] times their weights, sum of the weights)."""
    return (losses.sum(), losses.numel()) if w is None else ((losses * w).sum(), w.sum())

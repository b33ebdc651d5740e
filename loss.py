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


def preference(right, wrong, y, w, pair) -> tuple[Tensor, Tensor]:
    """Instead of Eq. 2: - log sigmoid(gap), gap = mean_t log p(y_t | I, x, y_<t) - that under I~.
    SimPO (Meng et al. 2024, arXiv 2405.14734) with beta 1 and gamma 0, but of one response under
    two instructions and not of two responses.

    right, wrong [R, V]: logits of the same response tokens under I and I~; y [R] these tokens; w
    [R] their weights; pair [R], 0 and up: which pair a token is of. Returns (sum over pairs of the
    loss times the weight of the pair's tokens; sum of w)."""
    gap, weight = gaps(right, wrong, y, w, pair)
    return weighted_sum(-F.logsigmoid(gap), weight)


def hinge(right, wrong, y, w, pair, margin: float = 2.0) -> tuple[Tensor, Tensor]:
    """Instead of Eq. 2: max(0, margin - gap), margin in nats. The rest as in preference."""
    gap, weight = gaps(right, wrong, y, w, pair)
    return weighted_sum((margin - gap).clamp(min=0), weight)


def gaps(right, wrong, y, w, pair) -> tuple[Tensor, Tensor]:
    """(gap, weight) of each pair, both [R]; there are fewer pairs, and the rest weighs nothing."""
    ratio = log_p(right, y) - log_p(wrong, y)  # [R]
    zeros = torch.zeros_like(ratio)
    weight = zeros.index_add(0, pair, w.to(ratio.dtype))
    return zeros.index_add(0, pair, ratio * w) / weight.where(weight > 0, 1), weight


def language_aware(mle_sum, mle_weight, ul_sum, ul_weight, alpha: float):
    """Eq. 3, L = L_MLE + alpha * L_UL, each a weighted mean over its own response tokens.

    The sums may be of one micro-batch, the weights are the whole step's. Stage 1: alpha = 0."""
    return mle_sum / (mle_weight or 1) + alpha * ul_sum / (ul_weight or 1)


def log_p(logits: Tensor, y: Tensor) -> Tensor:
    """log p(y_t) [R], in fp32 at least, from logits [R, V]."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(z, y, reduction="none")


def log_not_p(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p(y_t)) [R], in fp32 at least, from logits [R, V].

    With m = z_y - logsumexp(z without z_y), the margin of y over all other tokens, p = sigmoid(m)
    and log(1 - p) = logsigmoid(-m): exact where p rounds to 1, which is where the model is most
    wrong. The gradient of -log(1 - p) in m is p itself."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = z.scatter(-1, y[:, None], -torch.inf).logsumexp(-1)  # [R]
    margin = z.gather(-1, y[:, None])[:, 0] - others  # [R]
    return F.logsigmoid(-margin)


def weighted_sum(losses: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """(sum of the losses [R] times their weights, sum of the weights)."""
    return (losses.sum(), losses.numel()) if w is None else ((losses * w).sum(), w.sum())

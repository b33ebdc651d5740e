"""What competes with Eq. 2, plugged into train.py: other penalties, and another kind of conflict.

    python -m experiments.penalties --stage 2 --penalty hinge --alpha 0.2
    python -m experiments.penalties --stage 2 --conflict keep-source

All flags of train.py count. In log.jsonl the penalty stands under "ul".
"""

from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from data import CONFLICTS, Direction, MicroBatch
from loss import log_p, mle, weighted_sum
from plumbing.base.flags import option, run_script


def keep_source(direction: Direction, tuned: dict) -> dict[Direction, int]:
    """Instructions with the same source and another of the target languages, perhaps of no sample:
    a zero-shot direction has then been asked for in tuning, with a wrong answer."""
    targets = Counter()
    for (_, target), n in tuned.items():
        targets[target] += n
    return {(direction[0], t): n for t, n in targets.items() if t not in direction}


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


PENALTIES = {"unlikelihood": None, "preference": preference, "hinge": hinge}


def twins_of(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Of each token of a twin: (where it is among the positives' tokens, which twin it is of)."""
    same, pair, of_positives, number = [], [], 0, 0
    for positive, twin in batch.pairs:
        if twin:
            same += range(of_positives, of_positives + len(twin.response))
            pair += [number] * len(twin.response)
            number += 1
        of_positives += len(positive.response)
    return torch.tensor(same, dtype=torch.long), torch.tensor(pair, dtype=torch.long)


def make_loss_sums(penalty):
    """train.py's loss_sums with another penalty than Eq. 2."""

    def loss_sums(logits: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        y, w, n = batch.y.to(logits.device), batch.weight.to(logits.device), batch.positives
        mle_sum, _ = mle(logits[:n], y[:n], w[:n])
        same, pair = (t.to(logits.device) for t in twins_of(batch))
        penalty_sum, _ = penalty(logits[same], logits[n:], y[n:], w[n:], pair)
        return mle_sum, penalty_sum

    return loss_sums


CONFLICTS["keep-source"] = keep_source  # one more name of --conflict


@dataclass
class Settings(train.Settings):
    penalty: str = option("unlikelihood", "in place of L_UL", "method", choices=PENALTIES)


def main(s: Settings) -> None:
    """Train with the penalty. Raises InputError."""
    penalty = PENALTIES[s.penalty]
    train.main(s, make_loss_sums(penalty) if penalty else train.loss_sums)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)

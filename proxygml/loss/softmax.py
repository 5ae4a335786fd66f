"""Cross-entropies over classes that may be divided over processes, and their slopes by the classes' scores."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from proxygml.loss.sharded import Own, Shard


def class_loss(logits: Tensor, own: Own, shard: Shard | None) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of logits (M, C), which are used up, and its slopes by them, (M, C)."""
    logits -= row_maximum(logits, shard)
    own_logit = own.taken(logits)
    slope = own.put_(logits.exp_(), 0.0)
    own_logit, others = row_sums(own_logit, slope.sum(dim=1, keepdim=True), shard)
    own.put_(slope, -others).div_((others + own_logit.exp()).mul_(len(logits)))
    return cross_entropy(own_logit, others), slope


def row_maximum(logits: Tensor, shard: Shard | None) -> Tensor:
    """The largest logit of each row over all processes, (M, 1), of this process's (M, C)."""
    # amax refuses rows of length 0, which a process has that owns no class, or none of whose proxies is kept.
    highest = logits.amax(dim=1, keepdim=True) if logits.shape[1] else logits.new_full((len(logits), 1), -math.inf)
    return highest if shard is None else shard.maximum_(highest)


def row_sums(own_logit: Tensor, others: Tensor, shard: Shard | None) -> tuple[Tensor, Tensor]:
    """The own class's logit and the sum of the others' exponentials, each (M, 1), over all processes.

    On a process that does not own the class, `own_logit` is 0.
    """
    if shard is None:
        return own_logit, others
    both = shard.sum_(torch.cat([own_logit, others], dim=1))
    return both[:, :1], both[:, 1:]


def cross_entropy(own_logit: Tensor, others: Tensor) -> Tensor:
    """Mean of -log(exp(own) / (exp(own) + others)), each (M, 1).

    The own class's softmax - 1 is computed as minus the sum of the others, so that a small loss keeps its digits.
    """
    return F.softplus(others.log() - own_logit).mean()

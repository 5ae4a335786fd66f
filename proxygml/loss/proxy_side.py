"""The edges of the sub-graph read from the proxies' side: each class looks at the samples that keep its proxies.

The paper classifies a sample over the proxies that it keeps: a softmax over the classes of a row. Here each class sorts
its own samples from the others that keep a proxy of it, as Proxy-Anchor (Kim et al. 2020) does with all samples and one
proxy a class. The combination is ours. With Z(x, c) the mean of the kept similarities of sample x to the proxies of
class c, which exists only where an edge is kept, a the scale and d the margin, the loss is

      mean over the classes of the batch of log(1 + sum over their samples of exp(-a (Z - d)))
    + mean over all C classes of log(1 + sum over other classes' samples with a kept edge of exp(a (Z + d))).

A class's terms need the samples of the batch and its own proxies alone. So with classes divided over processes, all
that is exchanged are three numbers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from proxygml.loss.sharded import Own, Shard


def pull(own_scores: Tensor, own: Own, scale: float, margin: float, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The term of each class for its own samples.

    Args:
        own_scores: (M, 1), Z of each sample and its own class; any number where another process owns the class.
        own: each sample's class among this process's.
        scale: a.
        margin: d.
        num_classes: how many classes this process owns.

    Returns:
        The sum over the classes of the batch that this process owns, a scalar; how many they are, a scalar; and the
        slopes of the sum by the scores, (M, 1).
    """
    if num_classes == 0:
        return own_scores.sum() * 0, own_scores.new_zeros(()), torch.zeros_like(own_scores)
    logits = -scale * (own_scores - margin)
    if own.owned is not None:
        logits = torch.where(own.owned, logits, -math.inf)
    losses, slopes = _one_by_column(logits, own.places, num_classes)
    ones = torch.ones_like(logits) if own.owned is None else own.owned.to(logits.dtype)
    present = logits.new_zeros(num_classes).scatter_add_(0, own.places.flatten(), ones.flatten()) > 0
    return losses.sum(), present.sum().to(logits.dtype), slopes.mul_(-scale)


def push(logits: Tensor, columns: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """The term of each class for the samples of other classes.

    Args:
        logits: a (Z + d), (M, e); -inf where no edge is kept.
        columns: the class of each logit among this process's, (M, e) int64. None: e is `num_classes`, one of each.
        num_classes: how many classes this process owns.

    Returns:
        The sum over the classes, a scalar, and its slopes by the logits, (M, e). The logits are used up.
    """
    if columns is None:
        losses, slopes = _one_in_each_column(logits)
    else:
        losses, slopes = _one_by_column(logits, columns, num_classes)
    return losses.sum(), slopes


def proxy_side_loss(
    pulled: tuple[Tensor, Tensor, Tensor], pushed: tuple[Tensor, Tensor], num_classes: int, shard: Shard | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of all processes, and its slopes by the own scores, (M, 1), and by the others' logits, (M, e)."""
    total = num_classes if shard is None else sum(shard.class_counts)
    sums = torch.stack([pulled[0], pulled[1], pushed[0]])
    if shard is not None:
        shard.sum_(sums)
    present = sums[1].clamp(min=1)
    return sums[0] / present + sums[2] / total, pulled[2].div_(present), pushed[1].div_(total)


def _one_in_each_column(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + sum of exp) of each column of (M, C), (C,), and its slopes (M, C), which overwrite the logits."""
    highest = logits.amax(dim=0).clamp_(min=torch.finfo(logits.dtype).min)
    powers = logits.sub_(highest).exp_()
    sums = powers.sum(dim=0)
    return _softplus(highest, sums, powers, slice(None))


def _one_by_column(logits: Tensor, columns: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """The same where columns (M, e) say which column each logit (M, e) belongs to."""
    flat = columns.flatten()
    highest = logits.new_full((num_columns,), torch.finfo(logits.dtype).min)
    highest.scatter_reduce_(0, flat, logits.flatten(), "amax")
    powers = (logits - highest[columns]).exp_()
    sums = logits.new_zeros(num_columns).scatter_add_(0, flat, powers.flatten())
    return _softplus(highest, sums, powers, columns)


def _softplus(highest: Tensor, sums: Tensor, powers: Tensor, columns: Tensor | slice) -> tuple[Tensor, Tensor]:
    """log(1 + sum of exp(logits)) from the largest logit of each column and the sum of exp(logits - largest)."""
    exponents = highest + sums.log()  # -inf where no sample keeps an edge: the loss is then 0
    factor = exponents.sigmoid() / sums.clamp(min=torch.finfo(sums.dtype).tiny)
    return F.softplus(exponents), powers.mul_(factor[columns])

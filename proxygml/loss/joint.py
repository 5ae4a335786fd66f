"""The regulariser together with the samples' loss, for as many proxies as have all their logits in memory at once.

The class sums are further rows beside the samples: one product gives the similarities of both to all proxies, and two
products give all gradients. So the proxies are read three times instead of six, and there are half as many operations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from proxygml.loss.gradients import Gradients, proxy_blocks, remove_along_
from proxygml.loss.regularizer import class_sums, spread_by_class
from proxygml.loss.sharded import Shard

LARGEST_LOGIT = 64  # exp() of it, and the sum of millions of these, stay in range without subtracting a maximum


def fits_at_once(
    samples: Tensor, proxies: Tensor, proxies_per_class: int, memory_limit: int, shard: Shard | None
) -> bool:
    """Whether the logits of all proxies may be kept: the same answer on every process, from shapes alone."""
    owned = len(proxies) // proxies_per_class if shard is None else max(shard.class_counts)
    num_classes = owned if shard is None else sum(shard.class_counts)
    rows = len(samples) + num_classes
    # A class sum has at most N unit vectors, so that no logit is larger than N.
    in_range = proxies_per_class <= LARGEST_LOGIT
    return in_range and rows * owned * proxies_per_class * samples.itemsize <= memory_limit


def joint_similarity(
    samples: Tensor, proxies: Tensor, inverse: Tensor, proxies_per_class: int, shard: Shard | None
) -> tuple[Tensor, Tensor]:
    """The samples (M, D) and below them all class sums: (M + C, D); and their products with the unit proxies.

    Args:
        samples: (M, D) of length 1.
        proxies: (C_w*N, D), of this process.
        inverse: (C_w*N,): 1 / length of each proxy; 0 for a proxy of length 0.
        proxies_per_class: N.
        shard: the processes that the C classes are divided over.
    """
    sums = class_sums(proxies, inverse, proxies_per_class)
    if shard is not None:
        sums = shard.gathered(sums, shard.class_counts)
    rows = torch.cat([samples, sums])
    similarity = rows.new_empty(len(rows), len(proxies))
    for block, part in proxy_blocks(proxies, rows.dtype):
        torch.mm(rows, part.T, out=similarity[:, block]).mul_(inverse[block])
    return rows, similarity


def joint_proxy_loss_(
    logits: Tensor, inverse: Tensor, proxies_per_class: int, weight: float, shard: Shard | None
) -> Tensor:
    """L_p from the logits (C, C_w*N) of this process's proxies, a column each.

    The logits become the slopes of weight * L_p by them, divided by the proxies' lengths. As in softmax.py, the own
    class is kept apart, so that a small loss keeps its digits.
    """
    owned = logits.shape[1] // proxies_per_class
    first = 0 if shard is None else shard.classes.start
    own = logits[first : first + owned].view(owned, owned, proxies_per_class).diagonal().T  # (C_w, N)
    own_logits = own.clone(memory_format=torch.contiguous_format).flatten()
    slopes = logits.exp_()
    own.zero_()
    others = slopes.sum(dim=0)
    count = len(logits) * proxies_per_class
    loss = F.softplus(others.log() - own_logits).sum() / count
    factor = inverse * (weight / count) / own_logits.exp_().add_(others)
    slopes.mul_(factor)
    own.copy_(others.mul_(factor).neg_().view(owned, proxies_per_class))
    return loss if shard is None else shard.sum_(loss)


def joint_gradients(
    rows: Tensor,
    proxies: Tensor,
    inverse: Tensor,
    slopes: Tensor,
    grad_loss: Tensor,
    wanted: tuple[bool, bool],
    num_samples: int,
    shard: Shard | None,
) -> Gradients:
    """The gradients by the unit samples (M, D), of all processes, and by the proxies (C_w*N, D).

    Args:
        rows: samples and class sums, as `joint_similarity` gives them.
        proxies: (C_w*N, D).
        inverse: (C_w*N,).
        slopes: (M + C, C_w*N) by the products of the rows with the proxies, for a loss of slope 1.
        grad_loss: the slope of what is differentiated by the loss.
        wanted: which of the two gradients is needed.
        num_samples: M.
        shard: the processes that the classes are divided over.
    """
    needed = slopes if wanted[1] else slopes[:num_samples]
    grad_rows = torch.zeros_like(rows[: len(needed)])
    for block, part in proxy_blocks(proxies, rows.dtype):
        grad_rows.addmm_(needed[:, block], part)
    grad_rows.mul_(grad_loss)
    if shard is not None:
        shard.sum_(grad_rows)
    if not wanted[1]:
        return grad_rows, None
    grad_sums = grad_rows[num_samples:]
    if shard is not None:
        grad_sums = grad_sums[shard.classes.start : shard.classes.stop]
    grad_proxies = spread_by_class(inverse, grad_sums).addmm_(slopes.T, rows * grad_loss)
    for block, part in proxy_blocks(proxies, rows.dtype):
        remove_along_(grad_proxies[block], part, inverse[block])
    return grad_rows[:num_samples] if wanted[0] else None, grad_proxies

"""The regulariser of ProxyGML, step 7: every proxy is classified over the whole proxy graph.

The logits (P P^T) Y are P (P^T Y), so the product needs only the sum of each class. There are too many logits to keep,
and to compute them twice takes too long. So they are computed in blocks of rows, and each block gives its gradient at
once.
"""

import torch
from torch import Tensor

from proxygml.loss.gradients import proxy_blocks
from proxygml.loss.sharded import Shard, own_classes
from proxygml.loss.softmax import class_loss


def proxy_loss(
    proxies: Tensor,
    inverse: Tensor,
    proxies_per_class: int,
    memory_limit: int,
    with_gradient: bool,
    shard: Shard | None = None,
) -> tuple[Tensor, Tensor | None]:
    """L_p over all proxies, by a plain mean cross-entropy.

    Processes exchange the class sums and their gradient, C*D numbers each; the rows are each process's own.

    Args:
        proxies: (C*N, D), of this process.
        inverse: (C*N,): 1 / length of each proxy; 0 for a proxy of length 0.
        proxies_per_class: N.
        memory_limit: bytes of a block of logits.
        with_gradient: whether the gradient is needed.
        shard: the processes that the classes are divided over.

    Returns:
        The loss, and its gradient (C*N, D) by the normalised proxies, divided by their lengths.
    """
    sums, first_class = class_sums(proxies, inverse, proxies_per_class), 0
    if shard is not None:
        sums, first_class = shard.gathered(sums, shard.class_counts), shard.classes.start
    count = len(sums) * proxies_per_class
    loss, grad_sums = sums.new_zeros(()), torch.zeros_like(sums)
    gradient = sums.new_empty(proxies.shape) if with_gradient else None
    step = min(len(proxies), max(1, memory_limit // (max(sums.shape) * sums.itemsize)))
    buffer = sums.new_empty(step, len(sums))
    for start in range(0, len(proxies), max(1, step)):
        block = slice(start, min(start + step, len(proxies)))
        part = proxies[block].to(sums.dtype)
        logits = torch.mm(part, sums.T, out=buffer[: len(part)])
        classes = torch.arange(block.start, block.stop, device=proxies.device) // proxies_per_class + first_class
        loss += _cross_entropy_(logits, inverse[block, None], classes[:, None], count)
        if gradient is not None:
            grad_sums.addmm_(logits.T, part)
            torch.mm(logits, sums, out=gradient[block])
    if shard is not None:
        shard.sum_(loss)
    if gradient is not None:
        if shard is not None:
            grad_sums = shard.sum_(grad_sums)[shard.classes.start : shard.classes.stop]
        add_by_class_(gradient, inverse, grad_sums)
    return loss, gradient


def draw_proxies(count: int, total: int, device: torch.device, shard: Shard | None) -> Tensor:
    """Different numbers of 0..total - 1, (count,) int64, drawn uniformly; the same ones on all processes."""
    drawn = torch.randperm(total, device=device)[:count]
    return drawn if shard is None else shard.first_(drawn)


def sampled_proxy_loss(
    proxies: Tensor,
    inverse: Tensor,
    proxies_per_class: int,
    memory_limit: int,
    with_gradient: bool,
    sampled: Tensor,
    shard: Shard | None = None,
) -> tuple[Tensor, Tensor | None]:
    """L_p with its mean over some proxies only; each is still classified over the whole graph.

    Drawn uniformly, its expectation is L_p, and that of its gradient L_p's. Processes exchange the sampled proxies and
    their gradient, S*D numbers each.

    Args:
        proxies, inverse, proxies_per_class, memory_limit, with_gradient, shard: see `proxy_loss`.
        sampled: (S,) int64: different proxies, numbered over all processes.

    Returns:
        As `proxy_loss`.
    """
    sums = class_sums(proxies, inverse, proxies_per_class)
    first, largest = (0, len(sums)) if shard is None else (shard.classes.start, max(shard.class_counts))
    local = sampled - first * proxies_per_class
    mine = ((local >= 0) & (local < len(proxies)))[:, None]
    local = local.clamp(0, max(0, len(proxies) - 1))
    unit = sums.new_zeros(len(sampled), sums.shape[1])
    if len(proxies):
        unit = torch.where(mine, proxies[local].to(sums.dtype) * inverse[local, None], 0)
    if shard is not None:
        shard.sum_(unit)
    loss, grad_sums, grad_unit = sums.new_zeros(()), torch.zeros_like(sums), torch.empty_like(unit)
    # The same blocks on every process, whatever it owns: each block exchanges numbers.
    step = max(1, memory_limit // (max(largest, sums.shape[1]) * sums.itemsize))
    for start in range(0, len(sampled), step):
        block = slice(start, min(start + step, len(sampled)))
        share = (block.stop - block.start) / len(sampled)
        value, slope = class_loss(unit[block] @ sums.T, own_classes(sampled[block] // proxies_per_class, shard), shard)
        loss += value * share
        if with_gradient:
            torch.mm(slope.mul_(share), sums, out=grad_unit[block])
            grad_sums.addmm_(slope.T, unit[block])
    if not with_gradient:
        return loss, None
    if shard is not None:
        shard.sum_(grad_unit)
    gradient = sums.new_zeros(proxies.shape)
    if len(proxies):
        gradient.index_add_(0, local, torch.where(mine, grad_unit * inverse[local, None], 0))
    return loss, add_by_class_(gradient, inverse, grad_sums)


def class_sums(proxies: Tensor, inverse: Tensor, proxies_per_class: int) -> Tensor:
    """P^T Y: the sum of each class's normalised proxies, (C, D), of proxies (C*N, D) with their inverse lengths."""
    num_classes = len(proxies) // proxies_per_class
    sums = inverse.new_empty(num_classes, 1, proxies.shape[1])
    by_class = proxies.view(num_classes, proxies_per_class, proxies.shape[1])
    for block, part in proxy_blocks(by_class, inverse.dtype):
        torch.bmm(inverse.view(num_classes, 1, proxies_per_class)[block], part, out=sums[block])
    return sums.squeeze(1)


def spread_by_class(inverse: Tensor, grad_sums: Tensor) -> Tensor:
    """What each proxy gets from the gradient of its class's sum, (C, D), divided by the proxy's length: (C*N, D)."""
    return (_of_class(inverse, len(grad_sums)) * grad_sums[:, None]).flatten(0, 1)


def add_by_class_(gradient: Tensor, inverse: Tensor, grad_sums: Tensor) -> Tensor:
    """Add to each proxy's gradient (C*N, D) that of its class's sum, (C, D), divided by the proxy's length."""
    factors = _of_class(inverse, len(grad_sums))
    gradient.view(*factors.shape[:2], grad_sums.shape[1]).addcmul_(factors, grad_sums[:, None])
    return gradient


def _of_class(inverse: Tensor, num_classes: int) -> Tensor:
    """The inverse lengths (C*N,) by class, (C, N, 1)."""
    return inverse.view(num_classes, -1, 1) if num_classes else inverse.view(0, 1, 1)


def _cross_entropy_(logits: Tensor, factors: Tensor, classes: Tensor, count: int) -> Tensor:
    """Sum over `count` of the cross-entropies of the rows of factors * logits; the logits become its slope by them."""
    highest = logits.amax(dim=1, keepdim=True) * factors
    torch.addcmul(-highest, logits, factors, out=logits)
    own = logits.gather(1, classes)
    sums = logits.exp_().sum(dim=1, keepdim=True)
    logits.mul_(factors / (sums * count)).scatter_add_(1, classes, factors / -count)
    return (sums.log() - own).sum() / count

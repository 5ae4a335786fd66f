"""ProxyGML's loss as the paper states it, dense and obvious: the yardstick of the tests and of the benchmarks."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot_proxies(C: int, N: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Y: the one-hot labels (C*N, C) of class-major proxies."""
    return F.one_hot(torch.arange(C).repeat_interleave(N), C).to(dtype)


def dense_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    C: int,
    N: int,
    r: float,
    weight: float,
    scale: float,
    **switches: Any,
) -> Tensor:
    """Steps 1 to 8 of the paper written out with one-hot matrices."""
    Y = one_hot_proxies(C, N, torch.promote_types(embeddings.dtype, proxies.dtype)).to(embeddings.device)
    return dense_loss_of(embeddings, proxies, labels, Y, r, weight, scale, **switches)


def dense_loss_of(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    Y: Tensor,
    r: float,
    weight: float,
    scale: float,
    *,
    positive_mask: bool = True,
    mask_softmax: bool = True,
    degree_normalized: bool = False,
    direction: str = "samples",
    margin: float = 0.1,
) -> Tensor:
    """The same from a Y that is there already."""
    C, N = Y.shape[1], len(Y) // Y.shape[1]
    X, P = F.normalize(embeddings, dim=1), F.normalize(proxies, dim=1)
    proxy_labels = torch.arange(C, device=Y.device).repeat_interleave(N)
    S = X @ P.T
    positive = labels[:, None] == proxy_labels[None, :]
    k = min(max(math.ceil(r * C * N), N + 1), C * N)
    kept = torch.zeros_like(S).scatter(1, (S + 1000 * positive * positive_mask).topk(k, dim=1).indices, 1.0)
    Z = (kept * S) @ Y
    degree = kept @ Y
    if degree_normalized or direction == "proxies":
        Z = Z / degree.clamp(min=1)
    if direction == "proxies":
        own = F.one_hot(labels, C) > 0
        pull = torch.where(own, (-scale * (Z - margin)).exp(), 0).sum(dim=0)
        push = torch.where(~own & (degree > 0), (scale * (Z + margin)).exp(), 0).sum(dim=0)
        loss = pull.log1p()[own.any(dim=0)].mean() + push.log1p().mean()
        return loss if weight == 0 else loss + weight * F.cross_entropy((P @ P.T) @ Y, proxy_labels)
    present = (degree > 0) | (F.one_hot(labels, C) > 0) | (not mask_softmax)
    log_probability = (scale * Z).masked_fill(~present, -math.inf).log_softmax(dim=1)
    loss = F.nll_loss(log_probability, labels)
    if weight > 0:
        loss = loss + weight * F.cross_entropy((P @ P.T) @ Y, proxy_labels)
    return loss

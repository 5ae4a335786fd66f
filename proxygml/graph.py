"""The mathematics of ProxyGML: neighbour selection, reverse label propagation, masked cross-entropy.

Pure functions of tensors; nothing here owns a parameter, checks a user's input or knows about training.
Source: Zhu et al., "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies", NeurIPS 2020.
Proxies are class-major everywhere: rows c*N .. c*N + N - 1 of a (C*N, ...) tensor belong to class c.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbor_count(num_classes: int, proxies_per_class: int, neighbor_ratio: float) -> int:
    """How many proxies each sample keeps: the paper's k = ceil(r * C * N), evaluated from left to right as published.

    At least N + 1, so that one negative is left, and never more than there are proxies.
    """
    total = num_classes * proxies_per_class
    return min(max(math.ceil(neighbor_ratio * num_classes * proxies_per_class), proxies_per_class + 1), total)


def own_proxies(labels: Tensor, proxies_per_class: int) -> Tensor:
    """Indices (M, N) of the proxies of each sample's own class: the positive mask (step 2), as indices."""
    return labels[:, None] * proxies_per_class + torch.arange(proxies_per_class, device=labels.device)


def select_neighbors(similarity: Tensor, labels: Tensor, proxies_per_class: int, k: int) -> Tensor:
    """Step 3: the sub-graph of each sample, its own class's proxies and then the most similar others.

    Args:
        similarity: (M, C*N) similarities of samples to proxies.
        labels: (M,) int64 class of each sample.
        proxies_per_class: N.
        k: number of proxies that each sample keeps, N < k <= C*N.

    Returns:
        (M, k) int64 indices of the kept proxies, the N own ones first. No gradient flows through the choice.
    """
    own = own_proxies(labels, proxies_per_class)
    others = similarity.detach().scatter(1, own, -math.inf)
    hardest = others.topk(k - proxies_per_class, dim=1, sorted=False).indices
    return torch.cat([own, hardest], dim=1)


def propagate_labels(weights: Tensor, neighbors: Tensor, num_classes: int, proxies_per_class: int) -> Tensor:
    """Steps 4 and 5: reverse label propagation over the kept edges, then the class mask.

    A class's score is the sum of the weights of its kept proxies. A class without a kept proxy is no candidate and
    gets -inf; a class that was kept stays in, whatever its score.

    Args:
        weights: (M, k) similarities of the kept edges.
        neighbors: (M, k) int64 indices of the kept proxies.
        num_classes: C.
        proxies_per_class: N.

    Returns:
        (M, C) class scores.
    """
    classes = neighbors // proxies_per_class
    scores = weights.new_zeros(len(weights), num_classes).scatter_add(1, classes, weights)
    absent = torch.ones_like(scores, dtype=torch.bool).scatter(1, classes, False)
    return scores.masked_fill(absent, -math.inf)


def sample_loss(
    embeddings: Tensor, proxies: Tensor, labels: Tensor, proxies_per_class: int, k: int, scale: float
) -> Tensor:
    """L_s, steps 1 to 6: the mean cross-entropy of the samples over the classes of their sub-graphs.

    Args:
        embeddings: (M, D) L2-normalised.
        proxies: (C*N, D) L2-normalised, of the same dtype.
        labels: (M,) int64.
        proxies_per_class: N.
        k: number of proxies that each sample keeps.
        scale: factor on the class scores, the inverse temperature of the softmax.
    """
    similarity = embeddings @ proxies.T
    neighbors = select_neighbors(similarity, labels, proxies_per_class, k)
    scores = propagate_labels(
        similarity.gather(1, neighbors), neighbors, len(proxies) // proxies_per_class, proxies_per_class
    )
    return F.cross_entropy(scale * scores, labels)


def proxy_loss(proxies: Tensor, proxies_per_class: int) -> Tensor:
    """L_p, step 7: every proxy classified over the whole proxy graph, by a plain mean cross-entropy.

    The logits (P P^T) Y are computed as P (P^T Y): a class's column sum is all that the product needs.

    Args:
        proxies: (C*N, D) L2-normalised.
        proxies_per_class: N.
    """
    class_sums = proxies.view(-1, proxies_per_class, proxies.shape[1]).sum(dim=1)
    classes = torch.arange(len(class_sums), device=proxies.device)
    return F.cross_entropy(proxies @ class_sums.T, classes.repeat_interleave(proxies_per_class))

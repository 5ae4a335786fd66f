"""L_s, the loss of the samples over their graphs (steps 5 and 6), and its slopes by the similarities of the edges.

A masked softmax classifies each sample; or, in the other direction, each class sorts the samples (proxy_side.py).
"""

import math

import torch
from torch import Tensor

from proxygml.loss.graph import Edges, Terms, class_scores, propagate_labels, select_neighbors
from proxygml.loss.proxy_side import proxy_side_loss, pull, push
from proxygml.loss.sharded import Own, Shard, own_classes
from proxygml.loss.softmax import class_loss, cross_entropy, row_maximum, row_sums


def whole_graph_loss(similarity: Tensor, labels: Tensor, terms: Terms, shard: Shard | None) -> tuple[Tensor, Tensor]:
    """L_s where every proxy is every sample's neighbour, and its slopes by the sums of the class scores, (M, C)."""
    num_own = terms.proxies_per_class
    factor = terms.scale / (num_own if terms.degree_normalized else 1)
    scores = similarity.view(len(similarity), similarity.shape[1] // num_own, num_own).sum(dim=2).mul_(factor)
    own = own_classes(labels, shard)
    loss, slope = _proxy_side_of_all(scores, own, terms, shard) if terms.proxy_side else class_loss(scores, own, shard)
    return loss, slope.mul_(factor)


def _proxy_side_of_all(scores: Tensor, own: Own, terms: Terms, shard: Shard | None) -> tuple[Tensor, Tensor]:
    """The loss of the proxies' side where every edge is kept, and its slopes by scale * Z, (M, C), which is used up."""
    num_classes = scores.shape[1]
    pulled = pull(own.taken(scores) / terms.scale, own, terms.scale, terms.margin, num_classes)
    pushed = push(own.put_(scores.add_(terms.scale * terms.margin), -math.inf), None, num_classes)
    loss, own_slopes, slopes = proxy_side_loss(pulled, pushed, num_classes, shard)
    return loss, own.put_(slopes, own_slopes.div_(terms.scale))


def sub_graph_loss(
    similarity: Tensor, labels: Tensor, terms: Terms, shard: Shard | None
) -> tuple[Tensor, Tensor, Edges]:
    """L_s where the k nearest proxies are kept, its slopes by their similarities, (M, e), and the kept edges.

    The slope of an edge is scale / M (softmax of its class - [own class]).
    """
    num_classes = similarity.shape[1] // terms.proxies_per_class
    edges = select_neighbors(similarity, labels, terms, shard)
    if not (terms.positive_mask and terms.mask_softmax):
        return *_ablated_loss(edges, labels, num_classes, terms, shard), edges
    if terms.proxy_side:
        return *_proxy_side_of_kept(edges, labels, num_classes, terms, shard), edges
    logits, columns, degrees = propagate_labels(edges, num_classes, terms)
    own_degree = terms.proxies_per_class if terms.degree_normalized else 1
    own_logit = edges.similarity[:, : edges.own].sum(dim=1, keepdim=True).mul_(terms.scale / own_degree)
    # There are no others where there is one class.
    highest = row_maximum(logits, shard).clamp_(min=torch.finfo(logits.dtype).min)
    own_logit -= highest
    if edges.kept is not None:
        own_logit = torch.where(edges.kept[:, :1], own_logit, 0) if edges.own else torch.zeros_like(own_logit)
    slopes = logits.sub_(highest).exp_()
    own_logit, others = row_sums(own_logit, slopes.sum(dim=1, keepdim=True), shard)
    factor = (terms.scale / len(labels)) / own_logit.exp().add_(others)
    slopes.mul_(factor)
    if degrees is not None:
        slopes /= degrees
    if columns is not None:
        slopes = slopes.gather(1, columns)
    own_slopes = (others * factor).mul_(-1 / own_degree).expand(-1, edges.own)
    if edges.kept is not None:
        own_slopes = torch.where(edges.kept[:, : edges.own], own_slopes, 0)
    return cross_entropy(own_logit, others), torch.cat([own_slopes, slopes], dim=1), edges


def _proxy_side_of_kept(
    edges: Edges, labels: Tensor, num_classes: int, terms: Terms, shard: Shard | None
) -> tuple[Tensor, Tensor]:
    """The loss of the proxies' side and its slopes by the kept similarities, (M, e)."""
    num_own = terms.proxies_per_class
    logits, columns, degrees = propagate_labels(edges, num_classes, terms)
    own_scores = edges.similarity[:, : edges.own].sum(dim=1, keepdim=True).div_(num_own)
    pulled = pull(own_scores, own_classes(labels, shard), terms.scale, terms.margin, num_classes if edges.own else 0)
    classes = edges.neighbors[:, edges.own :] if columns is None else None
    logits += terms.scale * terms.margin
    pushed = push(logits, classes, num_classes)
    loss, own_slopes, slopes = proxy_side_loss(pulled, pushed, num_classes, shard)
    slopes.mul_(terms.scale)
    if degrees is not None:
        slopes /= degrees
    if columns is not None:
        slopes = slopes.gather(1, columns)
    return loss, torch.cat([own_slopes.div_(num_own).expand(-1, edges.own), slopes], dim=1)


def _ablated_loss(
    edges: Edges, labels: Tensor, num_classes: int, terms: Terms, shard: Shard | None
) -> tuple[Tensor, Tensor]:
    """L_s and its slopes, (M, e), without the positive mask, the mask softmax, or both: the paper's ablation.

    Plain, over the scores of all C classes: it is for comparing, not for speed. A class without a kept proxy has score
    0. The own class stays a candidate of the mask softmax even so (ours): there would be no cross-entropy without it.
    """
    classes = edges.neighbors // terms.proxies_per_class
    logits, degrees = class_scores(edges, classes, num_classes)
    logits.mul_(terms.scale)
    if terms.degree_normalized:
        logits /= degrees.clamp(min=1)
    own = own_classes(labels, shard)
    if terms.mask_softmax:
        absent = own.put_((degrees == 0).to(torch.uint8), 0)
        logits.masked_fill_(absent.bool(), -math.inf)
    loss, slope = class_loss(logits, own, shard)
    if terms.degree_normalized:
        slope /= degrees.clamp(min=1)
    slope = slope.gather(1, classes).mul_(terms.scale)
    return loss, slope if edges.kept is None else torch.where(edges.kept, slope, 0)

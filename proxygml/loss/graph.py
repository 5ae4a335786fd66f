"""The mathematics of ProxyGML: neighbour selection, reverse label propagation, masked cross-entropy.

Functions of tensors; nothing here owns a parameter, checks a user's input or knows about training. The gradients are in
gradients.py, the regulariser in regularizer.py and joint.py, and what processes exchange in sharded.py.
Source: Zhu et al., "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies", NeurIPS 2020.
Proxies are class-major everywhere: rows c*N .. c*N + N - 1 of a (C*N, ...) tensor belong to class c.

Proxies may have any length and a lower precision than the samples. No normalised copy of them is made: the products are
divided by their lengths. A proxy of length 0 has similarity 0 to all samples and gets no gradient.

Where the classes are divided over processes, the samples and labels are those of all processes, while C counts the
classes that this process owns. `shard` is None where one process owns all.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from proxygml.loss.gradients import (
    Gradients,
    Step,
    along_proxies,
    once_differentiable,
    proxy_blocks,
    remove_along_,
    spread_,
    step_gradients,
)
from proxygml.loss.joint import fits_at_once, joint_gradients, joint_proxy_loss_, joint_similarity
from proxygml.loss.proxy_side import proxy_side_loss, pull, push
from proxygml.loss.regularizer import proxy_loss, sampled_proxy_loss
from proxygml.loss.sharded import Own, Shard, own_classes, own_proxies
from proxygml.loss.softmax import class_loss, cross_entropy, row_maximum, row_sums


class Terms(NamedTuple):
    """What the loss is made of; see ProxyGMLLoss for what each may be."""

    proxies_per_class: int  # N
    neighbors: int  # k, how many proxies each sample keeps, of all processes': N < k <= C*N
    proxy_weight: float  # lambda
    scale: float  # factor on the samples' class scores
    sparse: bool  # whether the proxies' gradient is a sparse tensor; proxy_weight is then 0
    memory_limit: int  # bytes of a block of the regulariser's logits
    positive_mask: bool  # whether a sample's own proxies are always kept
    mask_softmax: bool  # whether the softmax is over the classes with a kept proxy alone
    degree_normalized: bool  # whether a class's score is divided by the number of its kept proxies
    proxy_side: bool  # whether each class sorts the samples that keep its proxies (proxy_side.py); normalises degrees
    margin: float  # of the proxies' side
    whole: bool  # whether every proxy is every sample's neighbour: k is C*N of all processes


class Edges(NamedTuple):
    """The sub-graph of each sample: edges to the proxies that it keeps."""

    similarity: Tensor  # (M, e)
    neighbors: Tensor  # (M, e) int64: the proxy at each edge's end
    kept: Tensor | None  # (M, e) bool: False where a place holds no edge; None where all do
    own: int  # how many of the e places, the first ones, are for the sample's own proxies


def neighbor_count(num_classes: int, proxies_per_class: int, neighbor_ratio: float) -> int:
    """How many proxies each sample keeps: the paper's k = ceil(r * C * N), evaluated from left to right as published.

    At least N + 1, so that one negative is left, and never more than there are proxies.
    """
    total = num_classes * proxies_per_class
    return min(max(math.ceil(neighbor_ratio * num_classes * proxies_per_class), proxies_per_class + 1), total)


def computing_dtype(embeddings: torch.dtype, proxies: torch.dtype) -> torch.dtype:
    """The precision of the computation: at least float32, which sums of hundreds of terms need."""
    return torch.promote_types(torch.promote_types(embeddings, proxies), torch.float32)


def unit_samples(embeddings: Tensor, proxies_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The embeddings (M, D), L2-normalised, in the precision of the computation; and 1 / length of each, (M, 1).

    Each row is scaled by its largest number first, so that squares neither overflow nor vanish. A row of only
    vanishing numbers has no direction: it becomes 0, as does its inverse length, so that it gets no gradient, which
    would be too large for the precision.
    """
    dtype = computing_dtype(embeddings.dtype, proxies_dtype)
    least = max(torch.finfo(embeddings.dtype).tiny, torch.finfo(dtype).tiny * 2**20)
    vectors = embeddings.to(dtype)
    largest = vectors.abs().amax(dim=1, keepdim=True)  # vector_norm(inf) takes a CPU ten times as long
    divisor = largest.clamp_min(least)
    scaled = vectors / divisor
    inverse = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min_(0.5).reciprocal_().mul_(largest > least)
    return scaled.mul_(inverse), inverse.div_(divisor)


def inverse_lengths(proxies: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / length of each proxy (C*N, D), computed in `dtype`: (C*N,); 0 for a proxy of length 0.

    NaN for a proxy whose squares overflow (1e19 in float32), so that the loss is NaN and does not pass it over.
    """
    lengths = torch.linalg.vector_norm(proxies, dim=1, dtype=dtype)
    lengths.masked_fill_(lengths == math.inf, math.nan)
    return torch.nan_to_num_(lengths.reciprocal_(), nan=math.nan, posinf=0.0)


def cosine_similarity(samples: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Step 1: S = X P^T, (M, C*N), of L2-normalised samples (M, D); and the proxies' inverse lengths, (C*N,)."""
    inverse = samples.new_empty(len(proxies))
    similarity = samples.new_empty(len(samples), len(proxies))
    for block, part in proxy_blocks(proxies, samples.dtype):
        inverse[block] = inverse_lengths(part, samples.dtype)
        if part.device.type == "cpu":
            # The product is faster with the proxies, which are many, as its rows.
            torch.mul((part @ samples.T).T, inverse[block], out=similarity[:, block])
        else:  # the product takes equally long either way, but reading and writing its result does not
            torch.mm(samples, part.T, out=similarity[:, block]).mul_(inverse[block])
    return similarity, inverse


def select_neighbors(similarity: Tensor, labels: Tensor, terms: Terms, shard: Shard | None = None) -> Edges:
    """Steps 2 and 3: the sub-graph of each sample, its own class's proxies and then the most similar others.

    Args:
        similarity: (M, C*N) similarities of samples to proxies. It is overwritten.
        labels: (M,) int64 class of each sample.
        terms: N, k, and whether there is a positive mask. Without one, step 2 is left out: the k most similar proxies
            are kept, of whichever class.
        shard: the processes that the classes are divided over.

    Returns:
        The kept edges; the N own ones come first, the others in no order. Which of several equally similar proxies is
        kept as the last is not defined.
    """
    if not terms.positive_mask:
        return _most_similar(similarity, terms.neighbors, shard)
    own = own_proxies(labels, terms.proxies_per_class, shard)
    own_similarity = own.taken(similarity)
    others = _most_similar(own.put_(similarity, -math.inf), terms.neighbors - terms.proxies_per_class, shard)
    if similarity.shape[1] == 0:  # this process owns no class
        return others
    kept = None
    if own.owned is not None and others.kept is not None:
        kept = torch.cat([own.owned.expand_as(own.places), others.kept], dim=1)
    return Edges(
        torch.cat([own_similarity, others.similarity], dim=1),
        torch.cat([own.places, others.neighbors], dim=1),
        kept,
        own.places.shape[1],
    )


def _most_similar(similarity: Tensor, count: int, shard: Shard | None) -> Edges:
    if shard is not None:
        return Edges(*shard.most_similar(similarity, count), own=0)
    largest = similarity.topk(count, dim=1, sorted=False)
    return Edges(largest.values, largest.indices, None, own=0)


class Candidates(NamedTuple):
    """The classes of the softmax beside a sample's own: those of which it keeps a proxy (step 5)."""

    logits: Tensor  # (M, n), -inf where a class is no candidate; with one proxy a class, a column for each other edge
    columns: Tensor | None  # (M, others) int64: the column of each other edge's class; None where it is the edge's own
    degrees: Tensor | None  # (M, n): how many edges each class has, at least 1; None where scores are sums


def propagate_labels(edges: Edges, num_classes: int, terms: Terms) -> Candidates:
    """Step 4: reverse label propagation over the kept edges; a class's score is the sum over its kept proxies."""
    similarity, neighbors = edges.similarity[:, edges.own :], edges.neighbors[:, edges.own :]
    kept = None if edges.kept is None else edges.kept[:, edges.own :]
    if terms.proxies_per_class == 1:
        logits = terms.scale * similarity
        return Candidates(logits if kept is None else logits.masked_fill_(~kept, -math.inf), None, None)
    columns, width = neighbors // terms.proxies_per_class, num_classes
    if kept is not None:  # what is not kept goes to a column of its own
        columns, width = torch.where(kept, columns, num_classes), num_classes + 1
    logits = similarity.new_full((len(similarity), width), -math.inf)
    logits.scatter_(1, columns, 0.0).scatter_add_(1, columns, similarity)
    if kept is not None:
        logits[:, -1] = -math.inf
    degrees = None
    if terms.degree_normalized:
        degrees = torch.zeros_like(logits).scatter_add_(1, columns, torch.ones_like(similarity)).clamp_(min=1)
        logits /= degrees
    return Candidates(logits.mul_(terms.scale), columns, degrees)


def class_scores(edges: Edges, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The sum of each class's kept similarities and how many they are, each (M, C); `classes` (M, e) of the edges."""
    weights, ones = edges.similarity, torch.ones_like(edges.similarity)
    if edges.kept is not None:
        weights, ones = torch.where(edges.kept, weights, 0), edges.kept.to(weights.dtype)
    blank = weights.new_zeros(len(weights), num_classes)
    return blank.scatter_add(1, classes, weights), blank.scatter_add_(1, classes, ones)


def kept_by_others(edges: Edges, labels: Tensor, num_proxies: int, proxies_per_class: int, first_class: int) -> Tensor:
    """How many samples of other classes keep each proxy, (num_proxies,) int64; labels (M,) count from class 0."""
    others = edges.neighbors // proxies_per_class + first_class != labels[:, None]
    if edges.kept is not None:
        others &= edges.kept
    counts = torch.zeros(num_proxies, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, edges.neighbors.flatten(), others.flatten().to(counts.dtype))


def proxy_graph_loss(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    terms: Terms,
    sampled: Tensor | None = None,
    shard: Shard | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Steps 1 to 8: L_s + proxy_weight * L_p, a scalar.

    Args:
        embeddings: (M, D) of any length, of this process; M at least 1 over all processes.
        proxies: (C*N, D) of any length.
        labels: (M,) int64.
        terms: what the loss is made of.
        sampled: int64 numbers of different proxies, over which L_p's mean is taken instead of over all; each is still
            classified over the whole graph. Drawn uniformly, its expectation is L_p, and that of its gradient L_p's.
        shard: the processes that the classes are divided over. The loss is then that of all their samples, and the
            gradient by the embeddings W times that of it, because data parallelism divides by W.
        sizes: how many samples each process brings; needed with `shard`.
    """
    with_gradient = proxies.requires_grad and torch.is_grad_enabled()
    loss: Tensor = _ProxyGraphLoss.apply(embeddings, proxies, labels, terms, sampled, with_gradient, shard, sizes)
    return loss


class _ProxyGraphLoss(Function):
    """The loss and its gradients.

    A slope is the derivative of L_s by the similarity of a kept edge (where all edges are kept: by a class's score).
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        proxies: Tensor,
        labels: Tensor,
        terms: Terms,
        sampled: Tensor | None,
        with_gradient: bool,
        shard: Shard | None,
        sizes: list[int] | None,
    ) -> Tensor:
        samples, inverse_norms = unit_samples(embeddings, proxies.dtype)
        if shard is not None and sizes is not None:
            samples, labels = shard.gathered(samples, sizes), shard.gathered(labels, sizes)
        ctx.terms, ctx.shard, ctx.sizes, ctx.num_samples = terms, shard, sizes, len(samples)
        sizes_fit = fits_at_once(samples, proxies, terms.proxies_per_class, terms.memory_limit, shard)
        ctx.joint = terms.proxy_weight > 0 and sampled is None and sizes_fit
        ctx.proxy_gradient = edge_similarity = neighbors = kept = None
        if ctx.joint:
            loss, samples, inverse, slopes = _joint_loss(samples, proxies, labels, terms, shard)
        else:
            similarity, inverse = cosine_similarity(samples, proxies)
            if terms.whole and not terms.sparse:
                loss, slopes = _whole_graph_loss(similarity, labels, terms, shard)
            else:
                loss, slopes, (edge_similarity, neighbors, kept, _) = _sub_graph_loss(similarity, labels, terms, shard)
            if terms.proxy_weight > 0:
                value, ctx.proxy_gradient = _proxy_loss(proxies, inverse, terms, sampled, with_gradient, shard)
                loss = loss + terms.proxy_weight * value
        ctx.save_for_backward(
            embeddings, inverse_norms, samples, proxies, inverse, slopes, edge_similarity, neighbors, kept, sampled
        )
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, inverse_norms, samples, proxies, inverse, slopes, *edges = ctx.saved_tensors
        shard, wanted = ctx.shard, ctx.needs_input_grad[:2]
        with torch.no_grad(), computing_in_full(samples.device.type):
            if ctx.joint:
                rows = samples, proxies, inverse, slopes, grad_loss
                gradients = joint_gradients(*rows, wanted, ctx.num_samples, shard)
            else:
                gradients = _separate_gradients(ctx, samples, proxies, inverse, slopes * grad_loss, edges, grad_loss)
            grad_embeddings, grad_proxies = gradients
            if grad_embeddings is not None:
                unit = samples[: ctx.num_samples]
                if shard is not None:
                    # Data parallelism divides by the number of processes.
                    own = shard.own_rows(ctx.sizes)
                    unit, grad_embeddings = unit[own], grad_embeddings[own] * shard.processes
                remove_along_(grad_embeddings, unit)
                grad_embeddings.mul_(inverse_norms)
        grads = once_differentiable((grad_embeddings, grad_proxies), embeddings, proxies)
        return *grads, None, None, None, None, None, None


def computing_in_full(device_type: str) -> AbstractContextManager[object]:
    """Autocast switched off; nothing where it is off already, because switching takes as long as some operations."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _joint_loss(
    samples: Tensor, proxies: Tensor, labels: Tensor, terms: Terms, shard: Shard | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_s + proxy_weight * L_p; the samples and class sums; the proxies' inverse lengths; and all slopes.

    The slopes, (M + C, C*N), are by the products of the samples and class sums with the proxies of any length.
    """
    num_own, count = terms.proxies_per_class, len(samples)
    inverse = inverse_lengths(proxies, samples.dtype)
    rows, products = joint_similarity(samples, proxies, inverse, num_own, shard)
    proxy_loss = joint_proxy_loss_(products[count:], inverse, num_own, terms.proxy_weight, shard)
    similarity = products[:count]
    if terms.whole:
        loss, slopes = _whole_graph_loss(similarity, labels, terms, shard)
        spread = slopes[:, :, None] * inverse.view(-1, num_own)
        similarity.copy_(spread.flatten(1))
    else:
        loss, slopes, edges = _sub_graph_loss(similarity, labels, terms, shard)
        spread_(similarity, edges.neighbors, slopes, edges.kept).mul_(inverse)
    return loss + terms.proxy_weight * proxy_loss, rows, inverse, products


def _separate_gradients(
    ctx: Any,
    samples: Tensor,
    proxies: Tensor,
    inverse: Tensor,
    slopes: Tensor,
    edges: list[Tensor | None],
    grad_loss: Tensor,
) -> Gradients:
    """The gradients by the unit samples, of all processes, and by the proxies, where L_p was computed by itself."""
    edge_similarity, neighbors, kept, sampled = edges
    terms, shard, wanted = ctx.terms, ctx.shard, ctx.needs_input_grad[:2]
    proxy_gradient = along = None
    if terms.proxy_weight > 0 and wanted[1]:
        proxy_gradient, ctx.proxy_gradient = ctx.proxy_gradient, None
        if proxy_gradient is None:  # a second backward through a retained graph: the first one used it up
            proxy_gradient = _proxy_loss(proxies, inverse, terms, sampled, True, shard)[1]
        assert proxy_gradient is not None
        proxy_gradient.mul_(terms.proxy_weight * grad_loss)
    if neighbors is None:
        slopes = slopes.repeat_interleave(terms.proxies_per_class, dim=1).mul_(inverse)
    else:
        if proxy_gradient is None and wanted[1]:
            assert edge_similarity is not None
            along = along_proxies(slopes, edge_similarity, neighbors, kept, len(proxies))
        slopes = slopes.mul_(inverse[neighbors])
    step = Step(samples, proxies, inverse, slopes, neighbors, kept, along)
    grad_samples, grad_proxies = step_gradients(step, proxy_gradient, wanted, terms.sparse)
    if shard is not None and grad_samples is not None:
        shard.sum_(grad_samples)
    return grad_samples, grad_proxies


def _proxy_loss(
    proxies: Tensor, inverse: Tensor, terms: Terms, sampled: Tensor | None, with_gradient: bool, shard: Shard | None
) -> tuple[Tensor, Tensor | None]:
    """L_p and its gradient by the normalised proxies, divided by their lengths."""
    sizes = terms.proxies_per_class, terms.memory_limit
    if sampled is None:
        return proxy_loss(proxies, inverse, *sizes, with_gradient, shard)
    return sampled_proxy_loss(proxies, inverse, *sizes, with_gradient, sampled, shard)


def _whole_graph_loss(similarity: Tensor, labels: Tensor, terms: Terms, shard: Shard | None) -> tuple[Tensor, Tensor]:
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


def _sub_graph_loss(
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

"""The mathematics of ProxyGML: neighbour selection, reverse label propagation, masked cross-entropy.

Functions of tensors; nothing here owns a parameter, checks a user's input or knows about training. The gradients are in
gradients.py, the regulariser in regularizer.py, and what processes exchange in sharded.py.
Source: Zhu et al., "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies", NeurIPS 2020.
Proxies are class-major everywhere: rows c*N .. c*N + N - 1 of a (C*N, ...) tensor belong to class c.

Proxies may have any length and a lower precision than the samples. No normalised copy of them is made: the products are
divided by their lengths. A proxy of length 0 has similarity 0 to all samples and gets no gradient.

Where the classes are divided over processes, the samples and labels are those of all processes, while C counts the
classes that this process owns. `shard` is None where one process owns all.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from proxygml.loss.gradients import Step, along_proxies, once_differentiable, proxy_blocks, step_gradients
from proxygml.loss.regularizer import proxy_loss, sampled_proxy_loss
from proxygml.loss.sharded import Shard, own_classes, own_proxies
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


def unit_samples(embeddings: Tensor, proxies_dtype: torch.dtype) -> Tensor:
    """The embeddings (M, D), L2-normalised, in the precision of the computation.

    Half-precision inputs are computed in float32, with or without autocast: sums of hundreds of terms need it. Each
    row is scaled by its largest number first, so that squares neither overflow nor vanish. A row of only
    vanishing numbers has no direction: it becomes 0 and gets no gradient, which would be too large for the precision.
    """
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, proxies_dtype), torch.float32)
    least = max(torch.finfo(embeddings.dtype).tiny, torch.finfo(dtype).tiny * 2**20)
    vectors = embeddings.to(dtype)
    largest = torch.linalg.vector_norm(vectors.detach(), math.inf, dim=1, keepdim=True)
    scaled = vectors / largest.clamp_min(least)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(largest > least, scaled / length.clamp_min(0.5), 0)


def inverse_lengths(proxies: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / length of each proxy (C*N, D), computed in `dtype`: (C*N,); 0 for a proxy of length 0."""
    lengths = torch.linalg.vector_norm(proxies, dim=1, dtype=dtype)
    return torch.where(lengths > torch.finfo(dtype).tiny, lengths.reciprocal(), 0)


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


def propagate_labels(edges: Edges, num_classes: int, proxies_per_class: int) -> tuple[Tensor, Tensor]:
    """Step 4: reverse label propagation over the kept edges; a class's score is the sum over its kept proxies.

    Args:
        edges: the kept edges, e places for each of M samples.
        num_classes: C.
        proxies_per_class: N.

    Returns:
        For each edge the score of its proxy's class, (M, e), and how many edges that class has, (M, e), at least 1.
        Classes without an edge are no candidates (step 5) and appear nowhere.
    """
    weights = edges.similarity
    if proxies_per_class == 1:
        return weights, torch.ones_like(weights)
    classes = edges.neighbors // proxies_per_class
    scores, degrees = class_scores(edges, classes, num_classes)
    return scores.gather(1, classes), degrees.gather(1, classes).clamp_(min=1)


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
    samples: Tensor,
    proxies: Tensor,
    labels: Tensor,
    terms: Terms,
    sampled: Tensor | None = None,
    shard: Shard | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Steps 1 to 8: L_s + proxy_weight * L_p, a scalar.

    Args:
        samples: (M, D) L2-normalised embeddings, of this process; M at least 1 over all processes.
        proxies: (C*N, D) of any length, of the samples' precision or a lower one.
        labels: (M,) int64.
        terms: what the loss is made of.
        sampled: int64 numbers of different proxies, over which L_p's mean is taken instead of over all; each is still
            classified over the whole graph. Drawn uniformly, its expectation is L_p, and that of its gradient L_p's.
        shard: the processes that the classes are divided over. The loss is then that of all their samples, and the
            gradient by the samples W times that of it, because data parallelism divides by W.
        sizes: how many samples each process brings; needed with `shard`.
    """
    with_gradient = proxies.requires_grad and torch.is_grad_enabled()
    loss: Tensor = _ProxyGraphLoss.apply(samples, proxies, labels, terms, sampled, with_gradient, shard, sizes)
    return loss


class _ProxyGraphLoss(Function):
    """The loss and its gradients.

    A slope is the derivative of L_s by the similarity of a kept edge (where all edges are kept: by a class's score).
    """

    @staticmethod
    def forward(
        ctx: Any,
        samples: Tensor,
        proxies: Tensor,
        labels: Tensor,
        terms: Terms,
        sampled: Tensor | None,
        with_gradient: bool,
        shard: Shard | None,
        sizes: list[int] | None,
    ) -> Tensor:
        if shard is not None and sizes is not None:
            samples, labels = shard.gathered(samples, sizes), shard.gathered(labels, sizes)
        similarity, inverse = cosine_similarity(samples, proxies)
        edge_similarity = neighbors = kept = None
        if terms.whole and not terms.sparse:
            loss, slopes = _whole_graph_loss(similarity, labels, terms, shard)
        else:
            loss, slopes, (edge_similarity, neighbors, kept, _) = _sub_graph_loss(similarity, labels, terms, shard)
        ctx.proxy_gradient = None
        if terms.proxy_weight > 0:
            value, ctx.proxy_gradient = _proxy_loss(proxies, inverse, terms, sampled, with_gradient, shard)
            loss = loss + terms.proxy_weight * value
        ctx.save_for_backward(samples, proxies, inverse, slopes, edge_similarity, neighbors, kept, sampled)
        ctx.terms, ctx.shard, ctx.sizes = terms, shard, sizes
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        samples, proxies, inverse, slopes, edge_similarity, neighbors, kept, sampled = ctx.saved_tensors
        terms, shard, wanted = ctx.terms, ctx.shard, ctx.needs_input_grad[:2]
        with torch.no_grad(), torch.autocast(samples.device.type, enabled=False):
            proxy_gradient = None
            if terms.proxy_weight > 0 and wanted[1]:
                proxy_gradient, ctx.proxy_gradient = ctx.proxy_gradient, None
                if proxy_gradient is None:  # a second backward through a retained graph: the first one used it up
                    proxy_gradient = _proxy_loss(proxies, inverse, terms, sampled, True, shard)[1]
                assert proxy_gradient is not None
                proxy_gradient.mul_(terms.proxy_weight * grad_loss)
            slopes, along = slopes * grad_loss, None
            if neighbors is not None and proxy_gradient is None and wanted[1]:
                along = along_proxies(slopes, edge_similarity, neighbors, kept, len(proxies))
            if neighbors is None:
                slopes = slopes.repeat_interleave(terms.proxies_per_class, dim=1).mul_(inverse)
            else:
                slopes = slopes.mul_(inverse[neighbors])
            step = Step(samples, proxies, inverse, slopes, neighbors, kept, along)
            grad_samples, grad_proxies = step_gradients(step, proxy_gradient, wanted, terms.sparse)
            if shard is not None and grad_samples is not None:
                # Data parallelism divides by the number of processes.
                grad_samples = shard.sum_(grad_samples)[shard.own_rows(ctx.sizes)] * shard.processes
        gradients = once_differentiable((grad_samples, grad_proxies), samples, proxies)
        return *gradients, None, None, None, None, None, None


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
    scores = similarity.view(len(similarity), similarity.shape[1] // num_own, num_own).sum(dim=2)
    loss, slope = class_loss(scores.mul_(factor), own_classes(labels, shard), shard)
    return loss, slope.mul_(factor)


def _sub_graph_loss(
    similarity: Tensor, labels: Tensor, terms: Terms, shard: Shard | None
) -> tuple[Tensor, Tensor, Edges]:
    """L_s where the k nearest proxies are kept, its slopes by their similarities, (M, e), and the kept edges.

    With z the score of an edge's class and n the number of that class's edges, the total of a sample's softmax is the
    sum over its edges of exp(scale z) / n. The slope of an edge is scale / M (softmax of its class - [own class]).
    """
    num_classes = similarity.shape[1] // terms.proxies_per_class
    edges = select_neighbors(similarity, labels, terms, shard)
    if not (terms.positive_mask and terms.mask_softmax):
        return *_ablated_loss(edges, labels, num_classes, terms, shard), edges
    scores, degrees = propagate_labels(edges, num_classes, terms.proxies_per_class)
    logits = terms.scale * scores
    if terms.degree_normalized:
        logits /= degrees
    if edges.kept is not None:
        logits.masked_fill_(~edges.kept, -math.inf)
    logits -= row_maximum(logits, shard)
    own_logit = logits[:, :1].clone()
    if edges.kept is not None:
        own_logit = torch.where(edges.kept[:, :1], own_logit, 0) if edges.own else logits.new_zeros(len(labels), 1)
    slope = logits.exp_()
    others = (slope[:, edges.own :] / degrees[:, edges.own :]).sum(dim=1, keepdim=True)
    own_logit, others = row_sums(own_logit, others, shard)
    slope[:, : edges.own] = -others if edges.kept is None else torch.where(edges.kept[:, : edges.own], -others, 0)
    slope /= others + own_logit.exp()
    if terms.degree_normalized:
        slope /= degrees
    return cross_entropy(own_logit, others), slope.mul_(terms.scale / len(labels)), edges


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

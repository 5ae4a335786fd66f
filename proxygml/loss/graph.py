"""The mathematics of ProxyGML: neighbour selection, reverse label propagation, masked cross-entropy, and gradients.

Functions of tensors; nothing here owns a parameter, checks a user's input or knows about training.
Source: Zhu et al., "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies", NeurIPS 2020.
Proxies are class-major everywhere: rows c*N .. c*N + N - 1 of a (C*N, ...) tensor belong to class c.

The proxies come as they are, of any length and perhaps of a lower precision than the samples, and no normalised copy
of them is made: their lengths divide the products. A proxy of length 0 has similarity 0 to all and gets no gradient.
The gradients are written by hand, beside the loss that they belong to, because most of what the loss looks at has none:
of a sample's C*N similarities only the k kept ones do. What is exact here, and why it cannot be cheaper, is told in
docs/performance.md.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# How much of the proxies passes by at a time: on a CPU what stays in its cache from one product to the next, on a GPU
# what keeps it busy and bounds the copy where they are converted from a lower precision.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 4 * 2**20, 256 * 2**20


class Terms(NamedTuple):
    """What the loss is made of; see ProxyGMLLoss for what each may be."""

    proxies_per_class: int  # N
    neighbors: int  # k, how many proxies each sample keeps: N < k <= C*N
    proxy_weight: float  # lambda
    scale: float  # factor on the samples' class scores
    sparse: bool  # whether the proxies' gradient is a sparse tensor; proxy_weight is then 0
    memory_limit: int  # bytes of a block of the regulariser's logits
    positive_mask: bool  # whether a sample's own proxies are always kept
    mask_softmax: bool  # whether the softmax is over the classes with a kept proxy alone
    degree_normalized: bool  # whether a class's score is divided by the number of its kept proxies


def neighbor_count(num_classes: int, proxies_per_class: int, neighbor_ratio: float) -> int:
    """How many proxies each sample keeps: the paper's k = ceil(r * C * N), evaluated from left to right as published.

    At least N + 1, so that one negative is left, and never more than there are proxies.
    """
    total = num_classes * proxies_per_class
    return min(max(math.ceil(neighbor_ratio * num_classes * proxies_per_class), proxies_per_class + 1), total)


def inverse_lengths(proxies: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / length of each proxy (C*N, D), computed in `dtype`: (C*N,); 0 for a proxy of length 0."""
    lengths = torch.linalg.vector_norm(proxies, dim=1, dtype=dtype)
    return torch.where(lengths > torch.finfo(dtype).tiny, lengths.reciprocal(), 0)


def cosine_similarity(samples: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Step 1: S = X P^T, (M, C*N), of L2-normalised samples (M, D); and the proxies' inverse lengths, (C*N,)."""
    inverse = samples.new_empty(len(proxies))
    similarity = samples.new_empty(len(samples), len(proxies))
    for block, part in _blocks(proxies, samples.dtype):
        inverse[block] = inverse_lengths(part, samples.dtype)
        # This way round the product is the faster one: the proxies, which are many, are its rows.
        torch.mul((part @ samples.T).T, inverse[block], out=similarity[:, block])
    return similarity, inverse


def select_neighbors(
    similarity: Tensor, labels: Tensor, proxies_per_class: int, k: int, positive_mask: bool = True
) -> tuple[Tensor, Tensor]:
    """Steps 2 and 3: the sub-graph of each sample, its own class's proxies and then the most similar others.

    Args:
        similarity: (M, C*N) similarities of samples to proxies. It is used up: its content is lost.
        labels: (M,) int64 class of each sample.
        proxies_per_class: N.
        k: number of proxies that each sample keeps, N < k <= C*N.
        positive_mask: False leaves step 2 out: the k most similar proxies are kept, of whichever class.

    Returns:
        Similarities (M, k) of the kept proxies, and their int64 indices; the N own ones come first, the others in no
        order. Which of several equally similar proxies is kept as the last is not defined.
    """
    if not positive_mask:
        nearest = similarity.topk(k, dim=1, sorted=False)
        return nearest.values, nearest.indices
    own = labels[:, None] * proxies_per_class + torch.arange(proxies_per_class, device=labels.device)
    own_similarity = similarity.gather(1, own)
    hardest = similarity.scatter_(1, own, -math.inf).topk(k - proxies_per_class, dim=1, sorted=False)
    return torch.cat([own_similarity, hardest.values], dim=1), torch.cat([own, hardest.indices], dim=1)


def propagate_labels(
    weights: Tensor, neighbors: Tensor, num_classes: int, proxies_per_class: int
) -> tuple[Tensor, Tensor]:
    """Step 4: reverse label propagation over the kept edges; a class's score is the sum over its kept proxies.

    Args:
        weights: (M, k) similarities of the kept edges.
        neighbors: (M, k) int64 indices of the kept proxies.
        num_classes: C.
        proxies_per_class: N.

    Returns:
        For each kept edge the score of its proxy's class, (M, k), and how many edges that class has, (M, k). Classes
        without an edge are no candidates (step 5) and appear nowhere.
    """
    if proxies_per_class == 1:
        return weights, torch.ones_like(weights)
    classes = neighbors // proxies_per_class
    blank = weights.new_zeros(len(weights), num_classes)
    scores = blank.scatter_add(1, classes, weights).gather(1, classes)
    return scores, blank.scatter_add_(1, classes, torch.ones_like(weights)).gather(1, classes)


def proxy_graph_loss(
    samples: Tensor, proxies: Tensor, labels: Tensor, terms: Terms, sampled: Tensor | None = None
) -> Tensor:
    """Steps 1 to 8: L_s + proxy_weight * L_p, a scalar.

    Args:
        samples: (M, D) L2-normalised embeddings, M at least 1.
        proxies: (C*N, D) of any length, of the samples' precision or a lower one.
        labels: (M,) int64.
        terms: what the loss is made of.
        sampled: int64 indices of different proxies, over which L_p's mean is taken instead of over all; each is still
            classified over the whole graph. Drawn uniformly, its expectation is L_p, and that of its gradient L_p's.
    """
    with_gradient = proxies.requires_grad and torch.is_grad_enabled()
    loss: Tensor = _ProxyGraphLoss.apply(samples, proxies, labels, terms, sampled, with_gradient)
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
    ) -> Tensor:
        similarity, inverse = cosine_similarity(samples, proxies)
        neighbors = None
        if terms.neighbors == len(proxies) and not terms.sparse:
            loss, slope = _whole_graph_loss(similarity, labels, terms)
        else:
            loss, slope, neighbors = _sub_graph_loss(similarity, labels, terms)
        ctx.proxy_gradient = None
        if terms.proxy_weight > 0:
            proxy_loss, ctx.proxy_gradient = _proxy_loss(proxies, inverse, terms, sampled, with_gradient)
            loss = loss + terms.proxy_weight * proxy_loss
        ctx.save_for_backward(samples, proxies, inverse, slope, neighbors, sampled)
        ctx.terms = terms
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        samples, proxies, inverse, slope, neighbors, sampled = ctx.saved_tensors
        terms, wanted = ctx.terms, ctx.needs_input_grad[:2]
        with torch.no_grad(), torch.autocast(samples.device.type, enabled=False):
            slope = slope * grad_loss
            start = None
            if terms.proxy_weight > 0 and wanted[1]:
                start, ctx.proxy_gradient = ctx.proxy_gradient, None
                if start is None:  # a second time through a retained graph: the first took it away
                    start = _proxy_loss(proxies, inverse, terms, sampled, with_gradient=True)[1]
                assert start is not None
                start.mul_(terms.proxy_weight * grad_loss)
            if neighbors is None:
                edges = slope.repeat_interleave(terms.proxies_per_class, dim=1).mul_(inverse)
                gradients = _gradients(samples, proxies, inverse, edges, start, wanted)
            else:
                edges = slope.mul_(inverse[neighbors])
                if terms.sparse or (start is None and _touches_few(neighbors, proxies)):
                    gradients = _gradients_of_touched(samples, proxies, inverse, neighbors, edges, wanted, terms.sparse)
                else:
                    gradients = _gradients_of_kept(samples, proxies, inverse, neighbors, edges, start, wanted)
        return *_differentiated_once(gradients, samples, proxies), None, None, None, None


def _whole_graph_loss(similarity: Tensor, labels: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """L_s where every proxy is every sample's neighbour, and its slopes by the sums of the class scores, (M, C)."""
    factor = terms.scale / (terms.proxies_per_class if terms.degree_normalized else 1)
    scores = similarity.view(len(similarity), -1, terms.proxies_per_class).sum(dim=2)
    loss, slope = _class_loss(scores.mul_(factor), labels)
    return loss, slope.mul_(factor)


def _class_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of logits (M, C), which are used up, and its slopes by them, (M, C)."""
    logits -= logits.amax(dim=1, keepdim=True)
    own = labels[:, None]
    own_logit = logits.gather(1, own)
    slope = logits.exp_().scatter_(1, own, 0)
    others = slope.sum(dim=1, keepdim=True)
    slope.scatter_(1, own, -others).div_((others + own_logit.exp()).mul_(len(labels)))
    return _cross_entropy(own_logit, others), slope


def _sub_graph_loss(similarity: Tensor, labels: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """L_s where the k nearest proxies are kept, its slopes by their similarities, (M, k), and their indices, (M, k).

    With z the score of an edge's class and n the number of that class's edges, the total of a sample's softmax is the
    sum over its edges of exp(scale z) / n. The slope of an edge is scale / M (softmax of its class - [own class]).
    """
    num_own, num_classes = terms.proxies_per_class, similarity.shape[1] // terms.proxies_per_class
    weights, neighbors = select_neighbors(similarity, labels, num_own, terms.neighbors, terms.positive_mask)
    if not (terms.positive_mask and terms.mask_softmax):
        return *_ablated_loss(weights, neighbors, labels, num_classes, terms), neighbors
    scores, edges = propagate_labels(weights, neighbors, num_classes, num_own)
    logits = terms.scale * scores
    if terms.degree_normalized:
        logits /= edges
    logits -= logits.amax(dim=1, keepdim=True)
    own_logit = logits[:, :1].clone()
    slope = logits.exp_()
    others = (slope[:, num_own:] / edges[:, num_own:]).sum(dim=1, keepdim=True)
    slope[:, :num_own] = -others
    slope /= others + own_logit.exp()
    if terms.degree_normalized:
        slope /= edges
    return _cross_entropy(own_logit, others), slope.mul_(terms.scale / len(labels)), neighbors


def _ablated_loss(
    weights: Tensor, neighbors: Tensor, labels: Tensor, num_classes: int, terms: Terms
) -> tuple[Tensor, Tensor]:
    """L_s and its slopes, (M, k), without the positive mask, the mask softmax, or both: the paper's ablation.

    Plain, over the scores of all C classes: it is for comparing, not for speed. A class without a kept proxy has score
    0. The own class stays a candidate of the mask softmax even so (ours): there would be no cross-entropy without it.
    """
    classes = neighbors // terms.proxies_per_class
    blank = weights.new_zeros(len(weights), num_classes)
    logits = blank.scatter_add(1, classes, weights).mul_(terms.scale)
    edges = blank.scatter_add_(1, classes, torch.ones_like(weights))
    if terms.degree_normalized:
        logits /= edges.clamp(min=1)
    if terms.mask_softmax:
        logits.masked_fill_((edges == 0).scatter_(1, labels[:, None], False), -math.inf)
    loss, slope = _class_loss(logits, labels)
    if terms.degree_normalized:
        slope /= edges.clamp(min=1)
    return loss, slope.gather(1, classes).mul_(terms.scale)


def _cross_entropy(own_logit: Tensor, others: Tensor) -> Tensor:
    """Mean of -log(exp(own) / (exp(own) + others)), each (M, 1).

    The own class's softmax - 1 is likewise taken as minus that of the others: so a small loss keeps its digits.
    """
    return F.softplus(others.log() - own_logit).mean()


def _proxy_loss(
    proxies: Tensor, inverse: Tensor, terms: Terms, sampled: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """L_p, step 7: every proxy classified over the whole proxy graph, by a plain mean cross-entropy.

    The logits (P P^T) Y are P (P^T Y): a class's sum is all that the product needs. They are too many to be kept and
    too dear to be computed twice: they pass by in blocks of rows, and the gradient is taken from each block at once.

    Returns:
        The loss, and its gradient (C*N, D) by the normalised proxies, divided by their lengths.
    """
    sums = class_sums(proxies, inverse, terms.proxies_per_class)
    rows = torch.arange(len(proxies), device=proxies.device) if sampled is None else sampled
    loss, grad_sums = sums.new_zeros(()), torch.zeros_like(sums)
    gradient = sums.new_empty(proxies.shape) if with_gradient else None
    if gradient is not None and sampled is not None:
        gradient.zero_()
    step = min(len(rows), max(1, terms.memory_limit // (max(sums.shape) * sums.itemsize)))
    buffer = sums.new_empty(step, len(sums))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        place = slice(start, start + len(block)) if sampled is None else block
        part = proxies[place].to(sums.dtype)
        logits = torch.mm(part, sums.T, out=buffer[: len(block)])
        loss += _cross_entropy_(logits, inverse[place, None], (block // terms.proxies_per_class)[:, None], len(rows))
        if gradient is not None:
            grad_sums.addmm_(logits.T, part)
            if sampled is None:
                torch.mm(logits, sums, out=gradient[place])
            else:
                gradient[place] = logits @ sums
    if gradient is not None:
        by_class = (len(sums), terms.proxies_per_class, -1)
        gradient.view(by_class).addcmul_(inverse.view(by_class), grad_sums[:, None])
    return loss, gradient


def class_sums(proxies: Tensor, inverse: Tensor, proxies_per_class: int) -> Tensor:
    """P^T Y: the sum of each class's normalised proxies, (C, D), of proxies (C*N, D) with their inverse lengths."""
    num_classes = len(proxies) // proxies_per_class
    sums = inverse.new_empty(num_classes, 1, proxies.shape[1])
    for block, part in _blocks(proxies.view(num_classes, proxies_per_class, -1), inverse.dtype):
        torch.bmm(inverse.view(num_classes, 1, -1)[block], part, out=sums[block])
    return sums.squeeze(1)


def _cross_entropy_(logits: Tensor, factors: Tensor, classes: Tensor, count: int) -> Tensor:
    """Sum over `count` of the cross-entropies of the rows of factors * logits; the logits become its slope by them."""
    highest = logits.amax(dim=1, keepdim=True) * factors
    torch.addcmul(-highest, logits, factors, out=logits)
    own = logits.gather(1, classes)
    sums = logits.exp_().sum(dim=1, keepdim=True)
    logits.mul_(factors / (sums * count)).scatter_add_(1, classes, factors / -count)
    return (sums.log() - own).sum() / count


def _touches_few(neighbors: Tensor, proxies: Tensor) -> bool:
    # On a GPU, finding the touched rows would make it wait, and the product costs it little.
    return (
        neighbors.device.type == "cpu" and 8 * neighbors.numel() <= len(proxies) and not torch.compiler.is_compiling()
    )


def _gathering_pays(neighbors: Tensor, proxies: Tensor, samples: Tensor) -> bool:
    # A gathered row costs a CPU about seven rows of a product.
    return neighbors.device.type == "cpu" and proxies.dtype == samples.dtype and 8 * neighbors.shape[1] <= len(proxies)


def _gradients_of_touched(
    samples: Tensor,
    proxies: Tensor,
    inverse: Tensor,
    neighbors: Tensor,
    edges: Tensor,
    wanted: tuple[bool, bool],
    sparse: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients from the proxies that some sample kept, and from no others."""
    touched = torch.zeros(len(proxies), dtype=torch.bool, device=proxies.device)
    touched[neighbors] = True
    rows = touched.nonzero().squeeze(1)
    place = touched.cumsum(0).sub_(1)[neighbors]
    spread = edges.new_zeros(len(samples), len(rows)).scatter_(1, place, edges)
    grad_samples, values = _gradients(samples, proxies[rows], inverse[rows], spread, None, wanted)
    if values is None:
        return grad_samples, None
    values = values.to(proxies.dtype)
    if sparse:
        return grad_samples, torch.sparse_coo_tensor(
            rows[None], values, proxies.shape, check_invariants=False, is_coalesced=True
        )
    return grad_samples, torch.zeros_like(proxies).index_copy_(0, rows, values)


def _gradients_of_kept(
    samples: Tensor,
    proxies: Tensor,
    inverse: Tensor,
    neighbors: Tensor,
    edges: Tensor,
    start: Tensor | None,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients from all proxies, with slope 0 where a sample did not keep one; that of the samples by gathering."""
    spread = edges.new_zeros(len(samples), len(proxies)).scatter_(1, neighbors, edges)
    if not (wanted[0] and _gathering_pays(neighbors, proxies, samples)):
        return _gradients(samples, proxies, inverse, spread, start, wanted)
    grad_samples = F.embedding_bag(neighbors, proxies, per_sample_weights=edges, mode="sum")
    return grad_samples, _gradients(samples, proxies, inverse, spread, start, (False, wanted[1]))[1]


def _gradients(
    samples: Tensor, proxies: Tensor, inverse: Tensor, edges: Tensor, start: Tensor | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by samples and proxies, a product each, of edges (M, C*N): slopes divided by the proxies' lengths.

    `start` is what the regulariser gives to the proxies' gradient; it is used up. A proxy's length has no effect, and
    what lies along the proxy is taken out at the end.
    """
    grad_samples = torch.zeros_like(samples) if wanted[0] else None
    grad_proxies = None
    if wanted[1]:
        grad_proxies = samples.new_empty(proxies.shape) if start is None else start
    for block, part in _blocks(proxies, samples.dtype):
        if grad_samples is not None:
            grad_samples.addmm_(edges[:, block], part)
        if grad_proxies is not None:
            rows = grad_proxies[block].addmm_(edges[:, block].T, samples, beta=0 if start is None else 1)
            along = torch.linalg.vecdot(rows, part) * inverse[block] * inverse[block]
            rows.addcmul_(part, along[:, None], value=-1)
    return grad_samples, grad_proxies


def _blocks(proxies: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The proxies in `dtype`, a block of rows at a time."""
    limit = CPU_BLOCK_BYTES if proxies.device.type == "cpu" else GPU_BLOCK_BYTES
    rows = max(1, limit // (proxies[:1].numel() * dtype.itemsize))
    for start in range(0, len(proxies), rows):
        block = slice(start, min(start + rows, len(proxies)))
        yield block, proxies[block].to(dtype)


class _DifferentiatedOnce(Function):
    """The identity, with a clear answer to those who differentiate it."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "ProxyGMLLoss has a first derivative only, but its gradient is differentiated again: leave create_graph "
            "out, or detach the gradient"
        )


def _differentiated_once(gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> list[Tensor | None]:
    """The gradients as they are; where they become part of a graph themselves, refusing a second derivative."""
    if not torch.is_grad_enabled():
        return list(gradients)
    return [gradient if gradient is None else _DifferentiatedOnce.apply(gradient, *inputs) for gradient in gradients]

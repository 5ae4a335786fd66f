"""The graph of ProxyGML: similarities, neighbour selection and reverse label propagation.

Functions of tensors; nothing here owns a parameter, checks a user's input or knows about training. What is learned from
the graph is in sample_loss.py and proxy_side.py, the regulariser in regularizer.py and joint.py, all of it together in
proxy_graph_loss.py, its gradients in gradients.py, and what processes exchange in sharded.py.
Source: Zhu et al., "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies", NeurIPS 2020.
Proxies are class-major everywhere: rows c*N .. c*N + N - 1 of a (C*N, ...) tensor belong to class c.

Proxies may have any length and a lower precision than the samples. No normalised copy of them is made: the products are
divided by their lengths. A proxy of length 0 has similarity 0 to all samples and gets no gradient.

Where the classes are divided over processes, the samples and labels are those of all processes, while C counts the
classes that this process owns. `shard` is None where one process owns all.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from proxygml.largest import largest
from proxygml.loss.gradients import proxy_blocks
from proxygml.loss.sharded import Shard, own_proxies


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


def computing_in_full(device_type: str) -> AbstractContextManager[object]:
    """Autocast switched off; nothing where it is off already, because switching takes as long as some operations."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def unit_samples(embeddings: Tensor, proxies_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The embeddings (M, D), L2-normalised, in the precision of the computation; and 1 / length of each, (M, 1).

    Each row is scaled by its largest number first, so that squares neither overflow nor vanish. A row of only
    vanishing numbers has no direction: it becomes 0, as does its inverse length, so that it gets no gradient, which
    would be too large for the precision.
    """
    dtype = computing_dtype(embeddings.dtype, proxies_dtype)
    least = max(torch.finfo(embeddings.dtype).tiny, torch.finfo(dtype).tiny * 2**20)
    vectors = embeddings.to(dtype)
    greatest = vectors.abs().amax(dim=1, keepdim=True)  # vector_norm(inf) takes a CPU ten times as long
    divisor = greatest.clamp_min(least)
    scaled = vectors / divisor
    inverse = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min_(0.5).reciprocal_().mul_(greatest > least)
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


def edges_of_all(
    embeddings: Tensor, proxies: Tensor, labels: Tensor, terms: Terms, shard: Shard | None
) -> tuple[Edges, Tensor]:
    """The edges of the samples of all processes to this process's proxies, and those samples' labels.

    Args:
        embeddings: (M, D) of any length, of this process.
        proxies: (C*N, D) of any length.
        labels: (M,) int64.
        terms: see `select_neighbors`.
        shard: the processes that the classes are divided over.
    """
    with computing_in_full(embeddings.device.type):
        samples, _ = unit_samples(embeddings, proxies.dtype)
        if shard is not None:
            sizes = shard.agree_on_(samples)
            samples, labels = shard.gathered(samples, sizes), shard.gathered(labels, sizes)
        similarity, _ = cosine_similarity(samples, proxies)
    return select_neighbors(similarity, labels, terms, shard), labels


def _most_similar(similarity: Tensor, count: int, shard: Shard | None) -> Edges:
    if shard is not None:
        return Edges(*shard.most_similar(similarity, count), own=0)
    return Edges(*largest(similarity, count), None, own=0)


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

"""ProxyGMLLoss: owns the proxies and checks its input; the arithmetic is in graph.py.

It needs nothing else of this package: `from proxygml import ProxyGMLLoss` fits anybody's training loop.
"""

import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.loss import graph


class ProxyGMLLoss(nn.Module):
    """The loss of "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies" (NeurIPS 2020).

    Each sample is compared with the proxies of its own class and with only its hardest others; their labels are
    propagated back along that graph and classified by a softmax over the classes that take part. A regulariser
    classifies the proxies over their own graph.

    Args:
        num_classes: C, the number of training classes.
        embedding_size: D, the dimension of the embeddings.
        proxies_per_class: N. It also acts as an inverse temperature: a class's score is a sum of N similarities.
        neighbor_ratio: the paper's r in (0, 1]. Each sample keeps ceil(r * C * N) proxies, at least N + 1.
        proxy_weight: the paper's lambda >= 0, the weight of the regulariser.
        scale: factor on the samples' class scores before the softmax (20 for Stanford Online Products, where N is 1).
        proxy_sample: how many proxies the regulariser looks at in a step, drawn anew each time: a whole number, or a
            fraction in (0, 1) of all. An unbiased estimate of the whole (value and gradient) at that part of its cost,
            for many classes. None takes them all.
        sparse: whether the proxies' gradient is a sparse tensor, of the rows that some sample of the batch kept, for an
            optimiser that updates those alone (proxygml.LazyAdam). The gradient is the same; finding the rows
            makes a GPU wait. Needs proxy_weight 0, because the regulariser moves every proxy.
        positive_mask: False leaves out step 2, by which a sample's own proxies are always kept: the paper's ablation.
        mask_softmax: False takes the softmax over all classes, those without a kept proxy with score 0: likewise.
        degree_normalized: whether a class's score is the mean of its kept similarities instead of their sum (ours). A
            sample's own class is kept with all N proxies, others mostly with fewer, so a sum favours it by count. N is
            no inverse temperature then, and `scale` has to take that part: try 16.
        memory_limit: bytes that the regulariser's logits may take at a time (one row of them at least).
        device, dtype: of the proxies, as for the layers of torch.nn. In bfloat16 they take half the memory; the loss
            still computes in float32.

    Attributes:
        proxies: Parameter (num_classes * proxies_per_class, embedding_size), class-major. Give it a learning rate of
            its own: published values are 0.03 (CUB, Cars) and 0.3 (SOP) beside 1e-4 for the network.

    Raises:
        ValueError: an argument that is out of its range.

    Example:
        >>> loss = ProxyGMLLoss(num_classes=100, embedding_size=512)
        >>> loss(torch.randn(32, 512), torch.randint(100, (32,))).backward()
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        proxies_per_class: int = 12,
        neighbor_ratio: float = 0.05,
        proxy_weight: float = 0.3,
        scale: float = 1.0,
        *,
        proxy_sample: int | float | None = None,
        sparse: bool = False,
        positive_mask: bool = True,
        mask_softmax: bool = True,
        degree_normalized: bool = False,
        memory_limit: int = 32 * 2**20,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_count("num_classes", num_classes)
        _check_count("embedding_size", embedding_size)
        _check_count("proxies_per_class", proxies_per_class)
        _check_number("neighbor_ratio", neighbor_ratio, "in (0, 1]", lambda ratio: 0 < ratio <= 1)
        _check_number("proxy_weight", proxy_weight, "0 or more", lambda weight: weight >= 0)
        _check_number("scale", scale, "more than 0", lambda factor: factor > 0)
        _check_count("memory_limit", memory_limit)
        if sparse and proxy_weight > 0:
            raise ValueError(
                f"sparse is True and proxy_weight is {proxy_weight}, but the regulariser moves every proxy, so that no "
                "gradient is sparse: set proxy_weight to 0, or leave sparse out"
            )
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.proxies_per_class = proxies_per_class
        self.neighbor_ratio = neighbor_ratio
        self.proxy_weight = proxy_weight
        self.scale = scale
        self.sparse = sparse
        self.positive_mask = positive_mask
        self.mask_softmax = mask_softmax
        self.degree_normalized = degree_normalized
        self.memory_limit = memory_limit
        self.proxy_sample = proxy_sample
        self._sample_size = _sample_size(proxy_sample, num_classes * proxies_per_class)
        self.neighbors = graph.neighbor_count(num_classes, proxies_per_class, neighbor_ratio)
        self._warn_if_raised()
        self.proxies = nn.Parameter(
            torch.empty(num_classes * proxies_per_class, embedding_size, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def _warn_if_raised(self) -> None:
        asked = math.ceil(self.neighbor_ratio * self.num_classes * self.proxies_per_class)
        if asked < self.neighbors:
            warnings.warn(
                f"neighbor_ratio {self.neighbor_ratio} keeps {asked} of "
                f"{self.num_classes * self.proxies_per_class} proxies, which leaves no negative beside the "
                f"{self.proxies_per_class} of a sample's own class: raised to {self.neighbors}",
                stacklevel=3,
            )

    def reset_parameters(self) -> None:
        """Draw the proxies anew, as published: Kaiming uniform with a = sqrt(5).

        The published tensor lies the other way, (D, C*N), so that its fan-in is C*N and the bound 1 / sqrt(C*N). The
        direction of a proxy does not depend on it, but how far the first optimiser steps turn it does.
        """
        nn.init.kaiming_uniform_(self.proxies.T, a=math.sqrt(5))

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        """The loss of a batch, L_s + proxy_weight * L_p.

        Values are checked on the CPU only: on an accelerator reading them back would stall its queue; there a NaN
        shows as a NaN loss, and a label out of range as the device's own assertion.

        Args:
            embeddings: (M, embedding_size) of any floating precision; normalised here.
            labels: (M,) integers in 0..num_classes - 1.
            indices_tuple: ignored; trainers of pytorch-metric-learning pass it.

        Returns:
            Scalar, float32 (float64 if an input is float64). Zero, with a graph, for an empty batch.

        Raises:
            ValueError: a wrong shape or dtype, a label out of range, a NaN or infinite embedding.
        """
        self._check(embeddings, labels)
        labels = labels.to(embeddings.device, torch.int64)
        with torch.autocast(embeddings.device.type, enabled=False):
            samples = self._samples(embeddings)
            if len(labels) == 0:
                no_proxies = F.embedding(labels, self.proxies, sparse=self.sparse)
                return samples.sum() + no_proxies.sum(dtype=samples.dtype)
            return graph.proxy_graph_loss(samples, self.proxies, labels, self._terms(), self._sampled())

    @torch.no_grad()
    def select(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The sub-graph of each sample: (M, k) int64 indices of the proxies it keeps, its own class's first.

        (Without `positive_mask` in no order.)
        """
        self._check(embeddings, labels)
        labels = labels.to(embeddings.device, torch.int64)
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity, _ = graph.cosine_similarity(self._samples(embeddings), self.proxies)
        return graph.select_neighbors(similarity, labels, self.proxies_per_class, self.neighbors, self.positive_mask)[1]

    def _samples(self, embeddings: Tensor) -> Tensor:
        """The embeddings, normalised, in the precision of the computation.

        Half-precision inputs are computed in float32 throughout, autocast or not: sums of hundreds of terms need it.
        """
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.proxies.dtype), torch.float32)
        return _directions(embeddings.to(dtype), least=max(1e-12, torch.finfo(embeddings.dtype).tiny))

    def _terms(self) -> graph.Terms:
        return graph.Terms(
            self.proxies_per_class,
            self.neighbors,
            self.proxy_weight,
            self.scale,
            self.sparse,
            self.memory_limit,
            self.positive_mask,
            self.mask_softmax,
            self.degree_normalized,
        )

    def _sampled(self) -> Tensor | None:
        """The proxies that the regulariser looks at in this step; None for all."""
        if self._sample_size == len(self.proxies) or self.proxy_weight == 0:
            return None
        return torch.randperm(len(self.proxies), device=self.proxies.device)[: self._sample_size]

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if not embeddings.is_floating_point():
            raise ValueError(f"embeddings are {embeddings.dtype}, but the loss needs floating-point numbers")
        if embeddings.dim() != 2 or embeddings.shape[1] != self.embedding_size:
            shape = tuple(embeddings.shape)
            raise ValueError(f"embeddings have shape {shape}, but the loss was built for (M, {self.embedding_size})")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels are {labels.dtype}, but the loss needs integers: class numbers")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, but {len(embeddings)} embeddings need ({len(embeddings)},)"
            )
        if labels.device.type == "cpu":
            self._check_labels(labels)
        if embeddings.device.type == "cpu":
            _check_finite(embeddings)

    def _check_labels(self, labels: Tensor) -> None:
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            first = int(outside.nonzero()[0])
            raise ValueError(
                f"labels[{first}] is {int(labels[first])}, but the loss was built for {self.num_classes} classes "
                f"(0..{self.num_classes - 1})"
            )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, "
            f"proxies_per_class={self.proxies_per_class}, neighbor_ratio={self.neighbor_ratio}, "
            f"proxy_weight={self.proxy_weight}, scale={self.scale}, proxy_sample={self.proxy_sample}, "
            f"sparse={self.sparse}, positive_mask={self.positive_mask}, mask_softmax={self.mask_softmax}, "
            f"degree_normalized={self.degree_normalized}"
        )


def _directions(vectors: Tensor, least: float) -> Tensor:
    """L2-normalise the rows; one shorter than `least` has no direction to turn: it becomes 0 and gets no gradient."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(length > least, vectors / length.clamp_min(least), 0)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")


def _sample_size(proxy_sample: int | float | None, total: int) -> int:
    """How many of all proxies the regulariser looks at in a step."""
    if proxy_sample is None:
        return total
    expected = "must be None, a whole number of at least 1 or a fraction in (0, 1)"
    if isinstance(proxy_sample, bool) or not isinstance(proxy_sample, (int, float)):
        raise ValueError(f"proxy_sample is {proxy_sample!r}, but {expected}")
    if isinstance(proxy_sample, int) and proxy_sample >= 1:
        return min(proxy_sample, total)
    if 0 < proxy_sample < 1:
        return max(1, round(proxy_sample * total))
    raise ValueError(f"proxy_sample is {proxy_sample!r}, but {expected}")


def _check_number(name: str, value: float, expected: str, holds: Callable[[float], bool]) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} is {value!r}, but must be a number {expected}")


def _check_finite(embeddings: Tensor) -> None:
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"embeddings[{first}] holds NaN or infinite values: look at the network or its learning rate")

"""ProxyGMLLoss: owns the proxies and checks its input; the arithmetic is in graph.py.

It needs nothing else of this package: `from proxygml import ProxyGMLLoss` fits anybody's training loop.
"""

import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml import graph


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
    ) -> None:
        super().__init__()
        _check_count("num_classes", num_classes)
        _check_count("embedding_size", embedding_size)
        _check_count("proxies_per_class", proxies_per_class)
        _check_number("neighbor_ratio", neighbor_ratio, "in (0, 1]", lambda ratio: 0 < ratio <= 1)
        _check_number("proxy_weight", proxy_weight, "0 or more", lambda weight: weight >= 0)
        _check_number("scale", scale, "more than 0", lambda factor: factor > 0)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.proxies_per_class = proxies_per_class
        self.neighbor_ratio = neighbor_ratio
        self.proxy_weight = proxy_weight
        self.scale = scale
        self.neighbors = graph.neighbor_count(num_classes, proxies_per_class, neighbor_ratio)
        self._warn_if_raised()
        self.proxies = nn.Parameter(torch.empty(num_classes * proxies_per_class, embedding_size))
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
        # Half-precision inputs are computed in float32 throughout, autocast or not: sums of hundreds of terms need it.
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.proxies.dtype), torch.float32)
        labels = labels.to(embeddings.device, torch.int64)
        with torch.autocast(embeddings.device.type, enabled=False):
            if len(labels) == 0:
                return embeddings.sum(dtype=dtype) + 0 * self.proxies.sum(dtype=dtype)
            proxies = F.normalize(self.proxies.to(dtype), dim=1)
            samples = _directions(embeddings.to(dtype), least=max(1e-12, torch.finfo(embeddings.dtype).tiny))
            loss = graph.sample_loss(samples, proxies, labels, self.proxies_per_class, self.neighbors, self.scale)
            if self.proxy_weight > 0:
                loss = loss + self.proxy_weight * graph.proxy_loss(proxies, self.proxies_per_class)
        return loss

    @torch.no_grad()
    def select(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The sub-graph of each sample: (M, k) int64 indices of the proxies it keeps, its own class's first."""
        self._check(embeddings, labels)
        similarity = embeddings.to(self.proxies.dtype) @ F.normalize(self.proxies, dim=1).T
        labels = labels.to(embeddings.device, torch.int64)
        return graph.select_neighbors(similarity, labels, self.proxies_per_class, self.neighbors)

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
            f"proxy_weight={self.proxy_weight}, scale={self.scale}"
        )


def _directions(vectors: Tensor, least: float) -> Tensor:
    """L2-normalise the rows; one shorter than `least` has no direction to turn: it becomes 0 and gets no gradient."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(length > least, vectors / length.clamp_min(least), 0)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")


def _check_number(name: str, value: float, expected: str, holds: Callable[[float], bool]) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and holds(value)):
        raise ValueError(f"{name} is {value!r}, but must be a number {expected}")


def _check_finite(embeddings: Tensor) -> None:
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(f"embeddings[{first}] holds NaN or infinite values: look at the network or its learning rate")

"""ProxyGMLLoss: owns the proxies and checks its input; the arithmetic is in graph.py.

It needs nothing else of this package: `from proxygml import ProxyGMLLoss` fits anybody's training loop.
"""

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.loss import graph
from proxygml.loss.sharded import Shard

if TYPE_CHECKING:
    import numpy as np

_DRAWN_AT_A_TIME = 2**22  # numbers: bounds what drawing the proxies of other processes takes


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
        process_group: the processes that the classes are divided over, `torch.distributed.group.WORLD` for all; None
            for one process that owns them all. See below.
        device, dtype: of the proxies, as for the layers of torch.nn. In bfloat16 they take half the memory; the loss
            still computes in float32.

    Attributes:
        proxies: Parameter (len(owned_classes) * proxies_per_class, embedding_size), class-major. Give it a learning
            rate of its own: published values are 0.03 (CUB, Cars) and 0.3 (SOP) beside 1e-4 for the network.
        owned_classes: the classes, consecutive, whose proxies this process holds; all of them without a group.

    With a process group each process holds the proxies, and so the gradient and the optimiser's state, of its own
    classes alone; do not wrap the loss in DistributedDataParallel. `forward` takes this process's samples, with labels
    of all classes, and returns the loss of the samples of all processes, to each of them. `backward` leaves in the
    proxies their gradient, and in the embeddings W times that of this loss, W being the number of processes: data
    parallelism divides by W, so that the network gets the gradient of one process with all samples. Every process has
    to call the loss and its backward equally often, with embeddings of one precision; a batch may be smaller on some,
    or empty. The proxies are drawn as one process would draw them on a CPU; seed all processes alike.

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
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_classes = _count("num_classes", num_classes)
        embedding_size = _count("embedding_size", embedding_size)
        proxies_per_class = _count("proxies_per_class", proxies_per_class)
        _check_number("neighbor_ratio", neighbor_ratio, "in (0, 1]", lambda ratio: 0 < ratio <= 1)
        _check_number("proxy_weight", proxy_weight, "0 or more", lambda weight: weight >= 0)
        _check_number("scale", scale, "more than 0", lambda factor: factor > 0)
        memory_limit = _count("memory_limit", memory_limit)
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
        self._shard = None if process_group is None else Shard(num_classes, proxies_per_class, process_group)
        self.owned_classes = range(num_classes) if self._shard is None else self._shard.classes
        rows = len(self.owned_classes) * proxies_per_class
        self.proxies = nn.Parameter(torch.empty(rows, embedding_size, device=device, dtype=dtype))
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
        if self._shard is None:
            nn.init.kaiming_uniform_(self.proxies.T, a=math.sqrt(5))
        else:
            self._draw_own()

    @torch.no_grad()
    def _draw_own(self) -> None:
        """Draw the proxies of all processes in turn, a block at a time, and keep this process's."""
        per_class, size = self.proxies_per_class, self.embedding_size
        total, first, last = (per_class * classes for classes in (self.num_classes, *_ends(self.owned_classes)))
        bound = math.sqrt(3) * (nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(total))
        step = max(1, _DRAWN_AT_A_TIME // size)
        for start in range(0, total, step):
            stop = min(start + step, total)
            drawn = torch.empty(stop - start, size, dtype=self.proxies.dtype).uniform_(-bound, bound)
            low, high = max(start, first), min(stop, last)
            if low < high:
                self.proxies[low - first : high - first] = drawn[low - start : high - start].to(self.proxies.device)

    def forward(
        self, embeddings: Tensor, labels: "Tensor | np.ndarray[Any, Any] | Sequence[int]", indices_tuple: None = None
    ) -> Tensor:
        """The loss of a batch, L_s + proxy_weight * L_p.

        Values are checked on the CPU only: on an accelerator reading them back would stall its queue; there a NaN
        shows as a NaN loss, and a label out of range as the device's own assertion.

        Args:
            embeddings: (M, embedding_size) of any floating precision; normalised here.
            labels: (M,) integers in 0..num_classes - 1, as a tensor, an array or a list.
            indices_tuple: ignored; trainers of pytorch-metric-learning pass it.

        Returns:
            Scalar, float32 (float64 if an input is float64). Zero, with a graph, for an empty batch.

        Raises:
            ValueError: a wrong shape or dtype, a label out of range, a NaN or infinite embedding.
        """
        labels = self._checked(embeddings, labels)
        sizes = None if self._shard is None else self._shard.sizes(len(labels))
        with torch.autocast(embeddings.device.type, enabled=False):
            samples = self._samples(embeddings)
            if sum(sizes or [len(labels)]) == 0:
                no_proxies = F.embedding(labels, self.proxies, sparse=self.sparse)
                return samples.sum() + no_proxies.sum(dtype=samples.dtype)
            return graph.proxy_graph_loss(
                samples, self.proxies, labels, self._terms(), self._sampled(), self._shard, sizes
            )

    @torch.no_grad()
    def select(self, embeddings: Tensor, labels: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """The sub-graph of each sample: (M, k) int64 numbers of the proxies it keeps, its own class's first.

        (Without `positive_mask` in no order.) With a process group: for the samples of all processes, in their order,
        those proxies that this process holds, numbered among all processes'; -1 in places that are left.
        """
        edges, _ = self._edges(embeddings, self._checked(embeddings, labels))
        numbers = edges.neighbors + self.owned_classes.start * self.proxies_per_class
        return numbers if edges.kept is None else torch.where(edges.kept, numbers, -1)

    @torch.no_grad()
    def kept_by_others(self, embeddings: Tensor, labels: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """How many samples of other classes, of all processes, keep each of this process's proxies: int64."""
        labels = self._checked(embeddings, labels)
        edges, labels = self._edges(embeddings, labels)
        classes = edges.neighbors // self.proxies_per_class + self.owned_classes.start
        others = classes != labels[:, None]
        if edges.kept is not None:
            others &= edges.kept
        counts = torch.zeros(len(self.proxies), dtype=torch.int64, device=self.proxies.device)
        return counts.index_add_(0, edges.neighbors.flatten(), others.flatten().to(counts.dtype))

    def _edges(self, embeddings: Tensor, labels: Tensor) -> tuple[graph.Edges, Tensor]:
        """The edges of the samples of all processes to this process's proxies, and those samples' labels."""
        with torch.autocast(embeddings.device.type, enabled=False):
            samples = self._samples(embeddings)
            if self._shard is not None:
                sizes = self._shard.sizes(len(labels))
                samples, labels = self._shard.gathered(samples, sizes), self._shard.gathered(labels, sizes)
            similarity, _ = graph.cosine_similarity(samples, self.proxies)
        return graph.select_neighbors(similarity, labels, self._terms(), self._shard), labels

    def get_extra_state(self) -> Tensor:
        """What the rows of the proxies stand for: C, N, and the classes that this process owns."""
        owned = self.owned_classes
        return torch.tensor([self.num_classes, self.proxies_per_class, owned.start, owned.stop])

    def set_extra_state(self, state: Tensor) -> None:
        """Raise ValueError where loaded proxies are those of other classes, though their number may be the same."""
        if state.tolist() != self.get_extra_state().tolist():
            classes, number, first, last = state.tolist()
            raise ValueError(
                f"the state is that of {number} proxies of each of the classes {first}..{last - 1} of {classes}, but "
                f"the loss was built for {self.proxies_per_class} of each of {self.owned_classes.start}.."
                f"{self.owned_classes.stop - 1} of {self.num_classes}: build it with the same numbers"
            )

    def _samples(self, embeddings: Tensor) -> Tensor:
        """The embeddings, normalised, in the precision of the computation.

        Half-precision inputs are computed in float32 throughout, autocast or not: sums of hundreds of terms need it.
        """
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.proxies.dtype), torch.float32)
        # Shorter vectors would get gradients beyond what the precision holds.
        least = max(torch.finfo(embeddings.dtype).tiny, torch.finfo(dtype).tiny * 2**20)
        return _directions(embeddings.to(dtype), least)

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
            whole=self.neighbors == self.num_classes * self.proxies_per_class,
        )

    def _sampled(self) -> Tensor | None:
        """The proxies that the regulariser looks at in this step; None for all."""
        total = self.num_classes * self.proxies_per_class
        if self._sample_size == total or self.proxy_weight == 0:
            return None
        sampled = torch.randperm(total, device=self.proxies.device)[: self._sample_size]
        return sampled if self._shard is None else self._shard.first_(sampled)

    def _checked(self, embeddings: Tensor, labels: "Tensor | np.ndarray[Any, Any] | Sequence[int]") -> Tensor:
        """The labels as int64 on the embeddings' device; ValueError where a batch is not as `forward` says."""
        labels = torch.as_tensor(labels)
        self._check(embeddings, labels)
        return labels.to(embeddings.device, torch.int64)

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


def _ends(numbers: range) -> tuple[int, int]:
    return numbers.start, numbers.stop


def _directions(vectors: Tensor, least: float) -> Tensor:
    """L2-normalise the rows; one with no number above `least` has no direction: it becomes 0 and gets no gradient.

    Each row is scaled by its largest number first, so that squares neither overflow nor vanish.
    """
    largest = torch.linalg.vector_norm(vectors.detach(), math.inf, dim=1, keepdim=True)
    scaled = vectors / largest.clamp_min(least)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(largest > least, scaled / length.clamp_min(0.5), 0)


def _count(name: str, value: int) -> int:
    """A whole number of at least 1, NumPy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
    return number


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

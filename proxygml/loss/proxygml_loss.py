"""ProxyGMLLoss: owns the proxies; the arithmetic is in proxy_graph_loss.py, what is checked in checks.py.

It imports nothing else from this package, so `from proxygml import ProxyGMLLoss` works in any training loop.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proxygml.loss import graph
from proxygml.loss.checks import (
    Direction,
    Labels,
    check_batch,
    check_count,
    check_direction,
    check_loaded,
    check_number,
    check_sparse,
    check_state,
    sample_size,
    warn_if_raised,
)
from proxygml.loss.proxy_graph_loss import proxy_graph_loss, zero_loss
from proxygml.loss.regularizer import draw_proxies
from proxygml.loss.sharded import Shard, draw_owned_

# The arguments that the loss shows when it is printed.
_SHOWN = (
    *("num_classes", "embedding_size", "proxies_per_class", "neighbor_ratio", "proxy_weight", "scale"),
    *("proxy_sample", "sparse", "positive_mask", "mask_softmax", "degree_normalized", "direction", "margin"),
)


class ProxyGMLLoss(nn.Module):
    """The loss of "Fewer is More: A Deep Graph Metric Learning Perspective Using Fewer Proxies" (NeurIPS 2020).

    Each sample is compared with the proxies of its own class and only with the most similar other proxies. The labels
    of these proxies are propagated back along the edges of that graph. A softmax over the classes with a kept proxy
    then classifies the sample. A regulariser classifies the proxies in the same way, over their own graph.

    Args:
        num_classes: C, the number of training classes.
        embedding_size: D, the dimension of the embeddings.
        proxies_per_class: N. It also acts as an inverse temperature: a class's score is a sum of N similarities.
        neighbor_ratio: the paper's r in (0, 1]. Each sample keeps ceil(r * C * N) proxies, at least N + 1.
        proxy_weight: the paper's lambda >= 0, the weight of the regulariser.
        scale: factor on the samples' class scores before the softmax (20 for Stanford Online Products, where N is 1).
        proxy_sample: how many proxies the regulariser takes in a step, drawn anew each time: a whole number, or a
            fraction in (0, 1) of all. This estimate is unbiased and takes that part of the time. None takes them all.
        sparse: whether the proxies' gradient is a sparse tensor of the rows that some sample of the batch kept, for an
            optimiser that updates only those rows (proxygml.LazyAdam). The gradient is the same; finding the rows makes
            a GPU wait. Needs proxy_weight 0, because the regulariser moves every proxy.
        positive_mask: False leaves out step 2, so a sample's own proxies are not always kept (the paper's ablation).
        mask_softmax: False takes the softmax over all classes; those without a kept proxy have score 0 (likewise).
        degree_normalized: whether a class's score is the mean of its kept similarities instead of their sum (ours). A
            sum favours the own class, of which all N proxies are kept. With the mean, set `scale` to about 16.
        direction: "samples": each sample is classified over the proxies that it keeps, as in the paper. "proxies"
            (ours): along the same edges, each class sorts its own samples from the others that keep its proxies; see
            proxy_side.py. A class's score is then the mean of its kept similarities. Set `scale` to about 32, and
            proxy_weight to 0.
        margin: of direction "proxies": own samples are drawn above this similarity, and others pushed below minus it.
        memory_limit: bytes that the regulariser's logits may take at a time (one row of them at least).
        process_group: the processes that the classes are divided over, see below. None: one process owns them all.
        device: of the proxies, as for the layers of torch.nn.
        dtype: of the proxies. In bfloat16 they take half the memory; the loss still computes in float32.

    Attributes:
        proxies: Parameter (len(owned_classes) * proxies_per_class, embedding_size), class-major. Give it a learning
            rate of its own: published values are 0.03 (CUB, Cars) and 0.3 (SOP) beside 1e-4 for the network.
        owned_classes: the classes, consecutive, whose proxies this process holds; all of them without a group.

    With a process group each process holds the proxies, and so the gradient and the optimiser's state, of its own
    classes alone; do not wrap the loss in DistributedDataParallel. `forward` takes this process's samples, whose labels
    may be any class, and returns the loss of the samples of all W processes. `backward` gives the proxies their
    gradient, and the embeddings W times the gradient of this loss: data parallelism divides it by W, so that the
    network gets the gradient of one process with all samples. All processes call the loss and its backward equally
    often, with embeddings of one precision; a batch may be smaller on some, or empty. Seed all processes alike: the
    proxies are those that one process would draw on a CPU.

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
        direction: Direction = "samples",
        margin: float = 0.1,
        memory_limit: int = 32 * 2**20,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_count("num_classes", num_classes)
        self.embedding_size = embedding_size = check_count("embedding_size", embedding_size)
        self.proxies_per_class = proxies_per_class = check_count("proxies_per_class", proxies_per_class)
        self.neighbor_ratio = check_number("neighbor_ratio", neighbor_ratio, "in (0, 1]", lambda ratio: 0 < ratio <= 1)
        self.proxy_weight = check_number("proxy_weight", proxy_weight, "0 or more", lambda weight: weight >= 0)
        self.scale = check_number("scale", scale, "more than 0", lambda factor: factor > 0)
        self.margin = check_number("margin", margin, "-1 to 1", lambda cosine: -1 <= cosine <= 1)
        self.memory_limit = check_count("memory_limit", memory_limit)
        check_direction(direction, positive_mask, mask_softmax)
        check_sparse(sparse, self.proxy_weight)
        self.sparse = sparse
        self.positive_mask = positive_mask
        self.mask_softmax = mask_softmax
        self.degree_normalized = degree_normalized
        self.direction = direction
        self.proxy_sample = proxy_sample
        self._sample_size = sample_size(proxy_sample, num_classes * proxies_per_class)
        self.neighbors = graph.neighbor_count(num_classes, proxies_per_class, self.neighbor_ratio)
        warn_if_raised(self.neighbors, self.neighbor_ratio, num_classes, proxies_per_class)
        self._shard = None if process_group is None else Shard(num_classes, proxies_per_class, process_group)
        self.owned_classes = range(num_classes) if self._shard is None else self._shard.classes
        rows = len(self.owned_classes) * proxies_per_class
        self.proxies = nn.Parameter(torch.empty(rows, embedding_size, device=device, dtype=dtype))
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(check_loaded)  # type: ignore[no-untyped-call]

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The processes that the classes are divided over; None where this one owns them all."""
        return None if self._shard is None else self._shard.group

    def reset_parameters(self) -> None:
        """Draw the proxies anew, as published: Kaiming uniform with a = sqrt(5).

        The published tensor is transposed, (D, C*N), so its fan-in is C*N and the bound is 1 / sqrt(C*N). The direction
        of a proxy does not depend on this bound, but it decides how far the first optimiser steps turn the proxy.
        """
        if self._shard is None:
            nn.init.kaiming_uniform_(self.proxies.T, a=math.sqrt(5))
        else:
            draw_owned_(self.proxies, self.owned_classes, self.num_classes, self.proxies_per_class)

    def forward(self, embeddings: Tensor, labels: Labels, indices_tuple: None = None) -> Tensor:
        """The loss of a batch, L_s + proxy_weight * L_p.

        Values are checked on the CPU only, because reading them back would make an accelerator wait. On an accelerator,
        a NaN gives a NaN loss, and a label out of range triggers the device's own assertion.

        Args:
            embeddings: (M, embedding_size) of any floating precision; normalised here.
            labels: (M,) integers in 0..num_classes - 1, as a tensor, an array or a list.
            indices_tuple: ignored; trainers of pytorch-metric-learning pass it.

        Returns:
            Scalar, float32 (float64 if an input is float64). Zero, with a graph, for an empty batch.

        Raises:
            ValueError: a wrong shape or dtype, a label out of range, a NaN or infinite embedding.
        """
        labels = check_batch(embeddings, labels, self.num_classes, self.embedding_size)
        if self._shard is not None and not embeddings.requires_grad:
            embeddings = embeddings.detach()  # which may be made to need a gradient, unlike the caller's own
        with graph.computing_in_full(embeddings.device.type):
            sizes = None if self._shard is None else self._shard.agree_on_(embeddings)
            if sum(sizes or [len(labels)]) == 0:
                return zero_loss(embeddings, self.proxies, labels, self.sparse)
            terms, sampled = self._terms(), self._sampled()
            return proxy_graph_loss(embeddings, self.proxies, labels, terms, sampled, self._shard, sizes)

    @torch.no_grad()
    def select(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """The sub-graph of each sample: (M, k) int64 numbers of the proxies it keeps, its own class's first.

        With a process group, the rows are the samples of all processes, in their order, and the numbers are those of
        the kept proxies that this process holds; other places are -1.
        """
        edges, _ = self._edges(embeddings, labels)
        numbers = edges.neighbors + self.owned_classes.start * self.proxies_per_class
        return numbers if edges.kept is None else torch.where(edges.kept, numbers, -1)

    @torch.no_grad()
    def kept_by_others(self, embeddings: Tensor, labels: Labels) -> Tensor:
        """How many samples of other classes, of all processes, keep each of this process's proxies: int64."""
        edges, labels = self._edges(embeddings, labels)
        return graph.kept_by_others(edges, labels, len(self.proxies), self.proxies_per_class, self.owned_classes.start)

    def _edges(self, embeddings: Tensor, labels: Labels) -> tuple[graph.Edges, Tensor]:
        labels = check_batch(embeddings, labels, self.num_classes, self.embedding_size)
        return graph.edges_of_all(embeddings, self.proxies, labels, self._terms(), self._shard)

    def get_extra_state(self) -> Tensor:
        """What the rows of the proxies stand for: C, N, and the classes that this process owns."""
        owned = self.owned_classes
        return torch.tensor([self.num_classes, self.proxies_per_class, owned.start, owned.stop])

    def set_extra_state(self, state: Tensor) -> None:
        """Raise ValueError where loaded proxies are those of other classes, though their number may be the same."""
        check_state(state, self.get_extra_state().tolist())

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
            self.degree_normalized or self.direction == "proxies",
            proxy_side=self.direction == "proxies",
            margin=self.margin,
            whole=self.neighbors == self.num_classes * self.proxies_per_class,
        )

    def _sampled(self) -> Tensor | None:
        """The proxies that the regulariser looks at in this step; None for all."""
        total = self.num_classes * self.proxies_per_class
        if self._sample_size == total or self.proxy_weight == 0:
            return None
        return draw_proxies(self._sample_size, total, self.proxies.device, self._shard)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in _SHOWN)

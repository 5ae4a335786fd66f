"""The gradients of ProxyGML by the samples and by the proxies, written by hand beside the loss that they belong to.

Most similarities have no gradient: of a sample's C*N, only the k kept ones do. docs/performance.md describes what is
exact here, and why it cannot be cheaper.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# Bytes of proxies in a block. On a CPU, a block stays in the cache from one product to the next. On a GPU, a block
# keeps it busy, and bounds the memory of a copy where the proxies are converted from a lower precision.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 4 * 2**20, 256 * 2**20
CPU_PRODUCT_BYTES = 2**19

Gradients = tuple[Tensor | None, Tensor | None]  # by the samples (M, D), by the proxies (C*N, D); None where not wanted


class Step(NamedTuple):
    """What the gradients are computed from: the graph of a step and the loss's slopes along its edges."""

    samples: Tensor  # (M, D), of length 1
    proxies: Tensor  # (C*N, D)
    inverse: Tensor  # (C*N,): 1 / length of each proxy, 0 for one of length 0
    slopes: Tensor  # (M, e): of each edge, divided by the proxy's length; (M, C*N) where every proxy is a neighbour
    neighbors: Tensor | None  # (M, e) int64: the proxy of each edge; None where every proxy is a neighbour
    kept: Tensor | None  # (M, e) bool: False where a place holds no edge, and its slope is 0; None where all do
    along: Tensor | None  # (C*N,): see `along_proxies`; None where it has to be computed from the gradient itself


def step_gradients(step: Step, proxy_gradient: Tensor | None, wanted: tuple[bool, bool], sparse: bool) -> Gradients:
    """The gradients of a step.

    Args:
        step: its graph and slopes.
        proxy_gradient: what the regulariser gives to the proxies' gradient; it is used up. None without one.
        wanted: which of the two gradients is needed.
        sparse: whether the proxies' gradient is a sparse tensor of the rows that some sample kept.
    """
    if step.neighbors is None:
        return _from_all(step, proxy_gradient, wanted)
    if sparse or (proxy_gradient is None and _touches_few(step)):
        return _from_touched(step, wanted, sparse)
    return _from_kept(step, proxy_gradient, wanted)


def _touches_few(step: Step) -> bool:
    # A GPU would have to wait for the touched rows to be found, and the product takes it little time.
    on_cpu = step.samples.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and 8 * step.slopes.numel() <= len(step.proxies)


def _gathering_pays(step: Step) -> bool:
    # A gathered row costs a CPU about seven rows of a product.
    edges = step.slopes.shape[1]
    on_cpu = step.samples.device.type == "cpu" and step.proxies.dtype == step.samples.dtype
    return on_cpu and 0 < 8 * edges <= len(step.proxies)


def _from_touched(step: Step, wanted: tuple[bool, bool], sparse: bool) -> Gradients:
    """Gradients from the proxies that some sample kept, and from no others."""
    assert step.neighbors is not None
    proxies = step.proxies
    touched = torch.zeros(len(proxies), dtype=torch.bool, device=proxies.device)
    touched[step.neighbors if step.kept is None else step.neighbors[step.kept]] = True
    rows = touched.nonzero().squeeze(1)
    place = touched.cumsum(0).sub_(1)[step.neighbors]
    spread = _spread(step, place.clamp_(min=0), len(rows))
    along = None if step.along is None else step.along[rows]
    part = step._replace(proxies=proxies[rows], inverse=step.inverse[rows], slopes=spread, along=along)
    grad_samples, values = _from_all(part, None, wanted)
    if values is None:
        return grad_samples, None
    values = values.to(proxies.dtype)
    if sparse:
        # The rows are sorted and in range. Some releases of torch warn that checking this is slow, so the check is off.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            return grad_samples, torch.sparse_coo_tensor(rows[None], values, proxies.shape, is_coalesced=True)
    return grad_samples, torch.zeros_like(proxies).index_copy_(0, rows, values)


def _from_kept(step: Step, proxy_gradient: Tensor | None, wanted: tuple[bool, bool]) -> Gradients:
    """Gradients from all proxies, with slope 0 where a sample did not keep one; that of the samples by gathering."""
    assert step.neighbors is not None
    whole = step._replace(slopes=_spread(step, step.neighbors, len(step.proxies)))
    if not (wanted[0] and _gathering_pays(step)):
        return _from_all(whole, proxy_gradient, wanted)
    grad_samples = F.embedding_bag(step.neighbors, step.proxies, per_sample_weights=step.slopes, mode="sum")
    return grad_samples, _from_all(whole, proxy_gradient, (False, wanted[1]))[1]


def along_proxies(
    slopes: Tensor, similarity: Tensor, neighbors: Tensor, kept: Tensor | None, num_proxies: int
) -> Tensor:
    """The product of each proxy with its gradient before what lies along it is taken out: (num_proxies,).

    It is the sum of slope times similarity over the proxy's edges, all (M, e): a small part of what the product of two
    (num_proxies, D) tensors reads.
    """
    terms = slopes * similarity
    if kept is not None:
        terms = torch.where(kept, terms, 0)
    return terms.new_zeros(num_proxies).index_add_(0, neighbors.flatten(), terms.flatten())


def _spread(step: Step, place: Tensor, columns: int) -> Tensor:
    """The slopes (M, columns), each at its place, 0 elsewhere."""
    return spread_(step.slopes.new_empty(len(step.slopes), columns), place, step.slopes, step.kept)


def spread_(target: Tensor, place: Tensor, values: Tensor, kept: Tensor | None) -> Tensor:
    """Write values (M, e), which are 0 where not kept, to their places in target (M, columns), and 0 elsewhere."""
    target.zero_()
    if not target.shape[1]:
        return target
    # A place without an edge may hold the number of a real edge; its 0 must not overwrite that edge.
    return target.scatter_(1, place, values) if kept is None else target.scatter_add_(1, place, values)


def _from_all(step: Step, proxy_gradient: Tensor | None, wanted: tuple[bool, bool]) -> Gradients:
    """Gradients by samples and proxies, a product each, of slopes (M, C*N).

    A proxy's length has no effect on the loss, and what lies along the proxy is taken out at the end.
    """
    grad_samples = torch.zeros_like(step.samples) if wanted[0] else None
    grad_proxies = None
    if wanted[1]:
        grad_proxies = step.samples.new_empty(step.proxies.shape) if proxy_gradient is None else proxy_gradient
    for block, part in proxy_blocks(step.proxies, step.samples.dtype):
        slopes, inverse = step.slopes[:, block], step.inverse[block]
        if grad_samples is not None:
            grad_samples.addmm_(slopes, part)
        if grad_proxies is not None:
            rows = grad_proxies[block].addmm_(slopes.T, step.samples, beta=0 if proxy_gradient is None else 1)
            remove_along_(rows, part, inverse, None if step.along is None else step.along[block])
    return grad_samples, grad_proxies


def remove_along_(
    gradient: Tensor, vectors: Tensor, inverse: Tensor | None = None, along: Tensor | None = None
) -> None:
    """Take out of the gradient by each vector (n, D) what lies along it: its length has no effect on the loss.

    Args:
        gradient: (n, D), changed in place.
        vectors: (n, D).
        inverse: 1 / length of each, (n,); None where all have length 1.
        along: the product of each gradient and its vector, (n,); None where it has to be computed.
    """
    along = row_products(gradient, vectors) if along is None else along
    if inverse is not None:
        along = along * inverse * inverse
    gradient.addcmul_(vectors, along[:, None], value=-1)


def row_products(one: Tensor, other: Tensor) -> Tensor:
    """The products of the rows of two tensors (n, D), (n,)."""
    products = one.new_empty(len(one))
    # The terms of all products are written before they are added up. On a CPU, those of a block stay in the cache.
    rows = CPU_PRODUCT_BYTES // (one.shape[1] * one.itemsize) if one.device.type == "cpu" else len(one)
    for start in range(0, len(one), max(1, rows)):
        block = slice(start, start + max(1, rows))
        torch.linalg.vecdot(one[block], other[block], out=products[block])
    return products


def proxy_blocks(proxies: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The proxies in `dtype`, a block of rows at a time."""
    limit = CPU_BLOCK_BYTES if proxies.device.type == "cpu" else GPU_BLOCK_BYTES
    rows = max(1, limit // (math.prod(proxies.shape[1:]) * dtype.itemsize))
    for start in range(0, len(proxies), rows):
        block = slice(start, min(start + rows, len(proxies)))
        yield block, proxies[block].to(dtype)


class _DifferentiatedOnce(Function):
    """The identity, which refuses to be differentiated with a clear message."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "ProxyGMLLoss has a first derivative only, but its gradient is differentiated again: leave create_graph "
            "out, or detach the gradient"
        )


def once_differentiable(gradients: Gradients, *inputs: Tensor) -> list[Tensor | None]:
    """The gradients as they are; where they become part of a graph themselves, refusing a second derivative."""
    if not torch.is_grad_enabled():
        return list(gradients)
    return [gradient if gradient is None else _DifferentiatedOnce.apply(gradient, *inputs) for gradient in gradients]

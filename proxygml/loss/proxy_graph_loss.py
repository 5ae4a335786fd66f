"""The loss of ProxyGML as one operation of autograd: the samples' loss and the regulariser, with gradients by hand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from proxygml.loss.gradients import (
    Gradients,
    Step,
    along_proxies,
    once_differentiable,
    remove_along_,
    spread_,
    step_gradients,
)
from proxygml.loss.graph import (
    Terms,
    computing_dtype,
    computing_in_full,
    cosine_similarity,
    inverse_lengths,
    unit_samples,
)
from proxygml.loss.joint import fits_at_once, joint_gradients, joint_proxy_loss_, joint_similarity
from proxygml.loss.regularizer import proxy_loss, sampled_proxy_loss
from proxygml.loss.sample_loss import sub_graph_loss, whole_graph_loss
from proxygml.loss.sharded import Shard


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


def zero_loss(embeddings: Tensor, proxies: Tensor, labels: Tensor, sparse: bool) -> Tensor:
    """The loss of an empty batch: 0, with a graph that gives embeddings and proxies gradients of 0.

    Args:
        embeddings: (0, D).
        proxies: (C*N, D).
        labels: (0,) int64.
        sparse: whether the proxies' gradient is a sparse tensor; it is of no rows.
    """
    dtype = computing_dtype(embeddings.dtype, proxies.dtype)
    no_proxies = F.embedding(labels, proxies, sparse=sparse)
    return embeddings.sum(dtype=dtype) + no_proxies.sum(dtype=dtype)


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
                loss, slopes = whole_graph_loss(similarity, labels, terms, shard)
            else:
                loss, slopes, (edge_similarity, neighbors, kept, _) = sub_graph_loss(similarity, labels, terms, shard)
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
        loss, slopes = whole_graph_loss(similarity, labels, terms, shard)
        spread = slopes[:, :, None] * inverse.view(-1, num_own)
        similarity.copy_(spread.flatten(1))
    else:
        loss, slopes, edges = sub_graph_loss(similarity, labels, terms, shard)
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

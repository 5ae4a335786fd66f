"""Candidates for the recipe `photos`, each a switch of one part of its training; measured by benchmarks/switches.py.

They are not in the package: what gains on held-out training classes is built in later. A switch takes part in every
step: it can change the settings, the loss, the backward pass, and what follows the optimiser's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.embedder import Embedder
from proxygml.training.criterion import make_criterion
from proxygml.training.loss_settings import LossSettings
from proxygml.training.recipe import Recipe


class Switch:
    """The recipe as it is. Each subclass changes one part of it; `value` says how much.

    Attributes:
        values: those that are tried.
        criterion: the loss, set by `start`.
    """

    values: ClassVar[tuple[float, ...]] = (0.0,)
    criterion: nn.Module

    def __init__(self, value: float) -> None:
        self.value = value

    def changed(self, recipe: Recipe) -> Recipe:
        """The recipe with the settings of this switch."""
        return recipe

    def start(self, recipe: Recipe, embedder: Embedder, num_classes: int) -> nn.Module:
        """Make the loss and whatever the switch keeps; called once, with the network as it starts."""
        self.criterion = self.make_loss(recipe, embedder.embedding_size, num_classes).to(embedder.device)
        return self.criterion

    def make_loss(self, recipe: Recipe, size: int, num_classes: int) -> nn.Module:
        """The loss for embeddings of that size."""
        return make_criterion(recipe.loss, num_classes, size)

    def backward(self, embedder: Embedder, images: Tensor, labels: Tensor) -> Tensor:
        """Give every parameter its gradient; return the loss."""
        loss = self.loss(embedder(images), images, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def loss(self, embeddings: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: embeddings (M, D), images (M, 3, H, W), labels (M,)."""
        loss: Tensor = self.criterion(embeddings, labels)
        return loss

    def after_step(self, embedder: Embedder) -> None:
        """What follows the optimiser's step."""


# Switches that change the network's training -------------------------------------------------------------------------


class Distillation(Switch):
    """Keep the similarities within a batch near those of a moving average of the network; `value` is the weight.

    The teacher is the mean teacher of Tarvainen and Valpola 2017; what is compared are similarities between samples, as
    in relational distillation (Park et al. 2019): the KL divergence of the softmax over each row, as in S2SD (Roth et
    al. 2021).
    """

    values = (0.5, 5.0)
    momentum: ClassVar[float] = 0.99
    temperature: ClassVar[float] = 0.1

    def start(self, recipe: Recipe, embedder: Embedder, num_classes: int) -> nn.Module:
        """See Switch; the teacher starts as the network."""
        average = get_ema_multi_avg_fn(self.momentum)  # type: ignore[no-untyped-call]
        self.teacher = AveragedModel(embedder, multi_avg_fn=average).requires_grad_(False)
        self.teacher.train()  # to look at one view; its batch norm is frozen like the network's
        assert isinstance(self.teacher.module, Embedder)
        self.teacher.module.backbone.eval()
        return super().start(recipe, embedder, num_classes)

    def loss(self, embeddings: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """See Switch."""
        with torch.no_grad():
            wanted = self.teacher(images)
        rows = (others_of(one) / self.temperature for one in (embeddings, wanted))
        student, teacher = (row.log_softmax(dim=1) for row in rows)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return super().loss(embeddings, images, labels) + self.value * divergence

    def after_step(self, embedder: Embedder) -> None:
        """Move the teacher towards the network."""
        self.teacher.update_parameters(embedder)


def others_of(embeddings: Tensor) -> Tensor:
    """The similarities of each sample to all others, (M, M - 1), of unit vectors (M, D)."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool, device=embeddings.device)
    return (embeddings @ embeddings.T)[others].view(count, count - 1)


class PulledProxies(Switch):
    """Draw each class's nearest proxy towards a moving average of its embeddings; `value` is the share of the way.

    Of the classes of the batch, after each step. The averages move as the centres of centre loss do (Wen et al. 2016);
    drawing proxies to them is ours.
    """

    values = (0.05, 0.2)
    momentum: ClassVar[float] = 0.9

    def loss(self, embeddings: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """See Switch."""
        self.batch = embeddings.detach(), labels
        return super().loss(embeddings, images, labels)

    def start(self, recipe: Recipe, embedder: Embedder, num_classes: int) -> nn.Module:
        """See Switch."""
        self.means = torch.zeros(num_classes, embedder.embedding_size, device=embedder.device)
        return super().start(recipe, embedder, num_classes)

    @torch.no_grad()
    def after_step(self, embedder: Embedder) -> None:
        """Update the means of the classes of the batch, and pull their proxies."""
        embeddings, labels = self.batch
        sums = torch.zeros_like(self.means).index_add_(0, labels, embeddings)
        counts = torch.bincount(labels, minlength=len(sums))[:, None]
        classes = (counts > 0).squeeze(1).nonzero().squeeze(1)
        of_batch = sums[classes] / counts[classes]
        self.means[classes] = self.means[classes].lerp(of_batch, 1 - self.momentum)
        directions = F.normalize(self.means[classes], dim=1)
        proxies: Tensor = self.criterion.proxies  # type: ignore[assignment]
        per_class = proxies.view(len(self.means), -1, proxies.shape[1])
        own = per_class[classes]
        nearest = torch.einsum("cnd,cd->cn", F.normalize(own, dim=2), directions).argmax(dim=1)
        pulled = own[torch.arange(len(own), device=own.device), nearest]
        aims = directions * torch.linalg.vector_norm(pulled, dim=1, keepdim=True)
        per_class[classes, nearest] = pulled.lerp(aims, self.value)


class LargeBatch(Switch):
    """Batches of `value` images, with learning rates that grow with its square root, as suits Adam.

    Batches beyond the recipe's go through the network in parts of its size; see `backward_in_parts`. It has a row of
    its own, to tell what MixedSamples in large batches owes to them.
    """

    values: ClassVar[tuple[float, ...]] = (128.0,)

    def changed(self, recipe: Recipe) -> Recipe:
        """See Switch."""
        self.part = recipe.batch_size
        factor = math.sqrt(self.value / recipe.batch_size)
        return replace(
            recipe,
            batch_size=int(self.value),
            backbone_lr=recipe.backbone_lr * factor,
            embedding_lr=recipe.embedding_lr * factor,
            proxy_lr=recipe.proxy_lr * factor,
        )

    def backward(self, embedder: Embedder, images: Tensor, labels: Tensor) -> Tensor:
        """See Switch."""
        return backward_in_parts(embedder, lambda found: self.loss(found, images, labels), images, self.part)


def backward_in_parts(network: nn.Module, loss_of: Callable[[Tensor], Tensor], images: Tensor, part: int) -> Tensor:
    """The loss of a large batch and exactly its gradients, with the memory of a part: gradient caching.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. A first pass
    without gradients finds the embeddings, of which the loss gives the gradients; a second one takes them through the
    network part by part. The network must treat every image alike: frozen batch norm, no dropout.

    Args:
        network: images to embeddings.
        loss_of: embeddings (M, D) to a scalar.
        images: (M, 3, H, W).
        part: how many images go through the network at a time.
    """
    with torch.no_grad():
        embeddings = torch.cat([network(some) for some in torch.split(images, part)])
    embeddings.requires_grad_()
    loss = loss_of(embeddings)
    loss.backward()  # type: ignore[no-untyped-call]
    assert embeddings.grad is not None
    for some, gradient in zip(torch.split(images, part), torch.split(embeddings.grad, part), strict=True):
        network(some).backward(gradient)
    return loss.detach()


# Switches that change the loss ---------------------------------------------------------------------------------------


class WrittenOut(ProxyGMLLoss):
    """ProxyGMLLoss of direction proxies and neighbor_ratio 1, written out so that its parts can be changed."""

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:  # type: ignore[override]
        """Embeddings (M, D) and labels (M,) to the scalar loss."""
        products = F.normalize(embeddings, dim=1) @ F.normalize(self.proxies, dim=1).T
        similarity, labels = self.samples(products.view(len(labels), self.num_classes, -1), labels)
        own = F.one_hot(labels, self.num_classes).bool()
        scores, kept = self.scores(similarity, own)
        scale = self.factor()
        pull = log_one_plus(-scale * (scores - self.margin), own)
        push = log_one_plus(scale * (scores + self.margin), kept & ~own)
        return pull.sum() / own.any(dim=0).sum() + push.mean()

    def samples(self, similarity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The similarities (M, C, N) and classes (M,) of the samples that the loss is taken over."""
        return similarity, labels

    def scores(self, similarity: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's score for each class, (M, C), and whether it keeps an edge to it, bool (M, C)."""
        return similarity.mean(dim=2), torch.ones_like(own)

    def factor(self) -> float | Tensor:
        """The scale."""
        return self.scale

    def use(self, value: float) -> None:
        """Take the value of the switch."""


def log_one_plus(logits: Tensor, counted: Tensor) -> Tensor:
    """log(1 + the sum of exp over the counted ones) of each column, (C,), of logits (M, C)."""
    zeros = logits.new_zeros(1, logits.shape[1])
    return torch.cat([zeros, logits.masked_fill(~counted, -math.inf)]).logsumexp(dim=0)


class ChangedLoss(Switch):
    """A switch of the loss alone, which `kind` computes."""

    kind: ClassVar[type[WrittenOut]] = WrittenOut

    def make_loss(self, recipe: Recipe, size: int, num_classes: int) -> WrittenOut:
        """See Switch."""
        settings = recipe.loss
        loss = self.kind(
            num_classes,
            size,
            settings.proxies_per_class,
            neighbor_ratio=settings.neighbor_ratio,
            proxy_weight=settings.proxy_weight,
            scale=settings.scale,
            direction=settings.direction,
            margin=settings.margin,
        )
        loss.use(self.value)
        return loss


class _LearnedScale(WrittenOut):
    def use(self, value: float) -> None:
        self.log_scale = nn.Parameter(torch.tensor(math.log(value)))

    def factor(self) -> Tensor:
        return self.log_scale.exp()


class LearnedScale(ChangedLoss):
    """Learn the scale, starting at `value`: its logarithm is one more parameter, with the proxies' rate.

    Source: the learned temperature of CLIP (Radford et al. 2021).
    """

    values = (32.0, 16.0)
    kind = _LearnedScale


class _Threshold(WrittenOut):
    def use(self, value: float) -> None:
        self.least = value

    def scores(self, similarity: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        edges = (similarity > self.least) | own[:, :, None]
        degrees = edges.sum(dim=2)
        return (similarity * edges).sum(dim=2) / degrees.clamp(min=1), degrees > 0


class Threshold(ChangedLoss):
    """Keep the edges to the other classes' proxies that are more similar than `value`, not a fixed share of them.

    Own proxies are always kept. An epsilon-neighbourhood graph in place of one of nearest neighbours (von Luxburg
    2007).
    """

    values = (0.0, 0.1)
    kind = _Threshold


class _DecayingAttraction(WrittenOut):
    core = 0.2  # attraction does not grow within this distance

    def use(self, value: float) -> None:
        self.exponent = value

    def scores(self, similarity: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        distance = (2 - 2 * similarity.detach()).clamp(min=self.core**2).sqrt()
        weights = distance.pow(-self.exponent - 2)  # the slope of -r ** -exponent by the similarity, 1 - r ** 2 / 2
        near = (similarity * weights).sum(dim=2) / weights.sum(dim=2)
        return torch.where(own, near, similarity.mean(dim=2)), torch.ones_like(own)


class DecayingAttraction(ChangedLoss):
    """Let a sample's own proxies attract it less the farther they are: by the potential -1 / distance ** `value`.

    Source: the decaying attraction of Bhatnagar and Ahuja, "Potential Field Based Deep Metric Learning", CVPR 2025.
    Here it sets the weights, of sum 1, with which the similarities to the own proxies make the sample's score.
    """

    values = (1.0, 4.0)
    kind = _DecayingAttraction


class _MixedSamples(WrittenOut):
    def samples(self, similarity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (labels[:, None] == labels).triu(diagonal=1).nonzero(as_tuple=True)
        share = torch.rand(len(first), 1, 1, device=labels.device, dtype=similarity.dtype)
        mixed = similarity[first].lerp(similarity[second], share)
        return torch.cat([similarity, mixed]), torch.cat([labels, labels[first]])


class MixedSamples(LargeBatch, ChangedLoss):
    """Add a sample for each pair of one class, whose similarities are those of the pair mixed; batches of `value`.

    Source: SiMix of Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022; here
    the similarities are those to the proxies.
    """

    values = (32.0, 128.0)
    kind = _MixedSamples


class ProxyAnchor(Switch):
    """Proxy-Anchor (Kim et al. 2020) in the same recipe, with the rate that suits it best there; `value` is alpha."""

    values = (32.0,)

    def changed(self, recipe: Recipe) -> Recipe:
        """See Switch."""
        loss = LossSettings(name="ProxyAnchorLoss", arguments={"margin": 0.1, "alpha": self.value})
        return replace(recipe, loss=loss, proxy_lr=0.01)


SWITCHES: dict[str, type[Switch]] = {
    "none": Switch,
    "distillation": Distillation,
    "learned_scale": LearnedScale,
    "threshold": Threshold,
    "pulled_proxies": PulledProxies,
    "decaying_attraction": DecayingAttraction,
    "mixed_samples": MixedSamples,
    "large_batch": LargeBatch,
    "proxy_anchor": ProxyAnchor,
}

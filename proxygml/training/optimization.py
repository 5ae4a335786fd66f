"""What learns, and how fast: the parts that are frozen, the optimisers' parameter groups, the schedule."""

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn

from proxygml.errors import RecipeError
from proxygml.loss.lazy_adam import LazyAdam
from proxygml.models.embedder import Embedder
from proxygml.training.recipe import Recipe

RISE = 0.1  # the share of all steps in which the rates of one_cycle rise


def check_learning_rates(recipe: Recipe) -> None:
    """Raise RecipeError where only the proxies would learn and the network would stay as it is."""
    settings = recipe.embedder
    head = bool(settings.embedding_size) or (settings.pooling == "gem" and not recipe.cache_features)
    if recipe.epochs and not recipe.backbone_lr and not (recipe.embedding_lr and head):
        raise RecipeError(
            f"backbone_lr is 0, embedding_lr is {recipe.embedding_lr:g} and embedder.embedding_size is "
            f"{settings.embedding_size}: nothing of the network would learn; give one a learning rate (and a linear "
            "layer to train), or epochs 0 to evaluate the network as it is"
        )


def freeze(embedder: Embedder, recipe: Recipe, epoch: int) -> None:
    """Put the embedder into training mode and choose what learns: in the warm-up only the head and the proxies."""
    backbone_learns = epoch > recipe.warmup_epochs and recipe.backbone_lr > 0
    embedder.train()
    embedder.backbone.requires_grad_(backbone_learns)
    embedder.backbone.train(backbone_learns)
    if recipe.batch_norm == "frozen":
        for layer in embedder.backbone.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
                layer.requires_grad_(False)


def make_optimizers(recipe: Recipe, embedder: Embedder, criterion: nn.Module) -> list[torch.optim.Optimizer]:
    """Adam over three groups, each with its own learning rate (see set_learning_rates).

    Proxies with sparse gradients have a second optimiser, a LazyAdam.
    """
    groups = [
        {"name": "backbone", "params": list(embedder.backbone.parameters())},
        {"name": "embedding", "params": [*embedder.pool.parameters(), *embedder.head.parameters()]},
        {"name": "proxy", "params": list(criterion.parameters())},
    ]
    settings = {"lr": 0.0, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    if not recipe.loss.sparse:
        return [kind(groups, **settings, fused=True)]
    return [
        kind(groups[:2], **settings, fused=True),
        LazyAdam(groups[2:], lr=0.0, eps=recipe.eps, weight_decay=recipe.weight_decay),
    ]


def set_learning_rates(
    optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe, finished: float
) -> dict[str, float]:
    """Set and return each group's learning rate for the step after so many epochs, fractions included."""
    factor = schedule_factor(recipe, finished)
    bases = {"backbone": recipe.backbone_lr, "embedding": recipe.embedding_lr, "proxy": recipe.proxy_lr}
    for group in chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
        group["lr"] = bases[group["name"]] * factor
    return {f"{name}_lr": base * factor for name, base in bases.items()}


def schedule_factor(recipe: Recipe, finished: float) -> float:
    """What the learning rates are multiplied by after so many epochs, fractions included."""
    if recipe.schedule == "steps":
        return recipe.decay ** sum(finished >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * math.floor(finished) / recipe.epochs))
    share = finished / recipe.epochs
    if share < RISE:
        return share / RISE
    return 0.5 * (1 + math.cos(math.pi * (share - RISE) / (1 - RISE)))

"""The network and the proxies as training starts from them: at random, as in the paper, or made from features.

A random embedding layer loses part of the information in pretrained features, and the first epochs only recover it. So
layer and proxies can start from the features of the training images. docs/results.md measures the gain.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError, counted
from proxygml.loss.proxygml_loss import ProxyGMLLoss
from proxygml.models.backbones import build_backbone
from proxygml.models.embedder import Embedder
from proxygml.models.head import Head, Standardized
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.models.vector_embedder import VectorEmbedder
from proxygml.training.continuation import load_network
from proxygml.training.features import cached_features, embed_features
from proxygml.training.projections import Moments, discriminants, principal_directions
from proxygml.training.recipe import Recipe
from proxygml.training.splits import split_for_training
from proxygml.training.vectors import unit_blocks

MOST_FEATURES = 32_768
"""Of which the matrix of all pairs takes 8 GiB in float64."""


def initial_embedder(
    recipe: Recipe,
    classes: Sequence[str],
    accelerator: Accelerator,
    training: tuple[Catalog, Tensor] | None = None,
    *,
    restored: bool = False,
) -> Embedder:
    """The network before the first step, on the accelerator's device; the same for the same recipe. Seeds all draws.

    Args:
        recipe: what it is built from, and how it starts.
        classes: the training classes.
        accelerator: the processes.
        training: the training images and their class numbers, int64 (n,); read from the recipe's catalog where they
            are needed and left out.
        restored: a checkpoint will fill in every weight, so none is loaded or started here.

    Raises:
        RecipeError: the layer starts from features, and the images have fewer directions than the embedding.
        UserError: see Embedder.
    """
    set_seed(recipe.seed)
    continued = bool(recipe.start_from)
    from_features = not continued and (recipe.embedding_start != "random" or recipe.embedder.feature_norm == "standard")
    if training is None and (recipe.takes_vectors or from_features):
        images = split_for_training(recipe, own=False)[0]
        training = images, torch.from_numpy(images.class_numbers)
    embedder = new_embedder(recipe, classes, training and training[0], restored or continued)
    if continued and not restored:
        load_network(embedder, Path(recipe.start_from))
    embedder.to(accelerator.device)
    if from_features and not restored:
        assert training is not None  # read above
        images, labels = training
        check_num_features(embedder.num_features, recipe)
        if recipe.embedding_start != "random":
            check_directions(embedder.embedding_size, len(images), embedder.num_features)  # before any are computed
        blocks = partial(start_blocks, embedder, images, accelerator, recipe)
        start_head(embedder.head, blocks, labels, recipe)
    return embedder


def new_embedder(recipe: Recipe, classes: Sequence[str], images: Catalog | None, restored: bool = False) -> Embedder:
    """The network that a recipe describes, with the weights that it names; nothing starts from features.

    Args:
        recipe: what it is built from.
        classes: the training classes.
        images: the training images; needed where they are vectors, for their size.
        restored: load no weights.
    """
    settings = recipe.embedder
    if recipe.takes_vectors:
        assert images is not None
        return VectorEmbedder(settings, images.vector_source.size, classes)
    backbone = build_backbone(settings.backbone, "none", recipe.images) if restored else None
    return ImageEmbedder(settings, recipe.images, classes, backbone=backbone)


def start_blocks(embedder: Embedder, images: Catalog, accelerator: Accelerator, recipe: Recipe) -> Iterator[Tensor]:
    """The features as training sees them, (m, F) at a time: of one view and the backbone's own map, or cached ones."""
    if not embedder.takes_images:
        yield from unit_blocks(images)
        return
    as_trained = not recipe.cache_features
    yield cached_features(embedder, images, accelerator, workers=recipe.workers, as_trained=as_trained)


def start_embeddings(embedder: Embedder, images: Catalog, accelerator: Accelerator, recipe: Recipe) -> Iterator[Tensor]:
    """The embeddings of the training images before the first step, (m, D) at a time."""
    for block in start_blocks(embedder, images, accelerator, recipe):
        yield embed_features(embedder, block)


@torch.no_grad()
def start_head(head: Head, blocks: Callable[[], Iterator[Tensor]], labels: Tensor, recipe: Recipe) -> None:
    """Measure what the head's norm needs, and let its layer start as the recipe says.

    Args:
        head: with a norm `standard`, or none.
        blocks: gives the features (m, F) anew at each call.
        labels: int64 (n,), the class of each.
        recipe: how the layer starts.

    Raises:
        RecipeError: the layer is to start from features that are all 0.
    """
    if isinstance(head.norm, Standardized):
        measured = Moments.of(blocks())
        head.norm.mean.copy_(measured.mean)
        head.norm.deviation.copy_(measured.deviation)
    if recipe.embedding_start == "random":
        return
    normed = (head.norm(block.to(next(head.parameters()).device)).cpu() for block in blocks())
    by_class = recipe.embedding_start == "lda"
    moments = Moments.of(normed, labels if by_class else None)
    if not moments.products.any():
        raise RecipeError(
            f"embedding_start is {recipe.embedding_start}, but all features of "
            f"{counted(len(labels), 'training image')} are 0: take other weights of the backbone, or "
            "embedding_start random"
        )
    noun = "training vector" if recipe.takes_vectors else "training image"
    if moments.is_one_point:
        raise RecipeError(
            f"embedding_start is {recipe.embedding_start}, but all features of "
            f"{counted(len(labels), noun)} are the same: nothing can tell their classes apart"
        )
    size = recipe.embedder.embedding_size
    if by_class:
        weight, bias = discriminants(moments, size, recipe.whitening)
    else:
        weight, bias = principal_directions(moments.products, size, recipe.whitening), torch.zeros(size)
    head.start_at(weight, bias)


def check_num_features(features: int, recipe: Recipe) -> None:
    """Raise RecipeError where features are too many for the matrix of all pairs of them that a start is found from."""
    if features > MOST_FEATURES:
        start, item = recipe.embedding_start, "vector" if recipe.takes_vectors else "image"
        setting, other = f"embedding_start {start}", "embedding_start random and whitening 0"
        if start == "random":
            setting, other = "embedder.feature_norm standard", "embedder.feature_norm none"
        raise RecipeError(
            f"each {item} has {counted(features, 'feature')}, but {setting} takes at most {MOST_FEATURES:,}: shorten "
            f"them first, by PCA for example, or take {other}"
        )


def check_directions(size: int, images: int, features: int) -> None:
    """Raise RecipeError where so many images of so many features do not span as many dimensions as an embedding has."""
    most = min(images, features)
    if size > most:
        raise RecipeError(
            f"embedder.embedding_size is {size}, but only {counted(most, 'direction')} can be found in "
            f"{counted(images, 'training image')} of {counted(features, 'feature')}: take at most {most}, or "
            "embedding_start random"
        )


@torch.no_grad()
def start_proxies(criterion: ProxyGMLLoss, blocks: Iterable[Tensor], labels: Tensor) -> None:
    """Turn each proxy to the mean of a part of its class's embeddings: ours. Lengths stay as they were drawn.

    Image i of a class goes to its proxy i modulo N; a class with fewer than N images starts several proxies alike, and
    one that label noise has left without any stays as drawn. So does a proxy whose mean is 0, which has no direction.

    Args:
        criterion: the loss. Where its classes are divided over processes, each starts the proxies that it holds.
        blocks: of the n embeddings, L2-normalised, (m, D) at a time: together they may be larger than memory.
        labels: (n,) int64 in 0..C-1.
    """
    owned, per_class = criterion.owned_classes, criterion.proxies_per_class
    mine = ((labels >= owned.start) & (labels < owned.stop)).nonzero().squeeze(1)
    order = mine[torch.argsort(labels[mine], stable=True)]
    classes = labels[order] - owned.start
    counts = torch.bincount(classes, minlength=len(owned))
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[classes]  # of an image within its class
    proxy = torch.full((len(labels),), -1)  # of each image; -1 where another process holds it
    proxy[order] = classes * per_class + place % per_class
    sums, start = torch.zeros(criterion.proxies.shape), 0
    for block in blocks:
        of_block = proxy[start : start + len(block)]
        held = of_block >= 0
        sums.index_add_(0, of_block[held], block[held])
        start += len(block)
    rows = torch.arange(len(sums))
    owner = rows // per_class
    shared = owner * per_class + rows % per_class % counts[owner].clamp(1, per_class)
    proxies = criterion.proxies
    directions = F.normalize(sums[shared], dim=1).to(proxies.device, proxies.dtype)
    turned = directions * torch.linalg.vector_norm(proxies, dim=1, keepdim=True)
    proxies.copy_(torch.where(directions.any(dim=1, keepdim=True), turned, proxies))

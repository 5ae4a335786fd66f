"""What a training step is given: the training data of a recipe, and the loader that makes batches of it."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from proxygml.data.catalog import Catalog
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.models.embedder import Embedder
from proxygml.training.features import FeatureDataset, cached_features
from proxygml.training.quarter_turns import TurnedImages
from proxygml.training.recipe import Recipe
from proxygml.training.sampler import Batches
from proxygml.training.vectors import VectorDataset, as_given

Loader = DataLoader[Any]
TrainingData = ImageDataset | TurnedImages | FeatureDataset | VectorDataset


def training_data(recipe: Recipe, embedder: Embedder, images: Catalog, accelerator: Accelerator) -> TrainingData:
    """Images, in all turns where the recipe says so; the features of a frozen backbone, computed once; or vectors."""
    if recipe.takes_vectors:
        return VectorDataset(images)
    if recipe.cache_features:
        return FeatureDataset(cached_features(embedder, images, accelerator, workers=recipe.workers))
    settings = recipe.images
    data = ImageDataset(images.paths, images.boxes, settings, training=True, seed=recipe.seed, kept=True)
    return TurnedImages(data) if settings.quarter_turns else data


def training_loader(recipe: Recipe, data: TrainingData, batches: Batches, device: torch.device) -> Loader:
    """One loader for all epochs, so that its workers outlive them."""
    workers = 0 if recipe.cache_features else recipe.workers
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_collate(recipe),
        pin_memory=device.type == "cuda",
        # Of its own: where workers start, a loader draws a number, and dropout must not depend on where that is.
        generator=torch.Generator(),
    )


def _collate(recipe: Recipe) -> Callable[[Any], Any] | None:
    if recipe.takes_vectors:
        return as_given
    return None if recipe.cache_features else collate

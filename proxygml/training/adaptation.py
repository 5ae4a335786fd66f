"""Adapting a recipe to a small catalog: settings that need more images or classes are lowered, and a sentence says how.

The run folder keeps the lowered values. A comparison does not adapt its recipes, because its methods must stay as they
were written.
"""

import math
from dataclasses import replace

from proxygml.data.catalog import Catalog
from proxygml.errors import counted
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.training.quarter_turns import num_trained
from proxygml.training.recipe import Recipe
from proxygml.training.splits import split_for_training

FEWEST_TO_HOLD_OUT_OF = 6
"""Training classes of which two can be held out to choose the epoch, so that at least four train."""


def adapted_recipe(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe lowered so that the images of its catalog suffice, and what was changed; "" if nothing was.

    Ours, for small sets; nothing changes with more than 20 classes and as many images as the embedding has dimensions:
    - validation_classes becomes 0 with fewer than 6 training classes;
    - embedder.embedding_size, where the embedding starts from features, becomes the largest power of two that is at
      most the number of training images, or the size of the vectors;
    - batch_size, with images_per_class, becomes as many images as all classes together give;
    - loss.neighbor_ratio keeps at least one proxy of another class.

    Raises:
        CatalogError: see split_for_training; or the catalog has no images where the network takes them, or no vectors.
    """
    held_out = recipe.validation_classes
    if held_out and _training_classes(recipe) < FEWEST_TO_HOLD_OUT_OF:
        held_out = 0.0
    images, _ = split_for_training(replace(recipe, validation_classes=held_out), own=False)
    _check_input(recipe, images)
    number, classes = len(images), len(images.classes)
    trained = num_trained(classes, recipe.images)
    directions = min(number, images.vector_source.size) if recipe.takes_vectors else number
    fitting = replace(
        recipe,
        validation_classes=held_out,
        batch_size=_batch_size(recipe, trained),
        embedder=_embedder(recipe, directions),
        loss=replace(recipe.loss, neighbor_ratio=_neighbor_ratio(recipe, trained)),
    )
    changes = _changes(recipe, fitting)
    item = "vector" if recipe.takes_vectors else "image"
    return (
        fitting,
        f"few {item}s to train on ({counted(number, item)} of {counted(classes, 'class')}), so {changes}"
        if changes
        else "",
    )


def _check_input(recipe: Recipe, images: Catalog) -> None:
    """Raise CatalogError where a catalog has not what the network takes, before any weights are fetched."""
    _ = images.vector_source if recipe.takes_vectors else images.paths


def _training_classes(recipe: Recipe) -> int:
    """How many there are before any are held out."""
    catalog, _ = split_for_training(replace(recipe, validation_classes=0.0), own=False)
    return len(catalog.classes)


def _embedder(recipe: Recipe, most: int) -> EmbedderSettings:
    size = _embedding_size(recipe, most)
    if size == recipe.embedder.embedding_size:
        return recipe.embedder
    prefixes = tuple(prefix for prefix in recipe.embedder.prefixes if prefix < size)
    return replace(recipe.embedder, embedding_size=size, prefixes=prefixes)


def _embedding_size(recipe: Recipe, most: int) -> int:
    size = recipe.embedder.embedding_size
    if recipe.embedding_start == "random" or recipe.start_from or size <= most:
        return size
    return int(2 ** (most.bit_length() - 1))


def _batch_size(recipe: Recipe, classes: int) -> int:
    return min(recipe.batch_size, classes * recipe.images_per_class or recipe.batch_size)


def _neighbor_ratio(recipe: Recipe, classes: int) -> float:
    loss = recipe.loss
    proxies = classes * loss.proxies_per_class
    kept = math.ceil(loss.neighbor_ratio * proxies)
    if not loss.is_ours or kept > loss.proxies_per_class:
        return loss.neighbor_ratio
    return min(1.0, (loss.proxies_per_class + 0.5) / proxies)  # rounded up, that is one more than a class has


def _changes(before: Recipe, after: Recipe) -> str:
    """Each changed key, its new value and its old one."""
    values = (
        ("validation_classes", before.validation_classes, after.validation_classes),
        ("embedder.embedding_size", before.embedder.embedding_size, after.embedder.embedding_size),
        ("batch_size", before.batch_size, after.batch_size),
        ("loss.neighbor_ratio", before.loss.neighbor_ratio, after.loss.neighbor_ratio),
    )
    return ", ".join(f"{key} is {new:.3g} instead of {old:.3g}" for key, old, new in values if old != new)

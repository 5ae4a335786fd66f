"""Which images train, which choose the epoch, and which training labels are made wrong on purpose."""

import numpy as np
import numpy.typing as npt

from proxygml.data.catalog import Catalog, check_splits, hold_out_classes
from proxygml.errors import CatalogError, RecipeError
from proxygml.training.recipe import Recipe

ClassNumbers = npt.NDArray[np.int64]
"""(n,) the class of each image, 0..C-1."""


def split_for_training(recipe: Recipe) -> tuple[Catalog, Catalog | None]:
    """The training images, and those of the classes that choose the epoch.

    Raises:
        CatalogError: the catalog is missing or of no use.
        RecipeError: it has a validation split, and the recipe wants another.
    """
    if not recipe.catalog:
        raise CatalogError("no catalog is given: name the table of images with --catalog")
    catalog = Catalog.read(recipe.catalog)
    check_splits(catalog)
    has_validation = bool((catalog.table["split"] == "val").any())
    if recipe.validation_classes and has_validation:
        raise RecipeError(
            f"validation_classes is {recipe.validation_classes}, but {recipe.catalog} has a val split already: "
            "set validation_classes to 0 to use it"
        )
    if recipe.validation_classes:
        catalog, has_validation = hold_out_classes(catalog, recipe.validation_classes, recipe.seed), True
    return catalog.split("train"), catalog.split("val") if has_validation else None


def class_numbers(images: Catalog) -> ClassNumbers:
    """The number of each image's class, in the order of `images.classes`."""
    numbers = {label: number for number, label in enumerate(images.classes)}
    return np.array([numbers[label] for label in images.labels])


def mislabelled(labels: ClassNumbers, num_classes: int, share: float, seed: int) -> ClassNumbers:
    """The labels with a share of them, rounded, replaced by another class, each equally likely; seeded.

    Raises:
        RecipeError: there is no other class.
    """
    if share and num_classes < 2:
        raise RecipeError(f"label_noise is {share}, but there is only one training class, so no label can be wrong")
    generator = np.random.default_rng((seed, 0x1ABE1))  # a stream of its own: it shifts no other draw
    wrong = generator.permutation(len(labels))[: round(share * len(labels))]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, max(num_classes, 2), size=len(wrong))) % num_classes
    return labels

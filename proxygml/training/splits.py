"""Which images train, which classes are held out to choose the epoch, and which labels are made wrong on purpose."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from proxygml.data.catalog.catalog import Catalog, check_splits
from proxygml.data.catalog.kept_rows import kept_rows
from proxygml.data.columns import ROLE_COLUMNS
from proxygml.errors import CatalogError, RecipeError, counted
from proxygml.training.recipe import Recipe

ClassNumbers = npt.NDArray[np.int64]
"""(n,) the class of each image, 0..C-1."""


def split_for_training(recipe: Recipe, own: bool = True) -> tuple[Catalog, Catalog | None]:
    """The training images, and those of the classes that choose the epoch.

    Training rows that the catalog's column `keep` or the recipe's `drop` leaves out are in neither.

    Args:
        recipe: its catalog, and what it says of validation and rows to drop.
        own: False leaves out the columns that proxygml does not read, which take memory.

    Raises:
        CatalogError: the catalog or the table to drop is missing or of no use, or too few rows are left.
        RecipeError: it has a validation split, and the recipe wants another.
    """
    if not recipe.catalog:
        raise CatalogError("no catalog is given: name the table of images with --catalog")
    catalog = Catalog.read(recipe.catalog, own=own)
    check_splits(catalog)
    catalog = _without_dropped(catalog, Path(recipe.drop) if recipe.drop else None)
    has_validation = bool((catalog.table["split"] == "val").any())
    if recipe.validation_classes and has_validation:
        raise RecipeError(
            f"validation_classes is {recipe.validation_classes}, but {recipe.catalog} has a val split already: "
            "set validation_classes to 0 to use it"
        )
    if recipe.validation_classes:
        catalog, has_validation = hold_out_classes(catalog, recipe.validation_classes, recipe.seed), True
    return catalog.split("train"), catalog.split("val") if has_validation else None


def _without_dropped(catalog: Catalog, drop: Path | None) -> Catalog:
    dropped = ~kept_rows(catalog, drop) & (catalog.table["split"] == "train").to_numpy()
    if not dropped.any():
        return catalog
    left = catalog.with_table(catalog.table[~dropped])
    try:
        check_splits(left)
        left.split("train")
    except CatalogError as error:
        raise CatalogError(
            f"{counted(int(dropped.sum()), 'training row')} left out because of `keep`: {error}"
        ) from error
    return left


def hold_out_classes(catalog: Catalog, fraction: float, seed: int) -> Catalog:
    """Move whole training classes to the validation split, at random.

    At least 2 classes are moved and at least 2 stay. If the catalog has queries and a gallery, every image that is
    moved is both: each one searches all the others.

    Args:
        catalog: without a validation split.
        fraction: the share of the training classes, in (0, 1).
        seed: the same seed and classes give the same choice.

    Raises:
        CatalogError: the fraction is out of range, a validation split exists already, or classes are too few.
    """
    if not 0 < fraction < 1:
        raise CatalogError(f"the fraction of classes to hold out is {fraction}: it must be between 0 and 1")
    if (catalog.table["split"] == "val").any():
        raise CatalogError("classes cannot be held out: the catalog has a val split already, which serves as it is")
    classes = catalog.split("train").classes
    if len(classes) < 4:
        raise CatalogError(
            f"the train split has {counted(len(classes), 'class')}: at least 4 are needed to hold 2 out and keep 2"
        )
    held_count = min(max(round(fraction * len(classes)), 2), len(classes) - 2)
    held = np.random.default_rng(seed).choice(np.array(classes, dtype=object), held_count, replace=False)
    moved = (catalog.table["split"] == "train") & catalog.table["label"].isin(list(held))
    table = catalog.table.copy()
    table.loc[moved, "split"] = "val"
    for role in ROLE_COLUMNS:
        if role in table:
            table.loc[moved, role] = True
    return catalog.with_table(table)


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

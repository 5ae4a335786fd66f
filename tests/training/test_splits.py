"""Training and validation images, classes held out, and labels made wrong on purpose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from proxygml.data.catalog.catalog import Catalog, check_splits
from proxygml.errors import CatalogError, RecipeError
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.splits import hold_out_classes, mislabelled
from proxygml.training.trainer import fit
from tests.helpers.catalogs import catalog_of
from tests.helpers.runs import metrics, train


def test_label_noise_makes_its_share_of_the_labels_wrong() -> None:
    labels = np.repeat(np.arange(5), 40)
    noisy = mislabelled(labels, 5, 0.2, seed=3)
    assert (noisy != labels).sum() == 40
    assert set(noisy) == set(range(5))
    assert np.array_equal(noisy, mislabelled(labels, 5, 0.2, seed=3))
    assert not np.array_equal(noisy, mislabelled(labels, 5, 0.2, seed=4))
    assert np.array_equal(mislabelled(labels, 5, 0.0, seed=3), labels)


def test_validation_split_of_the_catalog_is_used(small_recipe: Recipe, small_catalog: Path, tmp_path: Path) -> None:
    catalog = Catalog.read(small_catalog)
    held = catalog.table["label"].isin(["class 00", "class 01"])
    table = catalog.table.assign(split=catalog.table["split"].mask(held, "val"))
    Catalog(table, catalog.folder).write(tmp_path / "catalog.parquet")
    recipe = replace(small_recipe, catalog=str(tmp_path / "catalog.parquet"), epochs=1)
    assert "val_map_at_r" in metrics(train(recipe, tmp_path / "run"))
    with pytest.raises(RecipeError, match="has a val split already"):
        fit(replace(recipe, validation_classes=0.2), RunFolder(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_held_out_classes_move_whole() -> None:
    rows = [(f"class{number % 10}", "train") for number in range(40)]
    roles: dict[str, Any] = {"is_query": [False] * 40 + [True] * 2, "is_gallery": [False] * 40 + [True] * 2}
    catalog = catalog_of(*rows, ("x", "test"), ("x", "test"), **roles)
    held = hold_out_classes(catalog, 0.3, seed=1)
    assert len(held.split("val").classes) == 3
    assert set(held.split("val").classes) | set(held.split("train").classes) == set(catalog.split("train").classes)
    assert held.split("val").table[["is_query", "is_gallery"]].all(axis=None)
    assert check_splits(held) == []
    assert catalog.table["split"].tolist().count("train") == 40  # the catalog itself is as it was
    pd.testing.assert_frame_equal(held.table, hold_out_classes(catalog, 0.3, seed=1).table)
    others = {tuple(hold_out_classes(catalog, 0.3, seed).split("val").classes) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 2), (0.99, 3)])
def test_two_classes_stay_on_each_side(fraction: float, count: int) -> None:
    catalog = catalog_of(*((f"class{number}", "train") for number in range(5)))
    assert len(hold_out_classes(catalog, fraction, seed=0).split("val").classes) == count


def test_what_cannot_be_held_out_is_named() -> None:
    four = [(f"class{number}", "train") for number in range(4)]
    with pytest.raises(CatalogError, match="between 0 and 1"):
        hold_out_classes(catalog_of(*four), 1.0, seed=0)
    with pytest.raises(CatalogError, match="at least 4"):
        hold_out_classes(catalog_of(*four[:3]), 0.5, seed=0)
    with pytest.raises(CatalogError, match="has a val split already"):
        hold_out_classes(catalog_of(*four, ("v", "val")), 0.5, seed=0)

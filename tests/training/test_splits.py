"""Training and validation images, and labels made wrong on purpose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from proxygml.data.catalog import Catalog
from proxygml.errors import RecipeError
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.splits import mislabelled
from proxygml.training.trainer import fit
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

"""`train --drop audit.csv`, and a column `keep`: what is left out of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import proxygml
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import CatalogError
from proxygml.training.recipe import Recipe
from proxygml.training.recipe_files import find_recipe
from proxygml.training.splits import split_for_training
from proxygml.training.train import with_absolute_paths
from tests.helpers.catalogs import catalog_of
from tests.helpers.noise import clustered, mislabelled_at_random
from tests.helpers.vector_files import write_file

ROWS = [("ant", "train")] * 3 + [("bee", "train")] * 3 + [("cat", "test")] * 3


def audit_file(folder: Path, kept: dict[int, object], **columns: list[str]) -> Path:
    pd.DataFrame({"row": list(kept), "keep": list(kept.values()), **columns}).to_csv(folder / "audit.csv", index=False)
    return folder / "audit.csv"


def recipe_for(catalog: Path, drop: Path | None = None) -> Recipe:
    return Recipe(catalog=str(catalog), drop="" if drop is None else str(drop))


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    catalog_of(*ROWS, folder=tmp_path).write(tmp_path / "animals.csv")
    return tmp_path / "animals.csv"


def trained(recipe: Recipe) -> list[str]:
    return list(split_for_training(recipe)[0].table["path"])


def test_rows_of_an_audit_that_are_not_kept_do_not_train(catalog: Path, tmp_path: Path) -> None:
    drop = audit_file(tmp_path, {4: False, 0: True, 8: False}, path=["4.jpg", "0.jpg", "8.jpg"])
    assert trained(recipe_for(catalog, drop)) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg"]


def test_a_column_keep_leaves_rows_out_too(tmp_path: Path) -> None:
    keep = pd.Series([True, False, None] + [True] * 6, dtype=object)
    for name in ("a.csv", "b.parquet"):
        catalog_of(*ROWS, folder=tmp_path, keep=keep).write(tmp_path / name)
        assert trained(recipe_for(tmp_path / name)) == ["0.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
        drop = audit_file(tmp_path, {5: False})
        assert trained(recipe_for(tmp_path / name, drop)) == ["0.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_tables_that_do_not_fit_are_named(catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="has the path 'x.jpg' for row 4, but the catalog has '4.jpg'"):
        trained(recipe_for(catalog, audit_file(tmp_path, {4: False}, path=["x.jpg"])))
    with pytest.raises(CatalogError, match="has keep 'maybe' in row 0"):
        trained(recipe_for(catalog, audit_file(tmp_path, {4: "maybe"})))
    with pytest.raises(CatalogError, match="3 training rows left out because of `keep`.*one class only"):
        trained(recipe_for(catalog, audit_file(tmp_path, dict.fromkeys(range(3), False))))
    with pytest.raises(CatalogError, match="there is no"):
        trained(recipe_for(catalog, tmp_path / "nothing.csv"))


def test_a_run_folder_finds_the_table_from_anywhere(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(Recipe(drop="audit.csv")).drop == str(tmp_path / "audit.csv")
    assert with_absolute_paths(Recipe()).drop == ""


def test_the_audit_of_a_split_is_what_training_drops(tmp_path: Path) -> None:
    """From end to end, with the test rows before the training rows in the catalog."""
    vectors, right = clustered(600, classes=12)
    labels = np.where(right < 6, mislabelled_at_random(right % 6, 0.1), right)
    order = np.argsort(right < 6, kind="stable")
    names: list[object] = ["train" if label < 6 else "test" for label in right[order]]
    wrong: list[object] = (labels != right)[order].tolist()
    file = write_file(
        tmp_path / "raw.parquet", vectors[order], [f"c{label:02d}" for label in labels[order]], split=names, wrong=wrong
    )
    prepare("vectors", file, tmp_path / "noisy.parquet", options={"label": "product"})
    proxygml.audit(None, tmp_path / "noisy.parquet", tmp_path / "audit", split="train")
    recipe = replace(
        Recipe.read(find_recipe("vectors")),
        catalog=str(tmp_path / "noisy.parquet"),
        drop=str(tmp_path / "audit" / "audit.csv"),
        validation_classes=0.0,
    )
    assert sum(wrong) == 30
    rows = split_for_training(recipe)[0].table
    assert rows["wrong"].sum() <= 6  # of 30
    assert len(rows) >= 265

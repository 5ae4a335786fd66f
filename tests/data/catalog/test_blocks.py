"""A catalog of vectors in blocks: the rows of the whole catalog, its errors, and nothing of the whole in memory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.catalog.blocks import CatalogBlocks
from proxygml.data.catalog.table import load_table
from proxygml.data.columns import EMBEDDING_ROW
from proxygml.errors import CatalogError

ROWS = 40_000


def written(file: Path, **columns: object) -> Path:
    random = np.random.default_rng(0)
    numbers = np.arange(ROWS) % 50
    table = pd.DataFrame({"label": numbers, "split": np.where(numbers < 30, "train", "test")})
    table["embedding"] = list(random.normal(size=(ROWS, 4)).astype(np.float32))
    table.assign(**columns).to_parquet(file, row_group_size=7000)
    return file


def splits(*names: str) -> list[str]:
    return [names[row * len(names) // ROWS] for row in range(ROWS)]


COLUMNS = pytest.mark.parametrize(
    "columns",
    [
        {},
        {"split": splits(" Training", "validation", "validation")},
        {"split": splits("train", "validation", "test")},
        {"path": [f"{row}.png" for row in range(ROWS)], "price": [None, *range(ROWS - 1)]},
        {"sequence": [row % 7 or None for row in range(ROWS)], "name": [None] * 30_000 + ["a"] * 10_000},
        {"is_query": [row % 2 == 0 for row in range(ROWS)], "is_gallery": ["1"] * ROWS},
        dict(zip(["x_1", "y_1", "x_2", "y_2"], ([1.5] * ROWS, [0] * ROWS, [9] * ROWS, [8] * ROWS), strict=True)),
    ],
)


@COLUMNS
def test_a_catalog_that_is_checked_in_blocks_is_that_of_a_whole(
    tmp_path: Path, columns: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its digests, and with the user's own columns in their places, or without them."""
    monkeypatch.setattr("proxygml.data.catalog.parquet_table.CHECKED_AT_A_TIME", 9_000)
    path = written(tmp_path / "c.parquet", **{" note ": np.arange(ROWS)}, **columns)
    found = Catalog.read(path)
    expected = Catalog(load_table(path, found.vectors), tmp_path, found.vectors)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.fingerprint == expected.fingerprint
    assert np.array(found.classes)[found.class_numbers].tolist() == expected.labels
    own = {" note ", "price", "name"} & set(expected.table)
    pd.testing.assert_frame_equal(Catalog.read(path, own=False).table, expected.table.drop(columns=list(own)))


def test_a_catalog_in_blocks_names_wrong_rows_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxygml.data.catalog.parquet_table.CHECKED_AT_A_TIME", 9_000)
    label = [*map(str, np.arange(ROWS) % 50)]
    label[30_000] = ""
    with pytest.raises(CatalogError, match=r"c\.parquet: has no label in row 30000"):
        Catalog.read(written(tmp_path / "c.parquet", label=label))


@COLUMNS
@pytest.mark.parametrize("split", ["all", "test"])
def test_the_blocks_are_the_rows_of_the_whole(tmp_path: Path, columns: dict[str, object], split: str) -> None:
    path = written(tmp_path / "c.parquet", **columns)
    whole = Catalog.read(path)
    whole = whole if split == "all" else whole.split(split)
    assert whole.vectors is not None
    found = CatalogBlocks.of(path, split)
    assert found is not None and found.total == len(whole)
    parts = list(found.blocks())
    assert len(parts) > 1 or split == "test"
    rows = whole.table[EMBEDDING_ROW].to_numpy()
    assert np.array_equal(np.concatenate([vectors for vectors, _ in parts]), whole.vectors.mapped()[rows])
    table = pd.concat([table for _, table in parts], ignore_index=True)
    expected = whole.table.drop(columns=EMBEDDING_ROW)
    assert table.astype("str").equals(expected.astype("str"))


def test_what_only_the_whole_tells_is_left_to_it(tmp_path: Path) -> None:
    for columns in (
        {"label": np.arange(ROWS) % 50 + 0.0},
        {"split": splits("train", "exam")},
        {EMBEDDING_ROW: range(ROWS)},
    ):
        assert CatalogBlocks.of(written(tmp_path / "c.parquet", **columns), "all") is None
    assert CatalogBlocks.of(written(tmp_path / "c.parquet"), "val") is None


def test_a_wrong_row_is_named_as_in_the_whole(tmp_path: Path) -> None:
    label = [*map(str, np.arange(ROWS) % 50)]
    label[30_000] = ""
    found = CatalogBlocks.of(written(tmp_path / "c.parquet", label=label), "all")
    assert found is not None
    with pytest.raises(CatalogError, match=r"c\.parquet: has no label in row 30000"):
        list(found.blocks())
    vectors = list(np.ones((ROWS, 4), np.float32))
    vectors[35_000] = np.full(4, np.nan, np.float32)
    found = CatalogBlocks.of(written(tmp_path / "d.parquet", embedding=vectors), "all")
    assert found is not None
    with pytest.raises(CatalogError, match="in row 35000"):
        list(found.blocks())

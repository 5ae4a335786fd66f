"""A table that exists already."""

from pathlib import Path

import pytest

from proxygml.data.datasets import table
from proxygml.errors import CatalogError, DatasetError

HEADER = "path,label,split,x_1,y_1,x_2,y_2\n"


def test_paths_are_relative_to_the_table_or_to_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "a/1.jpg,7,train,,,,\n/elsewhere/2.jpg,8,validation,,,,\n")
    assert table.read(path).paths == [tmp_path / "a" / "1.jpg", Path("/elsewhere/2.jpg")]
    images = tmp_path / "images"
    images.mkdir()
    assert table.read(path, images=images).paths == [images / "a" / "1.jpg", Path("/elsewhere/2.jpg")]
    assert table.read(path).table["split"].tolist() == ["train", "test"]
    with pytest.raises(DatasetError, match="no folder"):
        table.read(path, images=path)


def test_boxes_without_area_are_left_to_the_check_of_the_images(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "1.jpg,7,train,5,5,5,9\n")
    assert len(table.read(path)) == 1


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="ends with"):
        table.read(tmp_path)

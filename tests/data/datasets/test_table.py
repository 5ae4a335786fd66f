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
    with pytest.raises(CatalogError, match="is a folder, but a catalog is a .csv or a .parquet file"):
        table.read(tmp_path)
    with pytest.raises(CatalogError, match="ends with .txt"):
        table.read(tmp_path / "table.txt")


def test_labels_that_mark_junk_and_distractors(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path,label,split\n1.jpg,7,test\n2.jpg,-1,test\n3.jpg,0,test\n4.jpg,7,test\n")
    found = table.read(path, junk_label="-1", distractor_label="0").table
    assert found["is_junk"].tolist() == [False, True, False, False]
    assert found["is_distractor"].tolist() == [False, False, True, False]
    assert "is_junk" not in table.read(path, distractor_label="0").table
    with pytest.raises(DatasetError, match="no image has the label '-2': choose one of 7, -1, 0"):
        table.read(path, junk_label="-2")


def test_what_is_unusual_about_a_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.csv"
    for text, encoding, words in (
        ("path,label,split\n1.jpg,7,train\n", "utf-8-sig", ""),
        ("path;label;split\n1.jpg;7;train\n", "utf-8", "read with columns separated by semicolons"),
        ("path\tlabel\tsplit\n1.jpg\t7\ttrain\n", "utf-16", "read with columns separated by tabs, UTF-16"),
    ):
        path.write_bytes(text.encode(encoding))
        assert table.read(path).labels == ["7"]
        assert capsys.readouterr().err.replace("\n", "") == (f"{path}: {words}" if words else "")


def test_backslashes_of_windows_separate_folders(tmp_path: Path) -> None:
    """But not where a file has one in its name."""
    path = tmp_path / "table.csv"
    path.write_text("path,label,split\nphotos\\a\\1.jpg,7,train\nphotos/a/2.jpg,7,train\nodd\\name.jpg,8,train\n")
    (tmp_path / "odd\\name.jpg").touch()
    assert table.read(path).table["path"].tolist() == ["photos/a/1.jpg", "photos/a/2.jpg", "odd\\name.jpg"]
    images = tmp_path / "images"
    images.mkdir()
    assert table.read(path, images=images).paths[2] == images / "odd" / "name.jpg"

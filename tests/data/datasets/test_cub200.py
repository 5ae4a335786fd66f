"""CUB-200-2011, from its official lists."""

from pathlib import Path

import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.datasets import cub200
from proxygml.errors import DatasetError
from tests.helpers.shared import shared_file

LISTS = {
    "images.txt": "1 001.Black_footed_Albatross/a.jpg\n2 100.Brown_Pelican/b.jpg\n3 101.White_Pelican/c.jpg\n",
    "image_class_labels.txt": "1 1\n2 100\n3 101\n",
    "bounding_boxes.txt": "1 60.0 27.0 325.0 304.0\n2 0.5 0.5 10.0 10.0\n3 1.0 2.0 3.0 4.0\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = shared_file("cub200-2011-lists-and-200-photos.tgz")
    return unpacked(archive, tmp_path_factory.mktemp("cub") / "cub200", cub200.ARCHIVES)


def test_the_first_hundred_species_train(folder: Path) -> None:
    catalog = cub200.read(folder)
    assert catalog.labels == ["001.Black_footed_Albatross", "100.Brown_Pelican", "101.White_Pelican"]
    assert catalog.table["split"].tolist() == ["train", "train", "test"]
    assert catalog.paths[0] == folder / "images" / "001.Black_footed_Albatross" / "a.jpg"
    assert catalog.boxes is None


def test_boxes_are_edges_in_whole_pixels(folder: Path) -> None:
    boxes = cub200.read(folder, boxes=True).boxes
    assert boxes is not None
    assert boxes.tolist() == [[60, 27, 385, 331], [0, 0, 11, 11], [1, 2, 4, 6]]


def test_the_official_lists_have_the_published_counts(official: Path) -> None:
    catalog = cub200.read(official, boxes=True)
    assert catalog.counts == cub200.PUBLISHED
    assert sum(path.exists() for path in catalog.paths) == 200
    assert catalog.folder == official / "CUB_200_2011"
    assert cub200.read(official / "CUB_200_2011").paths == catalog.paths


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("images.txt", "", "lists nothing"),
        ("images.txt", "1 a/a.jpg\n1 a/b.jpg\n", "'1' is no number or is there twice"),
        ("images.txt", "1 a/a.jpg extra\n", "line 1, has 3 fields instead of 2"),
        ("image_class_labels.txt", "1 1\n2 1\n", "lists 3 images and image_class_labels.txt 2, 2 of them the same"),
        ("image_class_labels.txt", "1 1\n2 1\n3 bird\n", "'bird' where a number was expected"),
        ("bounding_boxes.txt", "1 0 0 5 5\n", "no box of image 2"),
    ],
)
def test_damaged_lists_are_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        cub200.read(folder, boxes=True)


def test_what_is_not_there_is_named(folder: Path) -> None:
    (folder / "image_class_labels.txt").unlink()
    with pytest.raises(DatasetError, match=r"image_class_labels\.txt is not in"):
        cub200.read(folder)
    with pytest.raises(DatasetError, match=r"neither a folder nor an archive.*expected CUB_200_2011"):
        cub200.read(folder / "images.txt")

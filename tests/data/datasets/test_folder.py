"""One's own images, a folder a class."""

from pathlib import Path

import pytest

from proxygml.data.archives import unpacked
from proxygml.data.catalog import Count
from proxygml.data.datasets import folder
from proxygml.errors import DatasetError
from tests.helpers.shared import shared_file


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """Five classes of two images each."""
    return touch(tmp_path / "data", *(f"{name}/{number}.jpg" for name in "abcde" for number in range(2)))


@pytest.mark.parametrize(("choice", "tested"), [("half", "de"), ("1", "e"), ("4", "bcde")])
def test_the_last_classes_test(five: Path, choice: str, tested: str) -> None:
    catalog = folder.read(five, test_classes=choice)
    assert catalog.split("test").classes == list(tested)
    assert catalog.split("train").classes == [name for name in "abcde" if name not in tested]
    assert len(catalog) == 10
    assert catalog.paths[0] == five / "a" / "0.jpg"


def test_a_file_names_the_test_classes(five: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffb\n\n  d \n", encoding="utf-8")
    assert folder.read(five, test_classes=str(names)).split("test").classes == ["b", "d"]
    names.write_text("b\nz\n")
    with pytest.raises(DatasetError, match="1 classes that have no folder, such as 'z'"):
        folder.read(five, test_classes=str(names))
    names.write_text("\n")
    with pytest.raises(DatasetError, match="names no class"):
        folder.read(five, test_classes=str(names))
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="no text"):
        folder.read(five, test_classes=str(names))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (None, "5 classes: say which are for testing: --test_classes half"),
        ("0", "is 0, but must be 1 to 4 of the 5 classes"),
        ("5", "is 5, but must be 1 to 4 of the 5 classes"),
        ("most", "'most', but must be `half`, a number, or a file"),
    ],
)
def test_a_wrong_choice_is_named(five: Path, choice: str | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        folder.read(five, test_classes=choice)


def test_splits_of_its_own(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg", "test/d/1.jpg", "test/d/2.jpg")
    catalog = folder.read(root)
    assert catalog.counts == {"train": Count(2, 2), "val": Count(1, 1), "test": Count(2, 1)}
    assert folder.strays(root) == []
    with pytest.raises(DatasetError, match=r"has train, val, test already: leave out --test_classes"):
        folder.read(root, test_classes="half")


def test_a_training_split_alone_stays_one(tmp_path: Path) -> None:
    assert folder.read(touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg")).counts == {"train": Count(2, 2)}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = touch(tmp_path, "bus/1.jpg", "car/1.jpg", "train/1.jpg")
    assert folder.read(root, test_classes="1").split("test").classes == ["train"]


def test_a_folder_that_holds_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "archive/pictures/a/1.jpg", "archive/pictures/b/1.jpg", "__MACOSX/x", ".hidden", "Thumbs.db")
    catalog = folder.read(tmp_path, test_classes="half")
    assert catalog.folder == tmp_path / "archive" / "pictures"
    assert catalog.labels == ["a", "b"]


def test_every_file_of_a_class_counts_but_litter(five: Path) -> None:
    """Whether it is an image shows when it is opened."""
    touch(five, "a/notes.txt", "a/.DS_Store", "a/Thumbs.db")
    assert "a/notes.txt" in set(folder.read(five, test_classes="half").table["path"])
    assert len(folder.read(five, test_classes="half")) == 11
    assert folder.strays(five) == []


def test_strays_are_named(five: Path) -> None:
    touch(five, "README.md", "a/deeper/3.jpg")
    (five / "empty").mkdir()
    assert folder.strays(five) == [
        ("README.md", "lies outside of the class folders"),
        ("a/deeper", "is a folder inside of a class folder"),
        ("empty", "is an empty class folder"),
    ]
    assert len(folder.read(five, test_classes="half")) == 10


def test_strays_beside_the_splits_are_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "test/b/1.jpg", "train/loose.jpg", "extra/c/1.jpg")
    assert folder.strays(root) == [
        ("extra", "is in none of the split folders"),
        ("train/loose.jpg", "lies outside of the class folders"),
    ]


def test_other_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no class folder: expected"):
        folder.read(tmp_path, test_classes="half")
    touch(tmp_path, "alphabet1/character1/1.jpg", "alphabet2/character1/1.jpg")
    with pytest.raises(DatasetError, match="no image directly in one: expected"):
        folder.read(tmp_path, test_classes="half")
    with pytest.raises(DatasetError, match="neither a folder nor an archive"):
        folder.read(tmp_path / "none", test_classes="half")


def test_the_2010_birds(tmp_path: Path) -> None:
    root = unpacked(shared_file("cub200-2010-crops.tar"), tmp_path / "birds", {})
    catalog = folder.read(root, test_classes="half")
    assert catalog.counts == {"train": Count(2_990, 100), "test": Count(3_043, 100)}
    assert catalog.classes[0] == "001.Black_footed_Albatross"
    assert folder.strays(root / "cub200-2010-crops") == []

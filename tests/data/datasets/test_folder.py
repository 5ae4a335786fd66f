"""One's own images, a folder a class."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.catalog.catalog import Count
from proxygml.data.datasets import folder
from proxygml.errors import DatasetError
from tests.helpers.rights import unreadable
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
    with pytest.raises(DatasetError, match="1 unknown class, such as 'z'"):
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


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("TRAINING", "Valid", "TEST"),
        ("train", "validation", "Testing"),
    ],
)
def test_splits_under_other_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    train, val, test = names
    root = touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/c/1.jpg", f"{test}/d/1.jpg")
    catalog = folder.read(root)
    assert catalog.counts == {"train": Count(2, 2), "val": Count(1, 1), "test": Count(1, 1)}
    assert [path.parent.parent.name for path in catalog.paths] == [train, train, val, test]
    assert folder.strays(root) == []


def test_two_folders_for_one_split_are_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.jpg", "val/b/1.jpg", "validation/c/1.jpg")
    with pytest.raises(DatasetError, match="holds val and validation, which both mean val: keep one"):
        folder.read(root)


def test_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    root = touch(tmp_path, "Test/1.jpg", "valid/1.jpg", "training/1.jpg")
    assert folder.read(root, test_classes="1").classes == ["Test", "training", "valid"]


def test_what_cannot_be_an_image_is_named(five: Path, tmp_path: Path) -> None:
    """In a class folder it counts as an image, which is bad; elsewhere it is out of place."""
    touch(tmp_path / "store", "1.jpg")
    (five / "a" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(five / "b" / "pipe.jpg")
    (five / "c" / os.fsdecode(b"caf\xe9.jpg")).touch()
    (five / os.fsdecode(b"caf\xe9")).mkdir()
    (five / "e" / "circle").symlink_to("circle")
    (five / "f").symlink_to("../nowhere")
    (five / "g").symlink_to(tmp_path / "store")
    catalog = folder.read(five, test_classes="half")
    assert {"a/gone.jpg", "b/pipe.jpg", "g/1.jpg"} < set(catalog.table["path"])
    assert sorted(folder.strays(five)) == [
        ("c/caf\\udce9.jpg", "has a name that is not UTF-8: rename it"),
        ("caf\\udce9", "has a name that is not UTF-8: rename it"),
        ("e/circle", "cannot be read"),
        ("f", "is a link to nothing"),
    ]


def test_what_is_hidden_is_named(five: Path) -> None:
    assert not folder.hidden(five)
    touch(five, "a/.DS_Store", ".git/config", "Thumbs.db", "__MACOSX/x", "e/._1.jpg")
    assert str(folder.hidden(five)) == (
        "5 left out: hidden: 3 (.git, a/.DS_Store, e/._1.jpg), left by a file manager: 2 (Thumbs.db, __MACOSX)"
    )


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loop").symlink_to(".")
    with pytest.raises(DatasetError, match="expected"):
        folder.read(tmp_path / "data", test_classes="half")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_folders_that_cannot_be_read_are_named() -> None:
    with TemporaryDirectory() as place:  # pytest's own is its user's alone
        root = touch(Path(place) / "data", *(f"{name}/{number}.jpg" for name in "abc" for number in range(2)))
        with unreadable(root / "c"):
            assert folder.read(root, test_classes="1").classes == ["a", "b"]
            assert folder.strays(root) == [("c", "cannot be read")]
        with unreadable(root), pytest.raises(DatasetError, match="data cannot be read: ask for the right"):
            folder.read(root, test_classes="1")


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

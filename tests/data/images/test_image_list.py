"""Which image files are listed."""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import ImageList
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import ImageError
from tests.helpers.commands import run
from tests.helpers.models import untrained
from tests.helpers.pictures import folder_of_pictures, write_picture
from tests.helpers.rights import unreadable


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of_pictures(tmp_path / "photos")


def test_folders_and_files_are_listed_once(photos: Path) -> None:
    images = ImageList.from_files([photos, photos / "deep" / "3.png"])
    assert images.paths == [str((photos / "deep" / f"{n}.png").resolve()) for n in range(6)]
    with pytest.raises(ImageError, match="there is no"):
        ImageList.from_files([photos / "none"])
    with pytest.raises(ImageError, match="there is no image in"):
        (photos / "empty").mkdir()
        ImageList.from_files([photos / "empty"])


def listed(capsys: pytest.CaptureFixture[str], *places: Path) -> tuple[list[str], str]:
    """The names of the files without their folders, and what was printed."""
    capsys.readouterr()
    paths = ImageList.from_files(places).paths
    return [Path(path).name for path in paths], " ".join(capsys.readouterr().err.split())


def test_linked_folders_are_followed_wherever_they_lead(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(photos.parent / "store" / "deeper" / "s.png", 20)
    write_picture(photos.parent / "single.png", 21)
    (photos / "linked").symlink_to(photos.parent / "store")
    (photos / "one.png").symlink_to(photos.parent / "single.png")
    names, _ = listed(capsys, photos)
    assert sorted(names) == [*(f"{number}.png" for number in range(6)), "s.png", "single.png"]


def test_no_folder_is_read_twice_or_upwards(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, target in {
        "itself": ".",
        "up": "..",
        "root": "/",
        "deep/loop": "..",
        "again": "deep",
        "one": "../store",
        "other": "../store",
    }.items():
        (photos / name).symlink_to(target)
    write_picture(photos.parent / "store" / "s.png", 20)
    (photos.parent / "store" / "back").symlink_to(photos)
    (photos.parent / "store" / "above").symlink_to(photos.parent)
    write_picture(photos.parent / "beside" / "not_ours.png", 21)
    names, printed = listed(capsys, photos)
    assert sorted(names) == [*(f"{number}.png" for number in range(6)), "s.png"]
    assert "links to a folder that they lie in: 6 (itself, root, up and 3 more)" in printed
    assert "listed already: 2 (again, other)" in printed


def test_what_is_left_out_is_counted_and_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "gone").symlink_to("nowhere")
    (photos / "circle.png").symlink_to("circle.png")
    (photos / "Thumbs.db").touch()
    (photos / "copy.png").symlink_to(photos / "deep" / "0.png")
    os.mkfifo(photos / "pipe.png")
    (photos / os.fsdecode(b"caf\xe9.png")).touch()
    names, printed = listed(capsys, photos)
    assert names == [f"{number}.png" for number in range(6)]
    for words in (
        f"{photos}: 9 left out",
        "hidden: 1 (.hidden)",
        "links to nothing: 2 (gone, gone.png)",
        "cannot be read: 1 (circle.png)",
        "left by a file manager: 1 (Thumbs.db)",
        "neither files nor folders: 1 (pipe.png)",
        "named in other characters than UTF-8: 1 (caf\\udce9.png)",
        "not named like an image: 1 (notes.txt)",
        "listed already: 1 (copy.png)",
    ):
        assert words in printed, words
    with pytest.raises(ImageError, match="is a device or a pipe"):
        ImageList.from_files([photos / "pipe.png"])


@pytest.mark.parametrize(
    "ending",
    ["pdf", "eps", "ps", "mpg", "mpeg", "h5", "hdf", "grib", "fits", "wmf", "psd", "svg", "mp4", "txt"],
)
def test_files_of_other_kinds_are_not_embedded(ending: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / f"a.{ending}").touch()
    names, printed = listed(capsys, photos)
    assert len(names) == 6
    assert f"not named like an image: 2 (a.{ending}, notes.txt)" in printed
    (photos.parent / "none").mkdir()
    (photos.parent / "none" / f"a.{ending}").touch()
    with pytest.raises(ImageError, match=rf"no image in .*none: 1 left out: not named like an image: 1 \(a\.{ending}"):
        ImageList.from_files([photos.parent / "none"])


@pytest.mark.parametrize(
    "ending", ["jpg", "JPEG", "Png", "webp", "TIF", "tiff", "bmp", "gif", "avif", "jp2", "ppm", "tga"]
)
def test_images_are_known_by_their_endings(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{ending}").touch()
    assert len(ImageList.from_files([tmp_path])) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_a_folder_that_cannot_be_read_is_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TemporaryDirectory() as place:  # pytest's own is its user's alone
        root = Path(place)
        shutil.copytree(photos, root / "photos")
        write_picture(root / "photos" / "private" / "p.png", 30)
        with unreadable(root / "photos" / "private"):
            names, printed = listed(capsys, root / "photos")
            assert len(names) == 6
            assert "cannot be read: 1 (private)" in printed
            with pytest.raises(ImageError, match=r"cannot be read: 1 \(.*private\)"):
                ImageList.from_files([root / "photos" / "private"])


def test_every_command_names_what_it_leaves_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They list folders in one way."""
    model = untrained(tmp_path / "run")
    write_picture(tmp_path / "store" / "s.png", 20)
    (photos / "linked").symlink_to(tmp_path / "store")
    (photos / "gone.png").symlink_to("nowhere.png")
    for command in (
        ("embed", model, "--images", photos, "--out", tmp_path / "vectors.parquet"),
        ("index", model, "--images", photos, "--out", tmp_path / "gallery"),
        ("index", "--add", "--images", photos, "--out", tmp_path / "gallery"),
        ("search", tmp_path / "gallery", photos),
        ("cluster", model, "--images", photos, "--out", tmp_path / "clusters", "--num_clusters", 2),
    ):
        capsys.readouterr()
        run(*command)
        printed = capsys.readouterr()
        words = (
            "3 left out: hidden: 1 (.hidden), links to nothing: 1 (gone.png), not named like an image: 1 (notes.txt)"
        )
        assert words in " ".join(printed.err.split()), command
    assert VectorFile(tmp_path / "vectors.parquet").rows == 7


def test_a_file_of_vectors_is_a_catalog_whose_vectors_are_left_out(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a.png"], "label": ["a"], "split": ["test"], "embedding": [[1.0, 0.0]]})
    table.to_parquet(tmp_path / "vectors.parquet")
    images = ImageList.from_catalog(Catalog.read(tmp_path / "vectors.parquet"))
    assert list(images.table.columns) == ["path", "label", "split"]
    assert images.paths == [str((tmp_path / "a.png").resolve())]


def test_vectors_without_an_id_are_named_by_their_row() -> None:
    assert ImageList(pd.DataFrame({"item_id": ["a", None]})).names == ["a", "row 1"]
    assert ImageList(pd.DataFrame({"label": ["a", "b"]})).names == ["row 0", "row 1"]

"""Omniglot, whole where it is at hand."""

import zipfile
from pathlib import Path

import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.catalog.catalog import check_splits
from proxygml.data.datasets import omniglot
from proxygml.errors import DatasetError
from tests.helpers.pictures import write_picture
from tests.helpers.shared import shared_file


def test_the_two_official_archives(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "picture.png", 0)
    root = tmp_path / "download"
    root.mkdir()
    for part, alphabet in (("images_background", "Greek"), ("images_evaluation", "Tibetan")):
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            archive.write(picture, f"{part}/{alphabet}/character01/0001_01.png")
    catalog = omniglot.read(unpacked(root, tmp_path / "omniglot", omniglot.ARCHIVES))
    assert catalog.labels == ["Greek/character01", "Tibetan/character01"]
    assert catalog.table["split"].tolist() == ["train", "test"]
    assert all(path.is_file() for path in catalog.paths)


def test_the_whole_has_the_published_counts(tmp_path: Path) -> None:
    catalog = omniglot.read(unpacked(shared_file("omniglot.tar.gz"), tmp_path / "omniglot", omniglot.ARCHIVES))
    assert catalog.counts == omniglot.PUBLISHED
    assert check_splits(catalog) == []
    assert catalog.paths[0].is_file() and catalog.paths[-1].is_file()


def test_what_macos_left_beside_it_does_not_count(tmp_path: Path) -> None:
    for part in ("images_background", "images_evaluation"):
        for top in ("__MACOSX", "omniglot"):
            write_picture(tmp_path / top / part / "Greek" / "character01" / "1.png", 0)
    assert {path.parts[len(tmp_path.parts)] for path in omniglot.read(tmp_path).paths} == {"omniglot"}


def test_half_of_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "images_background").mkdir()
    with pytest.raises(DatasetError, match="images_evaluation is not in"):
        omniglot.read(tmp_path)

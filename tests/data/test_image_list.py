"""Which image files are listed."""

from pathlib import Path

import pandas as pd
import pytest

from proxygml.data.catalog import Catalog
from proxygml.data.image_list import ImageList
from proxygml.errors import ImageError
from tests.helpers.pictures import write_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        write_picture(tmp_path / "photos" / "deep" / f"{number}.png", number)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    write_picture(tmp_path / "photos" / ".hidden" / "x.png", 9)
    return tmp_path / "photos"


def test_folders_and_files_are_listed_once(photos: Path) -> None:
    images = ImageList.from_files([photos, photos / "deep" / "3.png"])
    assert images.paths == [str((photos / "deep" / f"{n}.png").resolve()) for n in range(6)]
    with pytest.raises(ImageError, match="there is no"):
        ImageList.from_files([photos / "none"])
    with pytest.raises(ImageError, match="there is no image in"):
        (photos / "empty").mkdir()
        ImageList.from_files([photos / "empty"])


def test_a_file_of_vectors_is_a_catalog_whose_vectors_are_left_out(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": ["a.png"], "label": ["a"], "split": ["test"], "embedding": [[1.0, 0.0]]})
    table.to_parquet(tmp_path / "vectors.parquet")
    images = ImageList.from_catalog(Catalog.read(tmp_path / "vectors.parquet"))
    assert list(images.table.columns) == ["path", "label", "split"]
    assert images.paths == [str((tmp_path / "a.png").resolve())]

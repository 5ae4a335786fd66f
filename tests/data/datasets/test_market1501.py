"""Market-1501, in its official layout."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.datasets import market1501
from proxygml.data.preparing.prepare import prepare
from proxygml.errors import DatasetError
from proxygml.evaluation.metrics import evaluate
from tests.helpers.pictures import write_picture

TOP = "Market-1501-v15.09.15"
NAMES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c3s1_000551_00.jpg", "0007_c2s3_071052_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c5s1_000001_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0001_c1s1_001051_03.jpg", "0001_c2s1_000301_00.jpg",
        "0003_c6s1_000001_00.jpg.jpg",
    ],
    "gt_bbox": ["0001_c1s1_001051_00.jpg"],
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / f"{TOP}.zip", "w") as opened:
        for folder, names in NAMES.items():
            opened.writestr(f"{TOP}/{folder}/Thumbs.db", b"not an image")
            for seed, name in enumerate(names):
                picture = write_picture(tmp_path / "loose" / f"{folder}{seed}.jpg", seed + 10 * len(folder))
                opened.write(picture, f"{TOP}/{folder}/{name}")
    return tmp_path / f"{TOP}.zip"


@pytest.mark.parametrize("by_folder", [False, True])
def test_the_official_archive_and_the_folder_that_holds_it(tmp_path: Path, archive: Path, by_folder: bool) -> None:
    folder = unpacked(archive.parent if by_folder else archive, tmp_path / "market", market1501.ARCHIVES)
    table = market1501.read(folder).table
    assert table["label"].tolist() == ["0002", "0002", "0007", "0001", "0003", "-1", "0000", "0001", "0001", "0003"]
    assert table["split"].tolist() == ["train"] * 3 + ["test"] * 7
    assert table["camera"].tolist() == ["c1", "c3", "c2", "c1", "c5", "c1", "c1", "c1", "c2", "c6"]
    for column, rows in (
        ("is_query", (3, 4)),
        ("is_gallery", range(5, 10)),
        ("is_junk", (5,)),
        ("is_distractor", (6,)),
    ):
        assert np.flatnonzero(table[column]).tolist() == list(rows)
    assert all(path.is_file() for path in market1501.read(folder).paths)


def test_prepared_it_is_evaluated_by_its_protocol(tmp_path: Path, archive: Path) -> None:
    for suffix in ("parquet", "csv"):
        prepared = prepare("market1501", archive, tmp_path / f"market.{suffix}")
        test = prepared.split("test")
        # All alike: the nearest of 0001 by the gallery's order would be junk, then a distractor, then its own camera.
        found = evaluate(np.ones((7, 2)), test.labels, (1, 2), mean_average_precision=True, **test.rules)
        assert (found.num_queries, found.num_gallery, found.num_classes) == (2, 4, 2)
        assert found.recall[1].value == 0
        assert found.recall[2].value == 0.5  # 0001: the distractor, then its match; 0003: two of 0001 as well
        assert found.mean_average_precision is not None
        assert found.mean_average_precision.value == pytest.approx((1 / 2 + 1 / 4) / 2)
        assert found.rules == {"excluded_matches_of_same_camera": 1, "junk_images": 1, "distractor_images": 1}


def test_damaged_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"bounding_box_train is not in"):
        market1501.read(tmp_path)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DatasetError, match=r"bounding_box_train holds no images"):
        market1501.read(tmp_path)
    (tmp_path / "bounding_box_train" / "0002_c1.jpg").touch()
    with pytest.raises(DatasetError, match=r"0002_c1\.jpg is not named like 0002_c1s1_000451_03\.jpg"):
        market1501.read(tmp_path)
    (tmp_path / "bounding_box_train" / "0002_c1.jpg").rename(tmp_path / "bounding_box_train" / "-1_c1s1_1_0.jpg")
    with pytest.raises(DatasetError, match=r"is junk, which only bounding_box_test may hold"):
        market1501.read(tmp_path)

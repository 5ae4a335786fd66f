"""In-Shop Clothes Retrieval, in its official layout."""

import shutil
import zipfile
from pathlib import Path

import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.catalog.catalog import Count
from proxygml.data.datasets import inshop
from proxygml.errors import DatasetError
from tests.helpers.pictures import write_picture

LIST = """6
image_name item_id evaluation_status
img/WOMEN/Dresses/id_00000002/02_1_front.jpg     id_00000002 train
img/WOMEN/Dresses/id_00000002/02_2_side.jpg      id_00000002 train
img/MEN/Denim/id_00000080/01_1_front.jpg         id_00000080 train
img/WOMEN/Blouses_Shirts/id_00000001/02_1.jpg    id_00000001 query
img/WOMEN/Blouses_Shirts/id_00000001/02_2.jpg    id_00000001 gallery
img/WOMEN/Blouses_Shirts/id_00000001/02_3.jpg    id_00000001 gallery
"""


def write_official(root: Path, lists: str, images: str) -> None:
    """The lists in one folder and img.zip in another, as they are downloaded."""
    (root / lists).mkdir(parents=True, exist_ok=True)
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / lists / "list_eval_partition.txt").write_text(LIST)
    with zipfile.ZipFile(root / images / "img.zip", "w") as opened:
        for seed, line in enumerate(LIST.splitlines()[2:]):
            image = line.split()[0]
            opened.write(write_picture(root.parent / "loose" / image, seed), image)


@pytest.mark.parametrize(("lists", "images"), [("", ""), ("Eval", "Img"), ("in/Eval", "in/Img")])
def test_the_archive_beside_the_list(tmp_path: Path, lists: str, images: str) -> None:
    root = tmp_path / "download"
    write_official(root, lists, images)
    catalog = inshop.read(unpacked(root, tmp_path / "inshop", inshop.ARCHIVES))
    assert catalog.labels == ["id_00000002"] * 2 + ["id_00000080"] + ["id_00000001"] * 3
    assert catalog.table["split"].tolist() == ["train"] * 3 + ["test"] * 3
    assert catalog.table["is_query"].tolist() == [False, False, False, True, False, False]
    assert catalog.table["is_gallery"].tolist() == [False, False, False, False, True, True]
    assert catalog.counts == {
        "train": Count(3, 2),
        "test": Count(3, 1),
        "query": Count(1, 1),
        "gallery": Count(2, 1),
    }
    assert all(path.is_file() for path in catalog.paths)


def test_one_archive_of_it_all(tmp_path: Path) -> None:
    write_official(tmp_path / "In-shop Clothes Retrieval Benchmark", "Eval", "Img")
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "In-shop Clothes Retrieval Benchmark"))
    catalog = inshop.read(unpacked(archive, tmp_path / "inshop", inshop.ARCHIVES))
    assert all(path.is_file() for path in catalog.paths)


def test_what_is_missing_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"list_eval_partition\.txt is not in"):
        inshop.read(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text(LIST.replace("query", "queries"))
    with pytest.raises(DatasetError, match=r"img is not in .*img\.zip beside"):
        inshop.read(tmp_path)
    (tmp_path / "img").mkdir()
    with pytest.raises(DatasetError, match="status 'queries'"):
        inshop.read(tmp_path)


def test_the_published_counts_add_up() -> None:
    counts = inshop.PUBLISHED
    assert counts["query"].images + counts["gallery"].images == counts["test"].images
    assert counts["train"].images + counts["test"].images == 52_712
    assert counts["train"].classes + counts["test"].classes == 7_982

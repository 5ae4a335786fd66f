"""Stanford Online Products, in its official layout."""

import zipfile
from pathlib import Path

import pytest

from proxygml.data.archives.unpack import unpacked
from proxygml.data.datasets import sop
from proxygml.errors import DatasetError
from tests.helpers.pictures import write_picture

HEADER = "image_id class_id super_class_id path\n"
LISTS = {
    "Ebay_train.txt": "1 1 1 bicycle_final/111085122871_0.JPG\n2 1 1 bicycle_final/111085122871_1.JPG\n",
    "Ebay_test.txt": "59552 11319 9 stapler_final/1_0.JPG\n59553 11319 9 stapler_final/1_1.JPG\n",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "Stanford_Online_Products.zip", "w") as opened:
        for name, text in LISTS.items():
            opened.writestr(f"Stanford_Online_Products/{name}", HEADER + text)
            for seed, line in enumerate(text.splitlines()):
                image = line.split()[-1]
                opened.write(write_picture(tmp_path / "loose" / image, seed), f"Stanford_Online_Products/{image}")
    return tmp_path / "Stanford_Online_Products.zip"


@pytest.mark.parametrize("by_folder", [False, True])
def test_the_official_archive_and_the_folder_that_holds_it(tmp_path: Path, archive: Path, by_folder: bool) -> None:
    folder = unpacked(archive.parent if by_folder else archive, tmp_path / "sop", sop.ARCHIVES)
    catalog = sop.read(folder)
    assert catalog.labels == ["bicycle/00001"] * 2 + ["stapler/11319"] * 2
    assert catalog.table["split"].tolist() == ["train"] * 2 + ["test"] * 2
    assert all(path.is_file() for path in catalog.paths)


def test_damaged_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "Ebay_train.txt").write_text(HEADER + LISTS["Ebay_train.txt"])
    with pytest.raises(DatasetError, match=r"Ebay_test\.txt is not in"):
        sop.read(tmp_path)
    (tmp_path / "Ebay_test.txt").write_text(HEADER + "59552 11319\n")
    with pytest.raises(DatasetError, match=r"Ebay_test\.txt, line 2, has 2 fields instead of 4"):
        sop.read(tmp_path)
    (tmp_path / "Ebay_test.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DatasetError, match=r"Ebay_test\.txt is no text"):
        sop.read(tmp_path)

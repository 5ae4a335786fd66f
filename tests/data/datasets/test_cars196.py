"""Cars196, in both layouts in circulation, from the official annotations where they are at hand."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from proxygml.data.archives.unpack import unpack, unpacked
from proxygml.data.datasets import cars196
from proxygml.errors import DatasetError
from tests.helpers.pictures import write_picture
from tests.helpers.shared import shared_file

NAMES = [f"Make {number} C/V" for number in range(1, 197)]
CARS = [(1, (1, 1, 24, 16)), (98, (3, 4, 10, 12)), (99, (1, 2, 3, 4)), (196, (5, 5, 6, 6))]
"""Class number and the official box, counted from 1."""


def write_annotations(path: Path, name_field: str, names: list[str], cars: list[tuple[int, tuple[int, ...]]]) -> None:
    """A structure array of the official fields."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", name_field]
    entries = np.array(
        [(*box, number, name) for (number, box), name in zip(cars, names, strict=True)],
        dtype=[(field, object) for field in fields],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": entries, "class_names": np.array(NAMES, dtype=object)}, do_compression=True)


def old_layout(root: Path) -> None:
    names = [f"car_ims/{number:06d}.jpg" for number in range(1, 5)]
    write_annotations(root / "cars_annos.mat", "relative_im_path", names, CARS)
    for seed, name in enumerate(names):
        write_picture(root / name, seed)


def new_layout(root: Path) -> None:
    """Every class may be in both parts, whose file names are the same."""
    for part, cars, lists in (
        ("cars_train", [CARS[0], CARS[2]], "devkit/cars_train_annos.mat"),
        ("cars_test", [CARS[1], CARS[3]], "cars_test_annos_withlabels.mat"),
    ):
        names = ["00001.jpg", "00002.jpg"]
        write_annotations(root / lists, "fname", names, cars)
        for seed, name in enumerate(names):
            write_picture(root / part / name, seed)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES, dtype=object)})


def test_the_older_layout(tmp_path: Path) -> None:
    old_layout(tmp_path)
    catalog = cars196.read(tmp_path)
    assert catalog.labels == ["001.Make 1 C/V", "098.Make 98 C/V", "099.Make 99 C/V", "196.Make 196 C/V"]
    assert catalog.table["split"].tolist() == ["train", "train", "test", "test"]
    assert all(path.is_file() for path in catalog.paths)
    assert catalog.boxes is None


def test_the_newer_layout_is_put_together_and_split_anew(tmp_path: Path) -> None:
    new_layout(tmp_path)
    catalog = cars196.read(tmp_path)
    assert dict(zip(catalog.table["path"], catalog.labels, strict=True)) == {
        "cars_train/00001.jpg": "001.Make 1 C/V",
        "cars_train/00002.jpg": "099.Make 99 C/V",
        "cars_test/00001.jpg": "098.Make 98 C/V",
        "cars_test/00002.jpg": "196.Make 196 C/V",
    }
    assert catalog.table["split"].tolist() == ["train", "test", "train", "test"]
    assert all(path.is_file() for path in catalog.paths)


@pytest.mark.parametrize("layout", [old_layout, new_layout])
def test_boxes_count_from_zero(tmp_path: Path, layout: object) -> None:
    assert callable(layout)
    layout(tmp_path)
    catalog = cars196.read(tmp_path, boxes=True)
    assert catalog.boxes is not None
    boxes = dict(zip(catalog.labels, catalog.boxes.tolist(), strict=True))
    assert boxes["001.Make 1 C/V"] == [0, 0, 24, 16]
    assert boxes["098.Make 98 C/V"] == [2, 3, 10, 12]


@pytest.mark.parametrize(("layout", "names"), [(old_layout, ["car_ims"]), (new_layout, ["cars_train", "cars_test"])])
def test_the_official_archives_of_a_folder(tmp_path: Path, layout: object, names: list[str]) -> None:
    assert callable(layout)
    layout(tmp_path / "loose")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in names:
        with tarfile.open(packed / f"{name}.tgz", "w:gz") as archive:
            archive.add(tmp_path / "loose" / name, name)
    if layout is new_layout:
        with tarfile.open(packed / "car_devkit.tgz", "w:gz") as archive:
            archive.add(tmp_path / "loose" / "devkit", "devkit")
    for path in (tmp_path / "loose").glob("*.mat"):
        (packed / path.name).write_bytes(path.read_bytes())
    catalog = cars196.read(unpacked(packed, tmp_path / "cars196", cars196.ARCHIVES))
    assert catalog.labels == cars196.read(tmp_path / "loose").labels
    assert all(path.is_file() for path in catalog.paths)
    assert catalog.folder == tmp_path / "cars196"


def test_the_official_annotations_have_the_published_counts(tmp_path: Path) -> None:
    unpack(shared_file("cars196-annotations.tgz"), tmp_path)
    (tmp_path / "cars_train" / "cars_train").mkdir(parents=True)
    (tmp_path / "cars_test").mkdir()
    catalog = cars196.read(tmp_path, boxes=True)
    assert catalog.counts == cars196.PUBLISHED
    assert catalog.classes == [f"{number:03d}" for number in range(1, 197)]  # cars_meta.mat is not there
    first = catalog.table.iloc[0]
    assert first[["path", "label", "x_1", "y_1", "x_2", "y_2"]].tolist() == [
        "cars_train/cars_train/00001.jpg",
        "014",
        *(38, 115, 569, 375),
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cars_train_annos\.mat is not in .*holds nothing"):
        cars196.read(tmp_path)
    new_layout(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DatasetError, match=r"cars_test_annos_withlabels\.mat is not in"):
        cars196.read(tmp_path)


def test_annotations_without_labels_are_named(tmp_path: Path) -> None:
    new_layout(tmp_path)
    unlabelled = np.array([(1, "00001.jpg")], dtype=[("bbox_x1", object), ("fname", object)])
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": unlabelled})
    with pytest.raises(DatasetError, match="no class numbers"):
        cars196.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"MATLAB 5.0 MAT-file" + b" " * 200])
def test_damaged_annotations_are_named(tmp_path: Path, content: bytes) -> None:
    old_layout(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cars_annos\.mat"):
        cars196.read(tmp_path)


def test_cut_and_damaged_annotations_are_named(tmp_path: Path) -> None:
    old_layout(tmp_path)
    path = tmp_path / "cars_annos.mat"
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[: middle // 2], whole[:middle] + b"damaged" + whole[middle + 7 :]):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"cars_annos\.mat"):
            cars196.read(tmp_path)

"""Cars196: makes and models of cars, as Krause et al. published it; the first half of the models trains.

Both layouts in circulation are read. The newer one has a training and a test part of its own, for classification: the
models of both are the same, so the parts are joined and split again. The photos are not opened here.
"""

import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.datasets.layout import existing_path, find
from proxygml.errors import DatasetError

PUBLISHED = {"train": Count(8_054, 98), "test": Count(8_131, 98)}
ARCHIVES = {"car_ims": "car_ims", "cars_train": "cars_train", "cars_test": "cars_test", "car_devkit": "devkit"}
TRAIN_CLASSES = 98


def read(root: Path, *, boxes: bool = False) -> Catalog:
    """Cars196 (16,185 photos of cars): models 1-98 train, 99-196 test.

    Args:
        root: The folder that holds either car_ims.tgz and cars_annos.mat, or cars_train.tgz, cars_test.tgz,
            car_devkit.tgz and cars_test_annos_withlabels.mat; packed or unpacked. An archive of that folder will do.
        boxes: Crop the photos to the published bounding boxes. The usual protocol does not.

    Raises:
        DatasetError: An annotation file is missing, damaged or without class numbers.
    """
    if root.is_dir() and (annotations := find(root, "cars_annos.mat")):
        rows = _rows(annotations, existing_path(root, "car_ims", "Cars196 with car_ims.tgz beside cars_annos.mat"))
        names = _class_names(annotations)
    else:
        expected = "Cars196, with either car_ims.tgz and cars_annos.mat, or cars_train.tgz, cars_test.tgz, "
        expected += "car_devkit.tgz and cars_test_annos_withlabels.mat"
        rows = []
        for part, lists in (("cars_train", "cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
            annotations = existing_path(root, lists, expected)
            rows += _rows(annotations, existing_path(root, part, expected))
        names = _class_names(find(root, "cars_meta.mat"))
    listed = [
        (
            path.relative_to(root).as_posix(),
            _label(number, names),
            "train" if number <= TRAIN_CLASSES else "test",
            *(box if boxes else ()),
        )
        for path, number, *box in rows
    ]
    return Catalog.of_rows(listed, ["path", "label", "split", *(BOX_COLUMNS if boxes else ())], root)


def _rows(annotations: Path, images: Path) -> list[tuple[Path, int, int, int, int, int]]:
    """Path, class number and box of each image; the file's boxes count from 1 and include both edges."""
    entries = _load(annotations, "annotations")
    fields = entries.dtype.names or ()
    if "class" not in fields:
        raise DatasetError(f"{annotations} has no class numbers: fetch cars_test_annos_withlabels.mat")
    name = "relative_im_path" if "relative_im_path" in fields else "fname"
    if (images / images.name).is_dir():  # as some mirrors pack it
        images = images / images.name
    return [
        (
            images / PurePosixPath(str(entry[name])).name,
            int(entry["class"]),
            int(entry["bbox_x1"]) - 1,
            int(entry["bbox_y1"]) - 1,
            int(entry["bbox_x2"]),
            int(entry["bbox_y2"]),
        )
        for entry in entries
    ]


def _class_names(path: Path | None) -> list[str]:
    return [] if path is None else [str(name) for name in _load(path, "class_names")]


def _label(number: int, names: list[str]) -> str:
    """Such as `001.AM General Hummer SUV 2000`: unique, and sorted as the classes are numbered."""
    return f"{number:03d}.{names[number - 1]}" if number <= len(names) else f"{number:03d}"


def _load(path: Path, variable: str) -> Any:
    """One variable of a MATLAB file, its single-element dimensions left out."""
    from scipy.io import loadmat  # noqa: PLC0415  # only this data set needs it
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    try:
        content = loadmat(path, squeeze_me=True, variable_names=[variable])
    except (OSError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read as a MATLAB file ({error}): fetch it again") from error
    if variable not in content:
        raise DatasetError(f"{path} has no variable {variable!r}: is it the official file?")
    return content[variable].reshape(-1)

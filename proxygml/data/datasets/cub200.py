"""CUB-200-2011: 200 species of birds, as Wah et al. published it; the first half of the species trains.

The photos are not opened here.
"""

import math
from pathlib import Path

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.datasets.layout import existing_path, read_number, read_numbered
from proxygml.errors import DatasetError, counted

PUBLISHED = {"train": Count(5_864, 100), "test": Count(5_924, 100)}
ARCHIVES = {"CUB_200_2011": "CUB_200_2011"}
TRAIN_CLASSES = 100


def read(root: Path, *, boxes: bool = False) -> Catalog:
    """CUB-200-2011 (11,788 photos of birds): species 1-100 train, 101-200 test.

    Args:
        root: CUB_200_2011.tgz, or the folder that it unpacks to.
        boxes: Crop the photos to the published bounding boxes. The usual protocol does not.

    Raises:
        DatasetError: A list is missing, or the lists contradict each other.
    """
    folder = existing_path(root, "images.txt", "CUB_200_2011").parent
    names = read_numbered(folder / "images.txt")
    labels = existing_path(folder, "image_class_labels.txt", "CUB_200_2011")
    classes = read_numbered(labels)
    if names.keys() != classes.keys():
        raise DatasetError(
            f"{folder}: images.txt lists {counted(len(names), 'image')} and image_class_labels.txt {len(classes)}, "
            f"{len(names.keys() & classes.keys())} of them the same: are both of the same edition?"
        )
    rows: list[tuple[object, ...]] = [
        (
            f"images/{name}",
            name.partition("/")[0],
            "train" if read_number(classes[image][0], labels) <= TRAIN_CLASSES else "test",
        )
        for image, (name,) in names.items()
    ]
    columns = ["path", "label", "split"]
    if boxes:
        columns += BOX_COLUMNS
        rows = [(*row, *box) for row, box in zip(rows, _boxes(folder, list(names)), strict=True)]
    return Catalog.of_rows(rows, columns, folder)


def _boxes(folder: Path, images: list[int]) -> list[tuple[int, int, int, int]]:
    """The published left, top, width and height as edges in whole pixels."""
    boxes = existing_path(folder, "bounding_boxes.txt", "CUB_200_2011")
    published = read_numbered(boxes, fields=5)
    edges = []
    for image in images:
        if image not in published:
            raise DatasetError(f"{boxes} has no box of image {image}")
        left, top, width, height = (read_number(value, boxes) for value in published[image])
        edges.append((math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height)))
    return edges

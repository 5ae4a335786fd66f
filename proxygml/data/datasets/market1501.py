"""Market-1501: people seen by six cameras, as Zheng et al. published it, with queries, a gallery, junk and distractors.

The images are not opened here.
"""

import re
from pathlib import Path

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.datasets.layout import existing_path
from proxygml.errors import DatasetError

PUBLISHED = {
    "train": Count(12_936, 751),
    "test": Count(23_100, 752),
    "query": Count(3_368, 750),
    "gallery": Count(19_732, 752),
}
"""The 752 classes of the gallery are 750 people, junk and distractors."""
ARCHIVES = {"Market-1501-v15.09.15": "Market-1501-v15.09.15"}
FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
JUNK, DISTRACTOR = "-1", "0000"
_NAME = re.compile(r"(?P<person>-1|\d{4})_c(?P<camera>\d+)s\d+_\d+_\d+(\.jpg)+", re.IGNORECASE)
COLUMNS = ["path", "label", "split", "is_query", "is_gallery", "camera", "is_junk", "is_distractor"]


def read(root: Path) -> Catalog:
    """Market-1501 (32,668 images of 1,501 people and 3,368 queries): 751 people train, 750 test.

    Images of a query's own person and camera do not answer for it. Junk (-1) is left out of every ranking; distractors
    (0000) are searched and are always wrong.

    Args:
        root: Market-1501-v15.09.15.zip, or the folder that it unpacks to.

    Raises:
        DatasetError: A folder is missing or holds no images, or an image's name is not of the published form.
    """
    folder = existing_path(root, "bounding_box_train", "Market-1501").parent
    rows = [row for name, part in FOLDERS.items() for row in _rows(folder, name, part)]
    return Catalog.of_rows(rows, COLUMNS, folder)


def _rows(folder: Path, name: str, part: str) -> list[tuple[object, ...]]:
    images = existing_path(folder, name, "Market-1501")
    rows: list[tuple[object, ...]] = []
    for path in sorted(images.iterdir()):
        if path.suffix.lower() != ".jpg" or path.name.startswith("."):
            continue  # the official archive holds Thumbs.db
        if (found := _NAME.fullmatch(path.name)) is None:
            raise DatasetError(
                f"{path} is not named like 0002_c1s1_000451_03.jpg: person, camera, sequence, frame, box"
            )
        person = found["person"]
        if part != "gallery" and person in (JUNK, DISTRACTOR):
            raise DatasetError(f"{path} is {_kind(person)}, which only bounding_box_test may hold: is it complete?")
        split = "train" if part == "train" else "test"
        marks = (person == JUNK, person == DISTRACTOR)
        rows.append(
            (f"{name}/{path.name}", person, split, part == "query", part == "gallery", f"c{found['camera']}", *marks)
        )
    if not rows:
        raise DatasetError(f"{images} holds no images: is the download complete? Fetch it again")
    return rows


def _kind(person: str) -> str:
    return "junk" if person == JUNK else "a distractor"

"""Omniglot: handwritten characters, as Lake et al. published it; whole alphabets train and whole alphabets test.

The drawings are not opened here.
"""

from pathlib import Path

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.datasets.layout import existing_path

PUBLISHED = {"train": Count(19_280, 964), "test": Count(13_180, 659)}
ARCHIVES = {"images_background": "images_background", "images_evaluation": "images_evaluation"}


def read(root: Path) -> Catalog:
    """Omniglot (32,460 drawings of 1,623 characters): the background alphabets train, the evaluation alphabets test.

    Args:
        root: The folder that holds images_background and images_evaluation (or the .zip of each), or an archive of it.

    Raises:
        DatasetError: One of the two is missing.
    """
    folder = existing_path(root, "images_background", "Omniglot").parent
    rows = [
        (path.relative_to(folder).as_posix(), f"{path.parent.parent.name}/{path.parent.name}", split)
        for split, part in (("train", "images_background"), ("test", "images_evaluation"))
        for path in sorted(existing_path(folder, part, "Omniglot").glob("*/*/*.png"))
    ]
    return Catalog.of_rows(rows, ["path", "label", "split"], folder)

"""In-Shop Clothes Retrieval (DeepFashion): photos of clothes, as Liu et al. published it, with queries and a gallery.

The photos are not opened here.
"""

from pathlib import Path

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.datasets.layout import existing_path, read_list
from proxygml.errors import DatasetError

PUBLISHED = {
    "train": Count(25_882, 3_997),
    "test": Count(26_830, 3_985),
    "query": Count(14_218, 3_985),
    "gallery": Count(12_612, 3_985),
}
ARCHIVES = {"img": "img"}
LIST = "list_eval_partition.txt"


def read(root: Path) -> Catalog:
    """In-Shop Clothes Retrieval (52,712 photos of 7,982 items): 14,218 queries search a gallery of 12,612.

    Args:
        root: The folder that holds list_eval_partition.txt and img.zip (or the folder img that it unpacks to), in it
            or in folders below, or an archive of that folder.

    Raises:
        DatasetError: The list or the photos are missing, or the list is damaged.
    """
    partition = existing_path(root, LIST, "In-Shop Clothes Retrieval")
    folder = existing_path(root, "img", "In-Shop Clothes Retrieval, with img.zip beside its lists").parent
    rows = []
    for path, item, status in read_list(partition, fields=3, header=2):
        if status not in ("train", "query", "gallery"):
            raise DatasetError(f"{partition}: {path} has the status {status!r}: expected train, query or gallery")
        rows.append((path, item, "train" if status == "train" else "test", status == "query", status == "gallery"))
    return Catalog.of_rows(rows, ["path", "label", "split", "is_query", "is_gallery"], folder)

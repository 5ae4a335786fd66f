"""Stanford Online Products: photos of things on sale, as Song et al. published and split it.

The photos are not opened here.
"""

from pathlib import Path

from proxygml.data.catalog.catalog import Catalog, Count
from proxygml.data.datasets.layout import existing_path, read_list

PUBLISHED = {"train": Count(59_551, 11_318), "test": Count(60_502, 11_316)}
ARCHIVES = {"Stanford_Online_Products": "Stanford_Online_Products"}


def read(root: Path) -> Catalog:
    """Stanford Online Products (120,053 photos of 22,634 products), split by Ebay_train.txt and Ebay_test.txt.

    Args:
        root: Stanford_Online_Products.zip, or the folder that it unpacks to.

    Raises:
        DatasetError: A list is missing or damaged.
    """
    folder = existing_path(root, "Ebay_train.txt", "Stanford_Online_Products").parent
    rows = []
    for split, name in (("train", "Ebay_train.txt"), ("test", "Ebay_test.txt")):
        for _, number, _, path in read_list(
            existing_path(folder, name, "Stanford_Online_Products"), fields=4, header=1
        ):
            category = path.partition("/")[0].removesuffix("_final")
            rows.append((path, f"{category}/{number.zfill(5)}", split))
    return Catalog.of_rows(rows, ["path", "label", "split"], folder)

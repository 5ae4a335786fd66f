"""The kinds of data that can be prepared. A new one is one file here and one line below.

Each file turns an unpacked official download, or your own images, into a catalog; preparing/ opens the images.
"""

from proxygml.data.datasets import cars196, cub200, folder, glyphs, inshop, market1501, omniglot, sop, table, vectors
from proxygml.data.datasets.layout import Dataset
from proxygml.errors import DatasetError, did_you_mean

DATASETS = (
    Dataset("cub200", cub200.read, cub200.PUBLISHED, cub200.ARCHIVES),
    Dataset("cars196", cars196.read, cars196.PUBLISHED, cars196.ARCHIVES),
    Dataset("sop", sop.read, sop.PUBLISHED, sop.ARCHIVES),
    Dataset("inshop", inshop.read, inshop.PUBLISHED, inshop.ARCHIVES),
    Dataset("market1501", market1501.read, market1501.PUBLISHED, market1501.ARCHIVES),
    Dataset("omniglot", omniglot.read, omniglot.PUBLISHED, omniglot.ARCHIVES),
    Dataset("folder", folder.read, strays=folder.strays, hidden=folder.hidden),
    Dataset("table", table.read),
    Dataset("vectors", vectors.read, has_vectors=True),
    Dataset("glyphs", glyphs.make, makes_images=True),
)


def find_dataset(name: str) -> Dataset:
    """The data set of that name, written with dashes or underscores.

    Raises:
        DatasetError: there is none; the message names the nearest.
    """
    known = {dataset.name: dataset for dataset in DATASETS}
    if name.replace("-", "_") not in known:
        raise DatasetError(
            f"{name!r} is not a data set that can be prepared (for your own images take 'folder' or 'table', for "
            f"vectors 'vectors'): {did_you_mean(name, known)}"
        )
    return known[name.replace("-", "_")]


__all__ = ["DATASETS", "Dataset", "find_dataset"]

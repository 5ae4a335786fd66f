"""The kinds of data that can be prepared. A new one is one file here and one line below.

Each file turns an unpacked official download, or images of one's own, into a catalog, and opens no image.
"""

from proxygml.data.datasets import cars196, cub200, folder, glyphs, inshop, omniglot, sop, table
from proxygml.data.datasets.layout import Dataset

DATASETS = (
    Dataset("cub200", cub200.read, cub200.PUBLISHED, cub200.ARCHIVES),
    Dataset("cars196", cars196.read, cars196.PUBLISHED, cars196.ARCHIVES),
    Dataset("sop", sop.read, sop.PUBLISHED, sop.ARCHIVES),
    Dataset("inshop", inshop.read, inshop.PUBLISHED, inshop.ARCHIVES),
    Dataset("omniglot", omniglot.read, omniglot.PUBLISHED, omniglot.ARCHIVES),
    Dataset("folder", folder.read, strays=folder.strays),
    Dataset("table", table.read),
    Dataset("glyphs", glyphs.make, makes_images=True),
)

__all__ = ["DATASETS", "Dataset"]

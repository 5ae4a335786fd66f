"""From downloads and folders to a catalog, and from an image file to the square that a network sees.

Each data set has one file in datasets/. An image is decoded in decode.py, turned upright by orientation.py and cut and
scaled by transforms.py. No network runs here.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.data.catalog import Catalog as Catalog
    from proxygml.data.image_settings import ImageSettings as ImageSettings
    from proxygml.data.images import ImageDataset as ImageDataset

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"catalog": ["Catalog"], "images": ["ImageDataset"], "image_settings": ["ImageSettings"]}
)

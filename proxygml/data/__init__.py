"""From downloads, folders and tables to a catalog, and from an image file to the square that a network sees.

preparing/ makes catalogs of what archives/ unpacks and datasets/ reads. catalog/ is the table itself; images/ and
vectors/ read what its rows name. No network runs here.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.data.catalog import Catalog as Catalog
    from proxygml.data.images import ImageDataset as ImageDataset
    from proxygml.data.images import ImageSettings as ImageSettings

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"catalog": ["Catalog"], "images": ["ImageDataset", "ImageSettings"]}
)

"""The catalog, one table of images, labels and splits that every command reads: read, checked, corrected and written.

catalog.py has the Catalog, table.py the checks of its columns. blocks.py reads catalogs of vectors, of any length.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.data.catalog.catalog import Catalog as Catalog

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"catalog": ["Catalog"]})

"""Galleries: vectors with a table of what they are, in a folder or in Milvus, to be searched, changed and clustered.

Embedding the images that go in is models/; answering over HTTP is serving/.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.gallery.base import Gallery as Gallery
    from proxygml.gallery.base import SearchResult as SearchResult

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"base": ["Gallery", "SearchResult"]})

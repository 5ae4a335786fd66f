"""Galleries: vectors with a table of items, in a folder or in Milvus; searching, changing and clustering them.

base.py has the gallery, backend.py what a new backend implements, backends.py the list of them. models/ embeds
images, serving/ answers over HTTP.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.gallery.base import Gallery as Gallery
    from proxygml.gallery.base import SearchResult as SearchResult

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"base": ["Gallery", "SearchResult"]})

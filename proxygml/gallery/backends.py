"""Which backend keeps the gallery at a place: the one list of backends."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygml.errors import GalleryError
from proxygml.files import check_local
from proxygml.gallery.milvus.address import is_milvus

if TYPE_CHECKING:
    from proxygml.gallery.base import Gallery
    from proxygml.gallery.folder.gallery import FolderGallery
    from proxygml.gallery.kinds import Kind

_BACKENDS: tuple[tuple[Callable[[str | Path], bool], str, str], ...] = (
    (is_milvus, "proxygml.gallery.milvus.gallery", "MilvusGallery"),
    (lambda _: True, "proxygml.gallery.folder.gallery", "FolderGallery"),
)
"""Whether a place is of this backend, its module and its class. The first one that fits is taken, and imported then."""


def backend_of(place: str | Path) -> "type[Gallery]":
    """The class of the galleries at that place."""
    check_local(place, "the gallery", GalleryError, gallery=True)
    backend: type[Gallery] = next(_imported(module, name) for fits, module, name in _BACKENDS if fits(place))
    return backend


def memory_backend() -> "type[FolderGallery]":
    """The class of the galleries that are made in memory."""
    _, module, name = _BACKENDS[-1]
    backend: type[FolderGallery] = _imported(module, name)
    return backend


def _imported(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def check_place(place: str | Path, kind: "Kind", force: bool) -> None:
    """Check, before anything is embedded, that a gallery of that kind can be put there.

    Raises:
        OverwriteError: something is there already; `force` lets it replace another gallery.
        GalleryError: the server does not answer, is too old, lacks the kind, or gives this user no right to write.
    """
    backend_of(place).check_place(place, kind, force)


def work_place(place: str | Path, purpose: str) -> Path:
    """The folder on this machine that keeps unfinished work on a gallery, such as vectors not yet indexed."""
    return backend_of(place).work_place(place, purpose)

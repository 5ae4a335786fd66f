"""Inputs that a command needs are looked for before anything slow is loaded: a missing one is named at once."""

from collections.abc import Iterable
from pathlib import Path

from proxygml.errors import CatalogError, GalleryError, ImageError, RunError, UserError
from proxygml.files import PathLike
from proxygml.gallery.milvus.address import is_milvus
from proxygml.remote import exists
from proxygml.urls import Place, as_place


def check_inputs(
    *,
    run: Place | None = None,
    catalog: PathLike | None = None,
    images: Iterable[Place] = (),
    images_hint: str = "",
    vectors: Place | None = None,
    gallery: str | None = None,
    rows: Iterable[Path] = (),
) -> None:
    """Raise an error of the input's kind where one that was given does not exist.

    Args:
        run: a run folder.
        catalog: a table of images.
        images: files or folders.
        images_hint: the end of the message about one that is missing.
        vectors: a file that `proxygml embed` wrote, or one of vectors to embed.
        gallery: a folder; one in Milvus is looked for when it is opened.
        rows: files that a comparison wrote.
    """
    if run is not None and not exists(run, RunError):
        raise RunError(f"{run} is no run folder: there is nothing of that name; `proxygml train` makes one")
    if catalog and not exists(as_place(catalog, "--catalog", CatalogError), CatalogError):
        raise CatalogError(f"{catalog}: there is no such file; `proxygml prepare` makes a catalog")
    for place in images:
        if not exists(place, ImageError):
            raise ImageError(f"there is no {place}: give image files, or folders of them{images_hint}")
    if vectors is not None and not exists(vectors, GalleryError):
        raise GalleryError(f"there is no {vectors}; `proxygml embed` makes such files")
    if gallery is not None and not is_milvus(gallery) and not Path(gallery).exists():
        raise GalleryError(f"{gallery} is no gallery: there is nothing of that name; `proxygml index` makes one")
    for file in rows:
        if not file.exists():
            raise UserError(f"there is no {file}: give the cells.csv that a comparison has written")

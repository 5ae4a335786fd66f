"""Changes of a gallery in a folder that count at once: made to the gallery as it is now, and saved together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from proxygml.errors import GalleryError, OverwriteError
from proxygml.gallery.backend import Addition, Backend, Change

_ATTEMPTS = 3
"""At a change, where another process is faster."""

AnyGallery = TypeVar("AnyGallery", bound=Backend)


def changed_at_once(
    gallery: AnyGallery, folder: Path, changes: Sequence[Change]
) -> tuple[AnyGallery, list[int | GalleryError]]:
    """See Backend.change_at_once.

    Args:
        gallery: as it was loaded from the folder.
        folder: where it is.
        changes: one or more.
    """
    for _ in range(_ATTEMPTS):
        loaded = gallery._load(folder)
        results = [_made(loaded, change) for change in changes]
        try:
            if any(not isinstance(result, GalleryError) for result in results):
                loaded.save()
        except OverwriteError:
            continue  # another process was faster: make the changes to what it left
        except GalleryError as error:
            if len(changes) == 1:
                return gallery, [error]
            alone = [
                changed_at_once(gallery, folder, [change]) for change in changes
            ]  # only the one at fault is refused
            return alone[-1][0], [result for _, (result,) in alone]
        return _reloaded(loaded, folder), results
    raise OverwriteError(f"{folder} is being changed by other processes: try again later")


def _made(gallery: Backend, change: Change) -> int | GalleryError:
    """Make a change in memory; the id of the item, or why not."""
    try:
        if isinstance(change, Addition):
            return int(gallery.add(change.vector[None], pd.DataFrame([dict(change.row)]))[0])
        gallery.remove([change])
        return change
    except GalleryError as error:
        return error


def _reloaded(gallery: AnyGallery, folder: Path) -> AnyGallery:
    """The gallery as its files say; as it was saved where they cannot be read now: the changes count already."""
    try:
        return gallery._load(folder)
    except (GalleryError, OSError):
        return gallery

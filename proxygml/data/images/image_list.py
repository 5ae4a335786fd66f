"""Which images to embed: the rows of a catalog, or the image files in folders. No image is opened here.

How folders are listed is in files.py.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.console import warn
from proxygml.data.catalog.catalog import Catalog, boxes_of
from proxygml.data.columns import EMBEDDING, EMBEDDING_ROW
from proxygml.data.images.files import image_files
from proxygml.data.images.packed import text_behind
from proxygml.data.lazy_list import LazyList
from proxygml.data.vectors.checks import ROWS_AT_A_TIME
from proxygml.errors import ImageError
from proxygml.urls import Place, Url, absolute_in, as_place, url_of

FILE_STAMP = "proxygml_file_stamp"  # so that nobody's own column has this name
"""The column of a gallery that says which state of its file an item was made from; see file_stamps."""


def file_stamps(paths: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each image a number above 0 that changes when its file does; 0 where there is none, int64 (n,).

    Of a file on this machine by its size and time; of a URL by what its store says of it.
    """
    found = np.zeros(len(paths), np.int64)
    remote: dict[int, Url] = {}
    for row, path in enumerate(map(text_behind, paths)):
        if ":/" in path and (url := url_of(path)) is not None:
            remote[row] = url
        else:
            found[row] = _file_stamp(path)
    if remote:
        from proxygml.remote import stamps  # noqa: PLC0415  (most images are files)

        found[list(remote)] = stamps(list(remote.values()))
    return found


def _file_stamp(path: str) -> int:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return 0
    return int.from_bytes(hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).digest()[:7], "big") + 1


@dataclass(frozen=True)
class ImageList:
    """The images to embed, with their columns.

    Attributes:
        table: `path` (absolute, or a URL), then any other columns; box columns as in a catalog. Vectors may come
            without images, and then without `path`.
        rows: int64 (n,), the row of each in the whole table, where these are a part of one.
    """

    table: pd.DataFrame
    rows: npt.NDArray[np.int64] | None = None

    @classmethod
    def from_catalog(cls, catalog: Catalog) -> "ImageList":
        """All rows of a catalog, with absolute paths; without vectors, which are another model's."""
        table = catalog.table.drop(columns=[EMBEDDING, EMBEDDING_ROW], errors="ignore")
        if not catalog.has_images:
            _ = catalog.paths  # raises
        parts = range(0, len(table), ROWS_AT_A_TIME)
        absolute = partial(absolute_in, catalog.folder)
        texts = [table["path"].iloc[start : start + ROWS_AT_A_TIME].map(absolute) for start in parts]
        return cls(table.assign(path=pd.concat(texts).astype("str")) if texts else table)

    @classmethod
    def from_files(cls, places: Sequence[Place]) -> "ImageList":
        """Image files, and those in folders, at any depth; what is left out is named on the console.

        Raises:
            ImageError: a place does not exist or is neither a file nor a folder, or no place holds an image.
        """
        places = [as_place(place, "an image", ImageError) for place in places]
        for place in places:
            if isinstance(place, Url):
                continue  # image_files looks at it
            if not place.exists():
                raise ImageError(f"there is no {place}: give image files, or folders of them")
            if not place.is_file() and not place.is_dir():
                raise ImageError(f"{place} is a device or a pipe: give image files, or folders of them")
        files, left_out = image_files(places)
        names = ", ".join(map(str, places))
        if not files:
            found = f"{left_out}. Give" if left_out else "give"
            raise ImageError(f"there is no image in {names}: {found} image files, or folders of them")
        if left_out:
            warn(f"{names}: {left_out}")
        return cls(pd.DataFrame({"path": files}))

    @property
    def paths(self) -> LazyList[str]:
        """Absolute paths, or URLs; as a list that makes each when it is needed."""
        return LazyList(self.table["path"], str)

    @property
    def names(self) -> list[str]:
        """What identifies each to a reader: its path; of vectors without images their `item_id`, or their row."""
        key = next((name for name in ("path", "item_id") if name in self.table), None)
        cells = [None] * len(self) if key is None else self.table[key].tolist()
        rows = range(len(self)) if self.rows is None else self.rows
        return [f"row {row}" if pd.isna(cell) else str(cell) for row, cell in zip(rows, cells, strict=True)]

    @property
    def boxes(self) -> npt.NDArray[np.int64] | None:
        """(n, 4), see Catalog.boxes."""
        return boxes_of(self.table)

    def __len__(self) -> int:
        return len(self.table)

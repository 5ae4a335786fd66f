"""Which images to embed: the rows of a catalog, or the image files in folders. No image is opened here."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.data.catalog import Catalog, boxes_of
from proxygml.data.decode import image_endings
from proxygml.errors import ImageError

FILE_STAMP = "file_stamp"
"""The column of a gallery that says which state of its file an item was made from; see file_stamp."""


def file_stamp(path: str) -> int:
    """A number above 0 that changes when the file does, by its size and time; 0 where there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return 0
    return int.from_bytes(hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).digest()[:7], "big") + 1


@dataclass(frozen=True)
class ImageList:
    """The images to embed, with their columns.

    Attributes:
        table: `path` (absolute), then any other columns; box columns as in a catalog.
    """

    table: pd.DataFrame

    @classmethod
    def from_catalog(cls, catalog: Catalog) -> "ImageList":
        """All rows of a catalog, with absolute paths; without vectors, which are another model's."""
        table = catalog.table.drop(columns="embedding", errors="ignore")
        return cls(table.assign(path=[str(path.resolve()) for path in catalog.paths]))

    @classmethod
    def from_files(cls, places: Sequence[Path]) -> "ImageList":
        """Image files, and those in folders, by the ending of their names; hidden ones are left out.

        Raises:
            ImageError: a place does not exist, or no place holds an image.
        """
        files: list[Path] = []
        for place in places:
            if not place.exists():
                raise ImageError(f"there is no {place}: give image files, or folders of them")
            files += sorted(_images_in(place)) if place.is_dir() else [place]
        if not files:
            raise ImageError(
                f"there is no image in {', '.join(map(str, places))}: give image files, or folders of them"
            )
        return cls(pd.DataFrame({"path": list(dict.fromkeys(str(file.resolve()) for file in files))}))

    @property
    def paths(self) -> list[str]:
        """Absolute paths."""
        return [str(path) for path in self.table["path"]]

    @property
    def boxes(self) -> npt.NDArray[np.int64] | None:
        """(n, 4), see Catalog.boxes."""
        return boxes_of(self.table)

    def __len__(self) -> int:
        return len(self.table)


def _images_in(folder: Path) -> Iterator[Path]:
    endings = image_endings()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in endings and not hidden and path.is_file():
            yield path

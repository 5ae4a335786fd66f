"""A folder of Parquet files that together are one table of vectors: `proxygml embed --ray` writes such folders.

parts.json is written last and says which files belong to the table, so that a folder is whole or is not read. In a
folder that another program wrote, all Parquet files are the parts, in the order of their names. A folder may be at a
URL.
"""

from dataclasses import asdict, dataclass
from json import dumps
from typing import Annotated

from pydantic import Field

from proxygml.errors import GalleryError, counted, first_few
from proxygml.remote import local_file, names_in, written
from proxygml.typed_json import read_typed_json
from proxygml.urls import Place, Url

INDEX = "parts.json"
UNREADABLE = "unreadable.parquet"
"""The table of images that could not be read: their columns, and `problem`."""

LARGEST_INDEX = 2**16
"""Bytes of parts.json."""


@dataclass(frozen=True)
class PartsIndex:
    """The content of parts.json."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    """Of the work that made the parts; in the names of its files, so that two works never mix."""
    parts: Annotated[int, Field(ge=1, le=10**8)]
    rows: Annotated[int, Field(ge=0)]
    unreadable: Annotated[int, Field(ge=0)]

    @classmethod
    def read(cls, folder: Place) -> "PartsIndex":
        """Of a folder; GalleryError where the file is damaged."""
        file, advice = local_file(folder / INDEX, GalleryError), "embed the images again"
        return read_typed_json(file, cls, most=LARGEST_INDEX, error=GalleryError, advice=advice)

    def write(self, folder: Place) -> None:
        """Replace the index of a folder in one step."""
        with written(folder / INDEX) as temporary:
            temporary.write_text(dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def part_file(folder: Place, key: str, number: int) -> Place:
    """Where a part of vectors lies."""
    return folder / f"part-{number:05d}-{key}.parquet"


def part_files(folder: Place) -> list[Place]:
    """The files of a folder of vectors, in order.

    Raises:
        GalleryError: there are none, some are missing, or the command that writes them was stopped.
    """
    names = names_in(folder, GalleryError)
    if INDEX in names:
        index, there = PartsIndex.read(folder), set(names)
        files = [part_file(folder, index.key, number) for number in range(index.parts)]
        if missing := [file.name for file in files if file.name not in there]:
            raise GalleryError(
                f"{folder} lacks {counted(len(missing), 'part')} of its {index.parts:,} ({first_few(missing)}): put "
                "them back, or embed the images again"
            )
        return files
    found = [folder / name for name in names if name.lower().endswith(".parquet")]
    found = [file for file in found if isinstance(file, Url) or file.is_file()]
    if any(file.name.startswith(".images-") for file in found):
        raise GalleryError(
            f"{folder} is not finished, `proxygml embed --ray` was stopped there: the same command completes it"
        )
    if not found:
        raise GalleryError(f"there is no Parquet file in {folder}: give a folder that `proxygml embed --ray` wrote")
    return found

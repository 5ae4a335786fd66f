"""What tools that show embeddings read beside the vectors: two coordinates, the nearest neighbours, a small picture.

The columns have the form that Embedding Atlas reads (its options x, y, neighbors); docs/guide/export.md shows how.
"""

import io
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from proxygml.arrays import Block, Rows, Vectors
from proxygml.console import console
from proxygml.data.catalog.catalog import boxes_of
from proxygml.data.columns import MAP_COLUMNS
from proxygml.data.images.tensors import thumbnail
from proxygml.errors import UserError, counted
from proxygml.gallery.base import Gallery
from proxygml.gallery.folder.files import mapped_vectors, read_manifest
from proxygml.gallery.kinds import Kind
from proxygml.models.embed_images import discard
from proxygml.reports.projection import project

X, Y, NEIGHBORS, THUMBNAIL = MAP_COLUMNS

NEAREST = 15
"""Neighbours of each item."""

EXACT = 20_000
"""Items up to which neighbours are found by comparing all; beyond, by an index (IVF-PQ), which may miss a few."""

PIXELS = 96
"""The longer side of a thumbnail, a JPEG file of about 3 kB."""

_SEED = 0
_READERS = 4  # threads that decode
_AT_A_TIME = 1024


def check_column_names(names: Iterable[object]) -> None:
    """Raise UserError where items have a column already that is to be added."""
    for name in MAP_COLUMNS:
        if name in names:
            raise UserError(
                f"there is a column {name!r} already, which --columns atlas adds: rename it, or leave it out"
            )


def with_map_columns(
    blocks: Callable[[], Iterable[Block]], total: int, folder: Path, *, pictures: bool
) -> Generator[Block]:
    """The same blocks, with the columns projection_x and projection_y (0..1), neighbors and thumbnail.

    `neighbors` holds, for each item, the row numbers `ids` of up to 15 others, the nearest first, and their
    `distances`: 1 - cosine similarity. The vectors are on disk meanwhile; memory grows by the coordinates of each item,
    its row of a table, and where there are more than EXACT items by the index.

    Args:
        blocks: gives the blocks, anew at each call.
        total: their rows.
        folder: for the vectors, until all blocks are taken; it is made and deleted here.
        pictures: whether items are images, by their `path`; without, there is no column thumbnail.

    Raises:
        UserError: the items have one of the columns already.
    """
    if total == 0:
        return
    try:
        kind: Kind = "exact" if total <= EXACT else "ivfpq"
        gallery = Gallery.build(folder, _numbered(blocks()), kind, force=True, total=total)
        with console.status(f"Laying out {counted(total, 'item')} in the plane"):
            points = project(mapped_vectors(folder, read_manifest(folder)), _SEED).astype(np.float32)
        first = 0
        for vectors, items in blocks():
            rows = np.arange(first, first + len(vectors))
            first += len(vectors)
            columns = {X: points[rows, 0], Y: points[rows, 1], NEIGHBORS: _neighbors(gallery, vectors, rows)}
            yield vectors, items.assign(**columns, **({THUMBNAIL: _thumbnails(items)} if pictures else {}))
    finally:
        discard(folder)


def _numbered(blocks: Iterable[Block]) -> Iterator[Block]:
    """The vectors with their row numbers alone."""
    first = 0
    for vectors, items in blocks:
        check_column_names(items.columns)
        yield vectors, pd.DataFrame({"row": np.arange(first, first + len(vectors))})
        first += len(vectors)


def _neighbors(gallery: Gallery, vectors: Vectors, rows: Rows) -> pd.Series:
    """The neighbours of the items of these rows, as a column of structs."""
    nearest = min(NEAREST, len(gallery) - 1)
    ids, distances = np.empty((len(rows), nearest), np.int64), np.empty((len(rows), nearest), np.float32)
    for start in range(0, len(rows) if nearest else 0, _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        found = gallery.search(vectors[part], nearest, exclude=rows[part])
        ids[part], distances[part] = found.ids, 1 - found.scores
    starts = pa.array(np.arange(0, ids.size + 1, nearest) if nearest else [0] * (len(rows) + 1), pa.int32())
    lists = [pa.ListArray.from_arrays(starts, pa.array(values.reshape(-1))) for values in (ids, distances)]
    structs = pa.StructArray.from_arrays(lists, ["ids", "distances"])
    return pd.Series(structs, dtype=pd.ArrowDtype(structs.type))


def _thumbnails(items: pd.DataFrame) -> list[bytes]:
    """The images of items, or the parts of them in their boxes, as small JPEG files."""
    boxes = boxes_of(items)
    parts = [None] * len(items) if boxes is None else boxes.tolist()
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(_thumbnail, items["path"], parts))


def _thumbnail(path: str, box: list[int] | None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(thumbnail(path, box, PIXELS)).save(buffer, "jpeg", quality=80)
    return buffer.getvalue()

"""Packing the images of a catalog into shards (see images/packed.py), for training from a store of objects.

prepare.py has checked the images before. A shard is written whole or not at all, and one that is there is kept, so that
a stopped run continues.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.console import note, track
from proxygml.data.catalog import Catalog
from proxygml.data.images.decode import read_file
from proxygml.data.images.packed import IMAGE, NAME, packed_path, packed_place
from proxygml.errors import counted
from proxygml.files import atomic_write, remove_leftovers
from proxygml.urls import Place

SHARD_BYTES = 100 * 10**6
"""Of images in a shard."""

GROUP_BYTES = 2**20
"""Of images in a row group: what is read at once. Measured in docs/scaling.md."""

SCHEMA = pa.schema([(NAME, pa.string()), (IMAGE, pa.binary())])


@dataclass(frozen=True)
class _Shard:
    """A shard that is to be written."""

    file: Path
    paths: Sequence[Place]
    names: Sequence[str]


def pack_images(catalog: Catalog, folder: Path, workers: int | None = None, shard_bytes: int = SHARD_BYTES) -> Catalog:
    """Write the images of a catalog into shards, those of a class together, each file once.

    Args:
        catalog: the images; its rows keep their order.
        folder: where the shards go.
        workers: shards that are written at a time; as many as there are processors when left out.
        shard_bytes: of images in a shard.

    Returns:
        The same rows with the paths of the packed images, relative to `folder`.

    Raises:
        ImageError: an image cannot be read.
    """
    remove_leftovers(folder)
    shards = _plan(catalog, folder, shard_bytes)
    places = {
        path: packed_path(shard.file.name, row, name)
        for shard in shards
        for row, (path, name) in enumerate(zip(shard.paths, shard.names, strict=True))
    }
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        deque(track(pool.map(_write, shards), "Packing images", len(shards)), maxlen=0)  # all of it, kept nowhere
    finally:
        pool.shutdown(cancel_futures=True)
    images, files = counted(len(places), "image"), counted(len(shards), "shard")
    note(f"{images} in {files}: {folder}")
    return Catalog(catalog.table.assign(path=[places[path] for path in catalog.paths]), folder)


def _plan(catalog: Catalog, folder: Path, shard_bytes: int) -> list[_Shard]:
    """Which images go into which shard: by split, then by class, then in the order of the catalog."""
    names = dict(zip(catalog.paths, catalog.table["path"], strict=True))
    keys = zip(catalog.table["split"], catalog.labels, catalog.paths, strict=True)
    first = {path: (split, label) for split, label, path in reversed(list(keys))}
    paths = sorted(names, key=lambda path: first[path])
    sizes = [_size(path) for path in paths]
    number = np.cumsum([0, *sizes[:-1]]) // shard_bytes
    bounds = [0, *(np.flatnonzero(np.diff(number)) + 1), len(paths)]
    parts = [paths[start:end] for start, end in pairwise(bounds)]
    return [
        _Shard(folder / f"shard-{place:05d}.parquet", part, [names[path] for path in part])
        for place, part in enumerate(parts)
    ]


def _size(path: Place) -> int:
    """Bytes of an image."""
    is_file = isinstance(path, Path) and packed_place(path) is None
    return path.stat().st_size if isinstance(path, Path) and is_file else len(read_file(path, kept=True))


def _write(shard: _Shard) -> None:
    """Write a shard, where it is not there yet."""
    if shard.file.exists():
        return
    options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    with atomic_write(shard.file, tidy=False) as temporary, pq.ParquetWriter(temporary, SCHEMA, **options) as writer:
        for group in _groups(shard):
            writer.write_table(group)


def _groups(shard: _Shard) -> Iterator[pa.Table]:
    """The row groups of a shard, each as many images as fit, or one that is larger."""
    names: list[str] = []
    images: list[bytes] = []
    for path, name in zip(shard.paths, shard.names, strict=True):
        image = read_file(path, kept=True)
        if images and sum(map(len, images)) + len(image) > GROUP_BYTES:
            yield pa.table([names, images], SCHEMA)
            names, images = [], []
        names.append(name)
        images.append(image)
    yield pa.table([names, images], SCHEMA)

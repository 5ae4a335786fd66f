"""Images in packed shards: Parquet files of about 100 MB whose row groups hold some tens of images, those of a class
together.

A packed image has a path like any other, FOLDER/shard-00012.parquet/345/robin.jpg: the shard, the row in it, and the
name that the image had. Whatever reads image files reads these too, a row group at a time, since a store answers one
request for a megabyte faster than twenty for its parts; the images of a class that a batch draws come from one read.
"""

import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from proxygml.errors import ImageError, counted
from proxygml.files import PathLike
from proxygml.urls import url_of

IMAGE, NAME = "image", "name"
"""The columns of a shard: the bytes of the file, and the path that it had."""

KEPT_BYTES = 64 * 2**20
"""Of row groups that a process keeps, the last that were used."""

OPEN_SHARDS = 256
"""Whose tables of row groups a process keeps."""

_PACKED = re.compile(r"(.*[/\\]shard-\d{5,}\.parquet)[/\\](\d{1,9})[/\\][^/\\]+", re.DOTALL)


class PackedPlace(NamedTuple):
    """Where a packed image lies."""

    shard: str
    row: int


def packed_place(path: PathLike) -> PackedPlace | None:
    """Where an image lies that has such a path; None for a file of its own."""
    text = str(path)
    found = _PACKED.fullmatch(text) if ".parquet" in text else None
    return None if found is None else PackedPlace(found[1], int(found[2]))


def packed_path(shard: str, row: int, name: str) -> str:
    """The path of a packed image.

    Args:
        shard: the shard's file.
        row: 0 or more.
        name: the path that the image had; its last part is kept, so that a catalog keeps its fingerprint.
    """
    return f"{shard}/{row}/{name.replace(chr(92), '/').rpartition('/')[2]}"


def file_behind(path: Path) -> Path:
    """The file that holds an image: its shard, or the path itself."""
    return Path(text_behind(str(path)))


def text_behind(path: str) -> str:
    """The same for the text of a path or URL."""
    place = packed_place(path)
    return path if place is None else place.shard


def read_packed(place: PackedPlace) -> bytes:
    """The bytes of a packed image.

    Raises:
        ImageError: the shard cannot be read, or has no such row.
    """
    try:
        return _reader().image(place)
    except ImageError:
        raise
    except (OSError, ValueError, LookupError) as error:  # those of Arrow are of these kinds
        raise ImageError(f"{place.shard} cannot be read ({error}): pack the images again") from error


class _Shard:
    """An open shard, and where its row groups begin."""

    def __init__(self, path: str) -> None:
        # The processes that decode do without Arrow, where nothing is packed.
        from proxygml.data.parquet import open_parquet  # noqa: PLC0415

        self.file = open_parquet(url_of(path) or Path(path), ImageError)
        facts = self.file.metadata
        counts = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
        self.starts = list(accumulate(counts, initial=0))


class _Reader:
    """The shards that a process has open, and the row groups that it has read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a Parquet file is read by one thread at a time
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._bytes = 0

    def image(self, place: PackedPlace) -> bytes:
        with self._lock:
            shard = self._shard(place.shard)
            if place.row >= shard.starts[-1]:
                raise ImageError(
                    f"{place.shard} has {counted(shard.starts[-1], 'image')}, but the path names row {place.row:,}"
                )
            group = bisect_right(shard.starts, place.row) - 1
            image: bytes = self._group(place.shard, group)[place.row - shard.starts[group]].as_py()
        return image

    def _shard(self, path: str) -> _Shard:
        if path not in self._shards:
            self._shards[path] = _Shard(path)
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)[1].file.close()
        self._shards.move_to_end(path)
        return self._shards[path]

    def _group(self, path: str, group: int) -> Any:
        """The images of a row group."""
        key = path, group
        if key not in self._groups:
            column = self._shards[path].file.read_row_group(group, columns=[IMAGE]).column(IMAGE)
            self._groups[key] = column
            self._bytes += column.nbytes
            while self._bytes > KEPT_BYTES and len(self._groups) > 1:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end(key)
        return self._groups[key]


_readers: dict[int, _Reader] = {}


def _reader() -> _Reader:
    """This process's own: open files and locks do not survive a fork."""
    process = os.getpid()
    if process not in _readers:
        _readers.clear()
        _readers[process] = _Reader()
    return _readers[process]

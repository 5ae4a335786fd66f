"""Opening image files in many processes by Ray: in parts, whose results wait in a folder beside the catalog.

.OUT.inspections/images-KEY.parquet          the files, a row group for each part
.OUT.inspections/part-00000-KEY.parquet, ... what was found in each
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.console import note
from proxygml.data.images.decoder_pool import DecoderPool
from proxygml.data.images.inspection import Inspection, inspect
from proxygml.data.images.parts import facts_with, stamps_of_files, stamps_of_part, write_list
from proxygml.errors import MOST_WORKERS, DatasetError, check_whole, counted
from proxygml.files import atomic_write, remove_folder
from proxygml.ray_parts import Made, PartTask, run_parts
from proxygml.ray_session import check_shared, ray_session
from proxygml.urls import Place, absolute, place_in

PART_ROWS = 4096
"""Images of a part."""

ACTOR_BYTES = 2**30
"""What Ray sets aside for an actor and the processes that decode for it."""

SCHEMA = pa.schema(
    [
        ("digest", pa.binary()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("kind", pa.string()),
        ("problem", pa.string()),
    ]
)
"""An Inspection a row."""


@dataclass(frozen=True)
class PartedInspection:
    """The work: which files, and how many of them an actor opens at a time."""

    folder: Path
    key: str
    workers: int

    @property
    def images_file(self) -> Path:
        """The list of files."""
        return self.folder / f"images-{self.key}.parquet"

    def part(self, number: int) -> Path:
        """Where the results of a part go."""
        return self.folder / f"part-{number:05d}-{self.key}.parquet"


def inspect_on_ray(paths: Sequence[Place], out: Path, address: str, workers: int | None) -> dict[Place, Inspection]:
    """Open every file once, however often it is named; what a stopped call has opened is not opened again.

    Args:
        paths: the files.
        out: the catalog; the results wait beside it until `remove_inspections`.
        address: of Ray; see ray_session.
        workers: files that each process opens at a time, and the processors that it takes; 1 when left out.

    Raises:
        UserError: Ray is not installed or not reached.
    """
    workers = check_whole("workers", workers or 1, 1, MOST_WORKERS, DatasetError)
    check_shared("an image", paths)
    places = {absolute(path): path for path in paths}
    key = hashlib.sha256(f"{list(places)} {PART_ROWS}".encode(errors="surrogateescape")).hexdigest()[:8]
    work = PartedInspection(_folder(out).absolute(), key, workers)
    parts = write_list(pd.DataFrame({"path": list(places)}), work.images_file, PART_ROWS)
    with ray_session(address) as ray:
        task = PartTask(parts, len(places), partial(PartInspector, work), workers, ACTOR_BYTES, "Opening images")
        made = run_parts(ray, task)
    if made.kept:
        note(f"{made.kept:,} of {counted(made.items, 'image')} were opened already")
    rows = (row for number in range(parts) for row in pq.read_table(work.part(number), partitioning=None).to_pylist())
    return {path: Inspection(**row) for path, row in zip(places.values(), rows, strict=True)}


def remove_inspections(out: Path) -> None:
    """Remove the results of the calls for a catalog, if there are some."""
    with suppress(FileNotFoundError):
        remove_folder(_folder(out))


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.inspections")


class PartInspector:
    """What an actor does: open the files of a part, where that has not been done."""

    def __init__(self, work: PartedInspection) -> None:
        self._work = work
        self._images = pq.ParquetFile(work.images_file, pre_buffer=False)
        self._decoders = DecoderPool(work.workers)
        self._threads = ThreadPoolExecutor(work.workers)

    def __call__(self, number: int) -> Made:
        paths = self._images.read_row_group(number).column("path").to_pylist()
        stamps, part = stamps_of_files(paths), self._work.part(number)
        if stamps_of_part(part) == stamps:
            return Made(len(paths), kept=len(paths))
        found = list(self._threads.map(partial(inspect, self._decoders), [place_in(Path(), path) for path in paths]))
        table = pa.Table.from_pylist(list(map(asdict, found)), SCHEMA.with_metadata(facts_with(stamps, {})))
        with atomic_write(part, tidy=False) as temporary:
            pq.write_table(table, temporary)
        return Made(len(paths), bad=sum(bool(one.problem) for one in found))

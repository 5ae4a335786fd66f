"""Packed images, read as class-balanced batches draw them: Parquet by row groups against Lance's take.

    pip install pylance          # for this comparison only
    python -m benchmarks.packing
    python -m benchmarks.packing --images 20000 --bytes 40000

Both hold the same random bytes, the images of a class together. A batch draws some classes, and some images of each.
The table gives the processor time of a batch, what was read from files for it, and in how many reads. The files are in
the system's cache: a store of objects adds the time of its answers, one for each read.
"""

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from benchmarks.measure import console
from proxygml.data.images.packed import KEPT_BYTES, PackedPlace, read_packed
from proxygml.data.preparing.pack import SCHEMA

PER_CLASS, CLASSES, DRAWN = 40, 8, 4
"""Images of a class; classes of a batch; images of each that a batch draws."""

Rows = npt.NDArray[np.int64]
Read = Callable[[Rows], None]


def images(count: int, size: int) -> Iterator[pa.Table]:
    """Random images, one class a table."""
    draw = np.random.default_rng(0)
    for start in range(0, count, PER_CLASS):
        names = [f"{row}.jpg" for row in range(start, start + PER_CLASS)]
        yield pa.table([names, [draw.bytes(size) for _ in names]], SCHEMA)


def batches(count: int, number: int) -> list[Rows]:
    """The rows of each batch."""
    draw = np.random.default_rng(1)
    return [
        np.concatenate(
            [
                PER_CLASS * which + draw.choice(PER_CLASS, DRAWN, replace=False)
                for which in draw.choice(count // PER_CLASS, CLASSES, replace=False)
            ]
        )
        for _ in range(number)
    ]


def parquet(folder: Path, count: int, size: int, group: int) -> Read:
    """One shard whose row groups have so many bytes."""
    shard = folder / f"shard-{group:05d}.parquet"
    if not shard.exists():
        rows = max(1, group // size)
        whole = pa.concat_tables(images(count, size))
        options = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
        pq.write_table(whole, shard, row_group_size=rows, **options)

    def read(rows: Rows) -> None:
        for row in rows:
            read_packed(PackedPlace(str(shard), int(row)))

    return read


def lance(folder: Path, count: int, size: int) -> Read:
    """A Lance data set; `take` of the rows of a batch at once."""
    engine = importlib.import_module("lance")
    place = folder / "images.lance"
    if not place.exists():
        engine.write_dataset(pa.concat_tables(images(count, size)), place)
    data = engine.dataset(place)

    def read(rows: Rows) -> None:
        data.take(rows.tolist(), columns=["image"])

    return read


def counters() -> tuple[int, int]:
    """Bytes that this process has read so far, and by how many calls (Linux)."""
    text = Path("/proc/self/io").read_text()
    return tuple(int(re.search(rf"{name}: (\d+)", text)[1]) for name in ("rchar", "syscr"))  # type: ignore[index, return-value]


def measured(engine: str, options: argparse.Namespace, folder: Path) -> None:
    """Print the figures of one engine, in a process of its own."""
    kind, _, group = engine.partition(":")
    read = (
        lance(folder, options.images, options.bytes)
        if kind == "lance"
        else parquet(folder, options.images, options.bytes, int(group))
    )
    drawn = batches(options.images, options.batches + 5)
    for rows in drawn[:5]:
        read(rows)
    before, times = counters(), []
    for rows in drawn[5:]:
        start = time.process_time()
        read(rows)
        times.append(time.process_time() - start)
    after = counters()
    each = [(late - early) / options.batches for early, late in zip(before, after, strict=True)]
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]
    print(f"{1000 * float(np.median(times)):.2f} {each[0] / 1e6:.2f} {each[1]:.0f} {peak:.0f}")


def main() -> None:
    """Measure each engine in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--bytes", type=int, default=50_000, help="of an image")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measured(options.engine, options, options.folder)
        return
    table = Table("engine", "processor ms a batch", "MB read", "reads", "peak memory, MiB")
    engines = [f"parquet:{size}" for size in (2**16, 2**18, 2**20, 2**22)]
    if importlib.util.find_spec("lance"):
        engines.append("lance")
    with tempfile.TemporaryDirectory() as place:
        for engine in engines:
            words = [sys.executable, "-m", "benchmarks.packing", "--engine", engine, "--folder", place]
            words += [f"--{name}={getattr(options, name)}" for name in ("images", "bytes", "batches")]
            for _ in range(2):  # the first call writes the images
                done = subprocess.run(words, capture_output=True, text=True, check=True)
            table.add_row(engine, *done.stdout.split())
    console.print(table)
    console.print(f"{CLASSES} classes x {DRAWN} images a batch; row groups that are kept: {KEPT_BYTES / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()

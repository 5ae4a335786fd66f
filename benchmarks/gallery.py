"""Searching a gallery: exact beside one pass over its vectors, HNSW and IVF-PQ beside exact.

`python -m benchmarks.gallery` prints the tables; with `--build` that of building galleries by the command: its memory,
and whether one that was killed goes on to the same answers.

Uniform noise has no near neighbours worth finding, so the vectors are made like embeddings of many small classes:
classes of ten items gather around coarser groups. The cosine between two items is about 0.75 in a class, 0.5 in a group
and 0 elsewhere; the queries are further items of the same classes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import MIB, console, default_device, machine, mebibytes, milliseconds, side_by_side, table
from proxygml.arrays import Vectors
from proxygml.data.images.settings import ImageSettings
from proxygml.data.vectors.file import write_vectors
from proxygml.gallery.base import Gallery
from proxygml.gallery.kinds import Kind
from proxygml.gallery.neighbors import recall_against_exact
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder

PER_CLASS, CLASSES_PER_GROUP, SPREAD, QUERIES, K = 10, 30, 0.7, 200, 10
KINDS: tuple[Kind, ...] = ("hnsw", "ivfpq", "int8", "binary", "ivfbinary")


def clustered(count: int, size: int, seed: int) -> tuple[Vectors, Vectors]:
    """(count, size) items and (QUERIES, size) queries of length 1, of the same classes."""
    random = np.random.default_rng(seed)

    def normal(number: int) -> Vectors:
        return random.standard_normal((number, size), np.float32) / np.float32(size**0.5)

    num_classes = max(1, count // PER_CLASS)
    groups = normal(max(1, num_classes // CLASSES_PER_GROUP))
    classes = groups[random.integers(len(groups), size=num_classes)] + SPREAD * normal(num_classes)

    def draw(number: int) -> Vectors:
        vectors = classes[random.integers(num_classes, size=number)] + SPREAD * normal(number)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    return draw(count), draw(QUERIES)


SEARCH = """
import sys, numpy as np
from proxygml import Gallery
gallery = Gallery.load(sys.argv[1])
queries = gallery.vectors(np.arange(0, 200))
where = {"label": [str(label) for label in range(len(gallery) // 50)]} if "--where" in sys.argv else None
found = gallery.search(queries, 10, where)
if "--add" in sys.argv:
    gallery.add(queries[:1], gallery.items[:1])
    gallery.remove(np.arange(100))
    gallery.save()
if len(sys.argv) > 2 and sys.argv[2].endswith(".npy"):
    np.save(sys.argv[2], found.ids)
"""


def blocks(count: int, size: int) -> Iterator[tuple[Vectors, pd.DataFrame]]:
    """Vectors and items, 10,000 at a time."""
    for start in range(0, count, 10_000):
        rows = np.arange(start, min(start + 10_000, count))
        items = pd.DataFrame(
            {"path": [f"/images/{row:08}.jpg" for row in rows], "label": (rows // PER_CLASS).astype(str)}
        )
        yield clustered(len(rows), size, start)[0], items


def watched(command: list[str], kill_after: float | None = None) -> tuple[float, int]:
    """Seconds that a command took, and the peak of its anonymous memory in bytes: what the kernel cannot drop again.

    Mapped files are not in it: their pages go when others need the room.

    Args:
        command: arguments of Python.
        kill_after: seconds after which it is killed.
    """
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max(peak, *(int(line.split()[1]) * 1024 for line in lines), 0)
            if kill_after is not None and time.perf_counter() - start > kill_after:
                process.kill()
            time.sleep(0.02)
    if kill_after is None and process.returncode:
        raise RuntimeError(f"{command} failed with {process.returncode}")
    return time.perf_counter() - start, peak


def build(count: int, size: int, kinds: list[Kind], place: Path | None) -> None:
    """Print the table of building: time, memory beyond a small gallery's, and the same after a kill."""
    console.print(machine(default_device()))
    result = table(
        f"proxygml index --vectors, {count:,} x {size} ({mebibytes(4 * count * size)})",
        ["", "time", "memory", "index", "search", "filter", "add, remove", "killed at, then", "same answers"],
    )
    with TemporaryDirectory(dir=place) as folder:
        root = Path(folder)
        settings = EmbedderSettings("conv4", "none", "avg", size)
        ImageEmbedder(settings, ImageSettings(size=32, resize=32)).save(root / "run")
        for name, number in (("small", 2000), ("large", count)):
            write_vectors(root / f"{name}.parquet", blocks(number, size), model="", run="")

        def command(name: str, kind: Kind, out: str) -> list[str]:
            index = ["-m", "proxygml", "index", str(root / "run"), "--vectors", str(root / f"{name}.parquet")]
            return [*index, "--kind", kind, "--out", str(root / out), "--force"]

        def search(out: str, *more: str) -> int:
            return watched(["-c", SEARCH, str(root / out), *more])[1]

        for kind in kinds:
            small = watched(command("small", kind, "small"))[1], search("small")
            seconds, peak = watched(command("large", kind, "whole"))
            index = sum(file.stat().st_size for file in (root / "whole").glob("index-*"))
            killed = watched(command("large", kind, "stopped"), kill_after=0.6 * seconds)[0]
            rest = watched(command("large", kind, "stopped"))[0]
            memory = [search("whole", str(root / "whole.npy")), search("whole", "--where")]
            search("stopped", str(root / "stopped.npy"))
            memory.append(search("whole", "--add"))
            found, again = (np.load(root / f"{name}.npy") for name in ("whole", "stopped"))
            result.add_row(
                kind,
                f"{seconds:,.0f} s",
                mebibytes(peak - small[0]),
                f"{index / MIB:,.0f} MiB",
                *(mebibytes(max(0, used - small[1])) for used in memory),
                f"{killed:,.0f} s, {rest:,.0f} s",
                "yes" if np.array_equal(found, again) else f"{np.mean(found == again):.1%}",
            )
    console.print(result)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each table")
    parser.add_argument("--build", action="store_true", help="build galleries by the command, and watch its memory")
    parser.add_argument("--folder", type=Path, default=None, help="with --build: a place with room for the files")
    options = parser.parse_args()
    if options.build:
        build(options.items, options.size, ["exact", *options.kinds], options.folder)
    else:
        answer(options)


def answer(options: argparse.Namespace) -> None:
    """Print the tables of searching."""
    vectors, queries = clustered(options.items, options.size, 0)
    items = pd.DataFrame({"label": np.arange(options.items) // PER_CLASS})
    exact = Gallery.create(vectors, items)
    console.print(machine(default_device()))
    turn = iter(range(10**9))

    def query() -> Vectors:
        place = next(turn) % QUERIES
        return queries[place : place + 1]

    times = side_by_side(
        {
            "pass": lambda: vectors @ query()[0],
            "pass, torch": lambda: torch.mv(torch.from_numpy(vectors), torch.from_numpy(query()[0])),
            "exact": lambda: exact.search(query(), K),
        },
        options.seconds,
    )
    floor = min(times["pass"], times["pass, torch"])
    result = table(
        f"One query, {options.items:,} items of {options.size}, k {K}", ["", "time", "to one pass", "recall"]
    )
    result.add_row("one pass over the vectors (product alone)", milliseconds(floor), "1.00", "")
    result.add_row("exact", milliseconds(times["exact"]), f"{times['exact'] / floor:.2f}", "1.000")
    console.print(result)
    truth = exact.search(queries, K).ids
    result = table("Approximate indexes", ["", "build", "one query", "faster than exact", f"recall@{K}", "stated"])
    for kind in options.kinds:
        start = time.perf_counter()
        gallery = Gallery.create(vectors, items, kind)
        built = time.perf_counter() - start
        times = side_by_side(
            {
                "exact": lambda: exact.search(query(), K),
                kind: lambda gallery=gallery: gallery.search(query(), K),  # type: ignore[misc]
            },
            options.seconds,
        )
        recall = recall_against_exact(gallery.search(queries, K).ids, truth)
        faster = f"{times['exact'] / times[kind]:.1f}"
        stated = f"{gallery.manifest.recall:.3f}"
        result.add_row(kind, f"{built:,.0f} s", milliseconds(times[kind]), faster, f"{recall:.3f}", stated)
    console.print(result)


if __name__ == "__main__":
    main()

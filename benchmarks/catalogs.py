"""`python -m benchmarks.catalogs`: what a row of a catalog of images costs in memory, for each step.

The images are never opened, so that a catalog may have millions of rows on any machine:

- `list`, `files`: what `--images` finds in a store, of a made-up listing, and in folders of empty files (`files` is
  only run where `--steps` names it);
- `prepare`: `prepare folder` of a store's listing, with made-up digests and sizes in place of opened images;
- `embed`, `index`: the commands, continued at the moment when all vectors are there;
- `train`: a run up to its first step: the catalog, labels, batches and the loader's list of images.

Each step runs in a process of its own. Printed is the peak of its anonymous memory (mapped files are not counted,
because the system can drop them), and how much a row adds between the smallest and the largest number of rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import proxygml.data.preparing.prepare as preparing
from benchmarks.measure import console, machine, mebibytes, table
from benchmarks.vectors import run_measured
from proxygml.data.images.image_list import ImageList, file_stamps
from proxygml.data.images.inspection import Inspection
from proxygml.data.images.settings import ImageSettings
from proxygml.gallery.backends import work_place
from proxygml.gallery.embed import work_folder
from proxygml.gallery.source import Model, Source
from proxygml.models.embed_images import images_key
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.loss_settings import LossSettings
from proxygml.training.processes import make_accelerator
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.trainer import Training
from proxygml.urls import as_place

DIMENSION = 32
IMAGES_PER_CLASS = 20
ROWS_AT_A_TIME = 2**16
STEPS = ("list", "prepare", "embed", "index", "train")
STORE = "memory://photos"


def names(rows: int) -> Iterator[str]:
    """The names of images: 32 characters each."""
    for row in range(rows):
        number = row // IMAGES_PER_CLASS
        yield f"{'train' if number % 2 else 'test'}/class {number:07d}/{row:09d}.jpg"


def write_catalog(folder: Path, rows: int) -> Path:
    """A catalog of images that all lie in one packed shard, so that each of their files exists."""
    (folder / "shard-00000.parquet").touch()
    path, writer = folder / "catalog.parquet", None
    for start in range(0, rows, ROWS_AT_A_TIME):
        numbers = np.arange(start, min(rows, start + ROWS_AT_A_TIME))
        classes = numbers // IMAGES_PER_CLASS
        part = pa.table(
            {
                "path": [f"shard-00000.parquet/{number}/{number:09d}.jpg" for number in numbers],
                "label": [f"class {number:07d}" for number in classes],
                "split": np.where(classes % 2, "train", "test"),
                "note": [f"what the user knows of image {number}" for number in numbers],
            }
        )
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()
    return path


def write_run(folder: Path) -> Path:
    """The run folder of a small network that was not trained."""
    run = folder / "run"
    run.mkdir()
    settings = EmbedderSettings(backbone="conv4_small", weights="none", embedding_size=DIMENSION)
    ImageEmbedder(settings, ImageSettings(size=16, resize=16)).save(run)
    return run


def embedded_before(run: Path, catalog: Path, work: Path) -> None:
    """Leave in a work folder what `embed` leaves that was stopped after the last image."""
    images = Source.of(catalog).image_list()
    work.mkdir(parents=True)
    (work / "key").write_text(images_key(Model.of(run).fingerprint, images))
    vectors = np.lib.format.open_memmap(work / "vectors.npy", "w+", np.float32, (len(images), DIMENSION))
    draw = np.random.default_rng(0)
    for start in range(0, len(images), ROWS_AT_A_TIME):
        vectors[start : start + ROWS_AT_A_TIME] = draw.standard_normal(vectors[start : start + ROWS_AT_A_TIME].shape)
    np.save(work / "stamps.npy", np.full(len(images), file_stamps(images.paths[:1])[0]))


@contextmanager
def listed(rows: int) -> Iterator[None]:
    """Let a folder of a store have so many images."""
    fsspec.filesystem("memory").pipe_file("/photos/any.jpg", b"")  # so that there is such a folder
    with patch("proxygml.remote.files_below", lambda *_: names(rows)):
        yield


def list_store(folder: Path, rows: int) -> None:
    """`--images` of a store."""
    del folder
    with listed(rows):
        ImageList.from_files([as_place(STORE, "the store")])


def list_files(folder: Path, rows: int) -> None:
    """`--images` of a folder, 1,000 files in each of the folders inside."""
    del rows
    ImageList.from_files([folder / "photos"])


def make_files(folder: Path, rows: int) -> None:
    """Empty files that are called like images."""
    for number in range(rows):
        inside = folder / f"class {number // 1000:07d}"
        if number % 1000 == 0:
            inside.mkdir(parents=True)
        (inside / f"{number:09d}.jpg").touch()


def prepare(folder: Path, rows: int) -> None:
    """`prepare folder`, of a listing and of images that are made up."""

    def inspected(paths: Any, *_: Any) -> dict[Any, Inspection]:
        return {path: Inspection(row.to_bytes(16, "big"), 400, 300) for row, path in enumerate(paths)}

    with listed(rows), patch("proxygml.data.preparing.prepare.inspect_all", inspected):
        preparing.prepare("folder", STORE, folder / "prepared.parquet", workers=1)


def train(folder: Path, rows: int) -> None:
    """A run up to its first step."""
    del rows
    recipe = Recipe(
        catalog=str(folder / "catalog.parquet"),
        embedder=EmbedderSettings(backbone="conv4_small", weights="none", embedding_size=DIMENSION),
        images=ImageSettings(size=16, resize=16),
        loss=LossSettings(proxies_per_class=1),
        workers=0,
    )
    training = Training(recipe, RunFolder(folder / "trained"), make_accelerator(recipe))
    training.batches.set_epoch(1)
    len(training.open_data()[1])


def commands(folder: Path, rows: int) -> dict[str, list[str]]:
    """The words after `python -m` of each step."""
    run, catalog, rows_text = str(folder / "run"), str(folder / "catalog.parquet"), str(rows)
    source = [run, "--catalog", catalog, "--workers", "0", "--out"]
    own = {name: ["benchmarks.catalogs", "--step", name, str(folder), rows_text] for name in OWN}
    return own | {
        "embed": ["proxygml", "embed", *source, str(folder / "vectors.parquet")],
        "index": ["proxygml", "index", *source, str(folder / "gallery")],
    }


OWN: dict[str, Callable[[Path, int], None]] = {
    "list": list_store,
    "files": list_files,
    "prepare": prepare,
    "train": train,
}
"""The steps that are no command."""


def measure(rows: int, steps: list[str]) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of each step with so many rows."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        if "files" in steps:
            make_files(folder / "photos", rows)
        if {"embed", "index", "train"} & set(steps):
            run, catalog = write_run(folder), write_catalog(folder, rows)
        for step, work in (
            ("embed", work_folder(folder / "vectors.parquet")),
            ("index", work_place(folder / "gallery", "partial")),
        ):
            if step in steps:
                embedded_before(run, catalog, work)
        return {name: run_measured(words) for name, words in commands(folder, rows).items() if name in steps}


def main() -> None:
    """Measure each step with each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000, 4_000_000])
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=(*STEPS, "files"))
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        OWN[options.step[0]](Path(options.step[1]), int(options.step[2]))
        return
    found = {rows: measure(rows, options.steps) for rows in options.rows}
    least, most = min(found), max(found)
    shown = table(
        machine(torch.device("cpu")), ["", *(f"{rows:,} rows" for rows in found), "a row more", f"time of {most:,}"]
    )
    for name in options.steps:
        peaks = {rows: of_rows[name][1] for rows, of_rows in found.items()}
        grown = (peaks[most] - peaks[least]) / max(1, most - least)
        seconds = f"{found[most][name][0]:,.0f} s"
        shown.add_row(name, *(mebibytes(peak) for peak in peaks.values()), f"{grown:,.0f} bytes", seconds)
    console.print(shown)


if __name__ == "__main__":
    main()

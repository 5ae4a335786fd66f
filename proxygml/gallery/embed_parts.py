"""Embedding images on many machines: in parts, each a Parquet file that one actor of Ray writes.

OUT is a folder that all machines see, or a URL:

OUT/part-00000-KEY.parquet, ...         the vectors of images that could be read, with their columns
OUT/unreadable.parquet                  the others, and what is wrong with each; not there where there are none
OUT/parts.json                          written last: which files belong to the table
OUT/.images-KEY.parquet                 while it is made: the list of images, a row group for each part
OUT/.unreadable-00000-KEY.parquet, ...  while it is made: the bad images of a part
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from proxygml.arrays import Vectors
from proxygml.console import note
from proxygml.data.arrow import to_pandas
from proxygml.data.catalog.catalog import boxes_of
from proxygml.data.images.image_list import ImageList
from proxygml.data.images.parts import facts_with, stamps_of_files, stamps_of_part, write_list
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.data.parquet import open_parquet
from proxygml.data.vectors.codes import Dtype, encoded
from proxygml.data.vectors.file import vector_facts, write_parts
from proxygml.data.vectors.parts import INDEX, UNREADABLE, PartsIndex, part_file
from proxygml.errors import LARGEST_BATCH, MOST_WORKERS, ImageError, OverwriteError, check_whole, counted
from proxygml.files import remove_leftovers
from proxygml.gallery.source import Model
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.embed_images import (
    PROBLEMS_SHOWN,
    ForgivingDataset,
    OnBad,
    embed_squares,
    images_key,
    print_problems,
)
from proxygml.models.embedder import Embedder
from proxygml.models.prefix import vector_prefix
from proxygml.ray_parts import Made, PartTask, run_parts
from proxygml.ray_session import RUNNING_OR_LOCAL, ray_session
from proxygml.remote import check_free, exists, is_folder, names_in, remove_file, written
from proxygml.urls import Place, Url

PART_ROWS = 4096
"""Images of a part: what is done again where an actor is killed."""

BATCHES_AHEAD = 2
"""Batches that are decoded while one is embedded."""

ACTOR_BYTES = 2 * 2**30
"""What Ray sets aside for an actor: PyTorch, a network, its activations and the batches."""


@dataclass(frozen=True)
class PartedEmbedding:
    """The work: which images become which parts, and how.

    Attributes:
        out: the folder, or its URL.
        key: of the model and the images.
        part_rows: images of a part.
        dimensions: numbers of each vector that are kept; None for all.
        dtype: how they are written; see `embed`.
        workers: threads of each actor that decode; 0 decodes between the batches.
    """

    out: Place
    key: str
    model: Model
    batch_size: int
    workers: int
    dimensions: int | None
    dtype: Dtype = "float32"
    part_rows: int = PART_ROWS

    @property
    def images_file(self) -> Place:
        """The list of images."""
        return self.out / f".images-{self.key}.parquet"

    def part(self, number: int) -> Place:
        """Where the vectors of a part go."""
        return part_file(self.out, self.key, number)

    def unreadable(self, number: int) -> Place:
        """Where the images of a part go that cannot be read."""
        return self.out / f".unreadable-{number:05d}-{self.key}.parquet"


def embed_in_parts(
    work: PartedEmbedding, images: ImageList, *, address: str = RUNNING_OR_LOCAL, on_bad: OnBad, force: bool
) -> PartsIndex:
    """Embed images with Ray into a folder of parts; what a stopped call had done, the same call keeps.

    Args:
        work: how.
        images: the files; all machines of the cluster must be able to read them.
        address: see ray_session.
        on_bad: fail: raise where an image is unreadable, after all others are embedded; drop: leave it out.
        force: replace the vectors that are in the folder, in one step at the end.

    Raises:
        ImageError: images that are unreadable, and `fail`; or none is left.
        OverwriteError: the folder holds something else.
        UserError: Ray is not installed or not reached; or as embed_images.
    """
    check_whole("--batch_size", work.batch_size, 1, LARGEST_BATCH)
    check_whole("--workers", work.workers, 0, MOST_WORKERS)
    check_whole("--part_rows", work.part_rows, 1, 2**24)
    if len(images) == 0:
        raise ImageError("there are no images to embed")
    _check_folder(work, force)
    if isinstance(work.out, Path):
        work.out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(work.out)
    parts = write_list(images.table, work.images_file, work.part_rows)
    start, cpus = partial(PartEmbedder, work), max(1, work.workers)
    with ray_session(address) as ray:
        made = run_parts(ray, PartTask(parts, len(images), start, cpus, ACTOR_BYTES, "embedding", gpu=True))
    if made.kept:
        note(f"{made.kept:,} of {counted(made.items, 'image')} were embedded already")
    bad = _bad_pieces(work, parts) if made.bad else []
    problems = _report(bad, len(images), made.bad)
    if made.bad and (on_bad == "fail" or made.bad == len(images)):
        fix = "leave them out with --on_bad drop" if made.bad < len(images) else "check the paths"
        raise ImageError(
            f"{made.bad:,} of {counted(len(images), 'image')} cannot be embedded ({problems}): repair them, or {fix}"
        )
    return _publish(work, PartsIndex(work.key, parts, len(images) - made.bad, made.bad), bad)


def work_key(model: Model, images: ImageList, dimensions: int | None, dtype: Dtype, part_rows: int) -> str:
    """What the names of the files of a work have in common: 8 digits that follow from all that its parts depend on."""
    text = f"{images_key(model.fingerprint, images)} {model.engine} {dimensions} {dtype} {part_rows}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_folder(work: PartedEmbedding, force: bool) -> None:
    """Raise OverwriteError where the folder holds anything but what this work has left, and `force` was not given."""
    out = work.out
    if out.is_file() if isinstance(out, Path) else exists(out) and not is_folder(out):
        raise OverwriteError(f"{out} is a file, but --ray writes a folder of parts: choose another --out")
    if isinstance(out, Url):
        check_free(out / work.images_file.name, force=True)  # that one may write there
    names = [] if force else names_in(out)
    if INDEX in names:
        raise OverwriteError(f"{work.out} is already there: choose another name, or give --force to replace it")
    if names and work.images_file.name not in names:
        raise OverwriteError(
            f"{work.out} holds something else, such as {names[0]}: choose another --out, or give --force to write into "
            "it all the same (a stopped run continues with the same model, images and --part_rows)"
        )


def _bad_pieces(work: PartedEmbedding, parts: int) -> list[Place]:
    """The tables of the parts with images that cannot be read, in order."""
    there = set(names_in(work.out))
    return [piece for piece in map(work.unreadable, range(parts)) if piece.name in there]


def _publish(work: PartedEmbedding, index: PartsIndex, pieces: Sequence[Place]) -> PartsIndex:
    """Write the table of unreadable images and the index, then remove what is no longer needed."""
    old = PartsIndex.read(work.out) if exists(work.out / INDEX) else None
    if pieces:
        with (
            written(work.out / UNREADABLE) as temporary,
            pq.ParquetWriter(temporary, open_parquet(pieces[0]).schema_arrow) as writer,
        ):
            for piece in pieces:
                writer.write_table(open_parquet(piece).read())
    else:
        remove_file(work.out / UNREADABLE)
    index.write(work.out)
    replaced = [] if old is None or old.key == work.key else [part_file(work.out, old.key, n) for n in range(old.parts)]
    for place in (*pieces, *replaced, work.images_file):
        remove_file(place)
    if isinstance(work.out, Path):
        remove_leftovers(work.out, fresh=True)  # of actors that were killed a moment ago
    return index


def _report(pieces: Sequence[Place], images: int, bad: int) -> str:
    """Print the first problems; the names of the first three images that have one."""
    shown: list[tuple[str, str]] = []
    for piece in pieces:
        if len(shown) < PROBLEMS_SHOWN:
            table = open_parquet(piece).read(["path", "problem"])
            shown += zip(*(table.column(name).to_pylist() for name in ("path", "problem")), strict=True)
    print_problems([problem for _, problem in shown[:PROBLEMS_SHOWN]], bad, images)
    return ", ".join(path for path, _ in shown[:3]) + (", ..." if bad > 3 else "")


class PartEmbedder:
    """What an actor does: embed the images of a part and write its files, where they are not there yet."""

    def __init__(self, work: PartedEmbedding) -> None:
        self._work = work
        self._images = open_parquet(work.images_file)

    @cached_property
    def _embedder(self) -> Embedder:
        model = self._work.model
        return Model.of(model.run, model.engine).embedder()  # only once a part is not there

    def __call__(self, number: int) -> Made:
        work = self._work
        table = self._images.read_row_group(number)
        paths = table.column("path").to_pylist()
        stamps = stamps_of_files(paths)
        if stamps_of_part(work.part(number)) == stamps and not exists(work.unreadable(number)):
            return Made(len(table), kept=len(table))
        vectors, problems = self._embedded(table, paths)
        bad = sorted(problems)
        if bad:
            column = pa.array([problems[row] for row in bad], pa.string())
            with written(work.unreadable(number), tidy=False) as temporary:
                pq.write_table(table.take(bad).append_column("problem", column), temporary)
        good = table.take(np.setdiff1d(np.arange(len(table)), bad))
        facts = vector_facts(work.model.fingerprint, str(work.model.run), work.dtype, vectors.shape[1])
        with written(work.part(number), tidy=False) as temporary:
            write_parts(temporary, [(encoded(vectors, work.dtype), good)], facts_with(stamps, facts))
        if not bad:
            remove_file(work.unreadable(number))
        return Made(len(table), bad=len(bad))

    @freed_memory_kept()
    def _embedded(self, table: pa.Table, paths: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
        """The vectors (m, D) of the images that can be read, in their order, and what is wrong with the others."""
        images = ImageDataset(paths, boxes_of(to_pandas(table)), self._embedder.images, training=False)
        problems: dict[int, str] = {}
        size = self._work.dimensions or self._embedder.embedding_size
        found = [np.empty((0, size), np.float32)]
        for batch in self._decoded(ForgivingDataset(images, np.arange(len(paths)))):
            good = [(image, row) for row, image, _ in batch if image is not None]
            problems |= {row: problem for row, image, problem in batch if image is None}
            if good:
                found.append(vector_prefix(embed_squares(self._embedder, collate(good)[0]), self._work.dimensions))
        return np.concatenate(found), problems

    def _decoded(self, images: ForgivingDataset) -> Iterator[list[tuple[int, Tensor | None, str]]]:
        """Batches of images, in order, a few of them decoded ahead by threads: decoding frees Python's lock."""
        starts = range(0, len(images), self._work.batch_size)
        batches = [range(start, min(start + self._work.batch_size, len(images))) for start in starts]
        if self._work.workers == 0:
            yield from ([images[row] for row in rows] for rows in batches)
            return
        with ThreadPoolExecutor(self._work.workers) as pool:
            waiting: deque[list[Future[Any]]] = deque()
            for rows in batches:
                waiting.append([pool.submit(images.__getitem__, row) for row in rows])
                if len(waiting) > BATCHES_AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]

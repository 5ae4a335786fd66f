"""Embedding many image files: in blocks, with what is done kept on disk, and with bad images named.

What `embed`, `index` and `cluster` share. Vectors go to Parquet or on to a gallery from here.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxygml.console import console, progress_bar
from proxygml.data.catalog import Catalog, boxes_of
from proxygml.data.images import ImageDataset, collate
from proxygml.errors import GalleryError, ImageError
from proxygml.files import atomic_write, check_overwrite, exclusive_lock
from proxygml.models.embedder import Embedder

OnBad = Literal["fail", "drop"]
Vectors = npt.NDArray[np.float32]
Block = tuple[Vectors, pd.DataFrame]

BLOCK = 1024
"""Images between two times that the work is put on disk."""


@dataclass(frozen=True)
class ImageList:
    """Images to embed and what is known of each.

    Attributes:
        table: `path` (absolute), then any other columns; box columns as in a catalog.
    """

    table: pd.DataFrame

    @classmethod
    def from_catalog(cls, catalog: Catalog) -> "ImageList":
        """All rows of a catalog, with absolute paths."""
        return cls(catalog.table.assign(path=[str(path.resolve()) for path in catalog.paths]))

    @classmethod
    def from_files(cls, places: Sequence[Path]) -> "ImageList":
        """Image files, and those in folders, by the ending of their names; hidden ones are left out.

        Raises:
            ImageError: a place that is not there, or no image in any.
        """
        files: list[Path] = []
        for place in places:
            if not place.exists():
                raise ImageError(f"there is no {place}: give image files, or folders of them")
            files += sorted(_images_in(place)) if place.is_dir() else [place]
        if not files:
            raise ImageError(f"no image is in {', '.join(map(str, places))}: give image files, or folders of them")
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
    endings = Image.registered_extensions()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in endings and not hidden and path.is_file():
            yield path


class EmbeddedImages:
    """The vectors of a list of images, on disk, and which images could not be embedded.

    Args:
        images: all of them.
        vectors: (n, D), rows of bad images without meaning.
        problems: what is wrong with which row.
    """

    def __init__(self, images: ImageList, vectors: Vectors, problems: Mapping[int, str]) -> None:
        self.problems = problems
        self.dimension: int = vectors.shape[1]
        self._images = images
        self._vectors = vectors
        self._good = np.setdiff1d(np.arange(len(images)), np.array(list(problems), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._good)

    def blocks(self) -> Iterator[Block]:
        """The good images, up to 16,384 at a time: vectors (m, D) and m rows of the table."""
        for start in range(0, len(self._good), 16 * BLOCK):
            rows = self._good[start : start + 16 * BLOCK]
            yield np.array(self._vectors[rows]), self._images.table.iloc[rows].reset_index(drop=True)

    def whole(self) -> Block:
        """All at once."""
        return np.array(self._vectors[self._good]), self._images.table.iloc[self._good].reset_index(drop=True)


def embed_images(
    embedder: Embedder,
    model: str,
    images: ImageList,
    work: Path,
    *,
    on_bad: OnBad = "fail",
    workers: int = 2,
    batch_size: int = 64,
) -> EmbeddedImages:
    """Embed image files with a progress bar; what a stopped call had done, the next one with the same list keeps.

    All images are looked at before a bad one counts, and the work stays: after `fail`, the same call with `drop`, or
    after the file was mended, has only that to do. A file that has changed since is embedded again.

    Args:
        embedder: on the device of your choice.
        model: its fingerprint.
        images: the files.
        work: a folder of this call's own; the caller deletes it (`discard`) when it has taken the vectors over.
        on_bad: fail: raise where an image is unreadable; drop: leave it out. Both name them.
        workers: processes that decode.
        batch_size: images at a time.

    Raises:
        ImageError: images that are unreadable, and `fail`; or none is left.
        OverwriteError: another process is at work in that folder.
    """
    if len(images) == 0:
        raise ImageError("there are no images to embed")
    with exclusive_lock(work / ".lock"):
        vectors, stamps = _opened(work, _key(model, images), len(images), embedder.embedding_size)
        now = np.array([_stamp(path) for path in images.paths])
        todo = np.flatnonzero((stamps != now) | (now == 0))
        problems = _embed_rows(embedder, images, todo, now, vectors, stamps, workers, batch_size)
    _report(problems, images)
    if problems and (on_bad == "fail" or len(problems) == len(images)):
        first = ", ".join(images.paths[row] for row in list(problems)[:3]) + (", ..." if len(problems) > 3 else "")
        mend = "leave them out with --on-bad drop" if len(problems) < len(images) else "check the paths"
        raise ImageError(
            f"{len(problems):,} of {len(images):,} images cannot be embedded ({first}): mend them, or {mend}"
        )
    return EmbeddedImages(images, vectors, problems)


def discard(work: Path) -> None:
    """Delete the folder of a call of embed_images."""
    shutil.rmtree(work, ignore_errors=True)


def _key(model: str, images: ImageList) -> str:
    digest = hashlib.sha256(model.encode())
    for path in images.paths:
        digest.update(path.encode(errors="surrogateescape") + b"\0")
    if images.boxes is not None:
        digest.update(images.boxes.tobytes())
    return digest.hexdigest()


def _stamp(path: str) -> int:
    """Changes when the file does; 0 where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0
    return int.from_bytes(hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode()).digest()[:7], "big") + 1


def _opened(work: Path, key: str, count: int, size: int) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any]]:
    """Vectors (n, D) and, for each, the stamp of the file that it was made from, 0 for none: found there, or new."""
    files = work / "vectors.npy", work / "stamps.npy"
    if (work / "key").is_file() and (work / "key").read_text() == key:
        found = [np.lib.format.open_memmap(file, "r+") for file in files]
        console.print(f"going on with {np.count_nonzero(found[1]):,} of {count:,} images that are embedded already")
        return found[0], found[1]
    (work / "key").unlink(missing_ok=True)
    vectors = np.lib.format.open_memmap(files[0], "w+", np.float32, (count, size))
    stamps = np.lib.format.open_memmap(files[1], "w+", np.int64, (count,))
    with atomic_write(work / "key") as path:
        path.write_text(key)
    return vectors, stamps


class _Forgiving(Dataset[tuple[int, Tensor | None, str]]):
    """Rows of an ImageDataset: the row, its image or None, and what is wrong."""

    def __init__(self, images: ImageDataset, rows: npt.NDArray[np.int64]) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        row = int(self._rows[index])
        try:
            return row, self._images[row][0], ""
        except ImageError as error:
            return row, None, str(error)


def _embed_rows(
    embedder: Embedder,
    images: ImageList,
    todo: npt.NDArray[np.int64],
    now: npt.NDArray[np.int64],
    vectors: np.memmap[Any, Any],
    stamps: np.memmap[Any, Any],
    workers: int,
    batch_size: int,
) -> dict[int, str]:
    """Put the vectors and stamps of these rows on disk; what is wrong with the others of them."""
    dataset = _Forgiving(ImageDataset(images.paths, images.boxes, embedder.images, training=False), todo)
    loader = DataLoader(dataset, batch_size, num_workers=workers if len(todo) > batch_size else 0, collate_fn=list)
    problems: dict[int, str] = {}
    waiting: list[int] = []
    with progress_bar(disable=len(todo) <= batch_size) as bar:
        task = bar.add_task("embedding", total=len(todo), note="")
        for batch in loader:
            good = [(image, row) for row, image, _ in batch if image is not None]
            problems |= {row: problem for row, image, problem in batch if image is None}
            if good:
                squares, rows = collate(good)
                vectors[rows.numpy()] = _embed(embedder, squares)
                waiting += rows.tolist()
            if len(waiting) >= BLOCK:
                _keep(waiting, now, vectors, stamps)
            bar.update(task, advance=len(batch), note=f"{len(problems):,} unreadable" if problems else "")
    _keep(waiting, now, vectors, stamps)
    return problems


@torch.inference_mode()
def _embed(embedder: Embedder, squares: Tensor) -> Vectors:
    embeddings: Vectors = embedder(squares.to(embedder.device)).float().cpu().numpy()
    return embeddings


def _keep(
    rows: list[int], now: npt.NDArray[np.int64], vectors: np.memmap[Any, Any], stamps: np.memmap[Any, Any]
) -> None:
    """The vectors first: a stamp says that its vector is there."""
    vectors.flush()
    stamps[rows] = now[rows]
    stamps.flush()
    rows.clear()


def _report(problems: Mapping[int, str], images: ImageList, most: int = 10) -> None:
    for row in list(problems)[:most]:
        console.print(problems[row], style="yellow", markup=False, soft_wrap=True)
    if len(problems) > most:
        console.print(f"and {len(problems) - most:,} more of {len(images):,} images", style="yellow")


def write_vectors(path: Path, blocks: Iterable[Block], *, model: str, run: str, force: bool = False) -> None:
    """Write items and vectors as Parquet: the columns of the table, and `embedding`, a list of D floats.

    The model's fingerprint and its run folder are in the file's metadata, under `proxygml`.

    Raises:
        OverwriteError: something is there, and `force` is False.
    """
    check_overwrite(path, force)
    with atomic_write(path) as temporary:
        writer = None
        for vectors, table in blocks:
            part = pa.Table.from_pandas(table, preserve_index=False)
            flat = pa.array(vectors.reshape(-1), pa.float32())
            part = part.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
            if writer is None:
                facts = {b"proxygml": json.dumps({"model": model, "run": run}).encode()}
                writer = pq.ParquetWriter(temporary, part.schema.with_metadata((part.schema.metadata or {}) | facts))
            writer.write_table(part.cast(writer.schema))
        if writer is not None:
            writer.close()


@dataclass(frozen=True)
class VectorFile:
    """A file that `write_vectors` wrote.

    Raises:
        GalleryError: it is no such file.
    """

    path: Path

    def __post_init__(self) -> None:
        try:
            schema = pq.read_schema(self.path)
        except FileNotFoundError:
            raise GalleryError(f"there is no {self.path}; `proxygml embed` makes such files") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise GalleryError(f"{self.path} cannot be read as Parquet: {error}") from error
        if "embedding" not in schema.names or not pa.types.is_fixed_size_list(schema.field("embedding").type):
            raise GalleryError(f"{self.path} has no column of vectors, `embedding`; `proxygml embed` makes such files")

    @property
    def dimension(self) -> int:
        """Size of the vectors."""
        return int(pq.read_schema(self.path).field("embedding").type.list_size)

    @property
    def rows(self) -> int:
        """How many vectors."""
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def model(self) -> str:
        """Fingerprint of the model; empty where the file does not say."""
        return str(self._facts().get("model", ""))

    @property
    def run(self) -> str:
        """The run folder of the model; empty where the file does not say."""
        return str(self._facts().get("run", ""))

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((pq.read_schema(self.path).metadata or {}).get(b"proxygml", b"{}"))
        return facts

    def blocks(self) -> Iterator[Block]:
        """Vectors (m, D) and their m items, a part of the file at a time."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(16 * BLOCK):
                flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                table = batch.drop_columns(["embedding"]).to_pandas()
                yield flat.astype(np.float32).reshape(len(table), -1), table

"""Embedding many image files: in blocks, with what is done kept on disk, and with bad images named.

What `embed`, `index` and `cluster` share. Vectors go to Parquet or on to a gallery from here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxygml.arrays import Block, Vectors
from proxygml.console import note, progress_bar
from proxygml.data.images.image_list import FILE_STAMP, ImageList, file_stamps
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.data.vectors.checks import ROWS_AT_A_TIME
from proxygml.errors import LARGEST_BATCH, MOST_WORKERS, ImageError, check_whole, counted
from proxygml.files import atomic_write, exclusive_lock, naming, remove_folder, reserve_space
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.embedder import Embedder, checked_embeddings

OnBad = Literal["fail", "drop"]

PROBLEMS_SHOWN = 10
"""Of the images that cannot be read; of the others, how many there are."""

_TABLE = "a table, which --catalog or --vectors"
_OTHER_FILES = {".csv": _TABLE, ".tsv": _TABLE, ".parquet": _TABLE, ".npy": "a file of vectors, which --vectors"}
"""What is sometimes given as an image, and the option that may take it."""

SAVED_AT_A_TIME = 1024
"""So many images are embedded before their vectors are put on disk."""


class EmbeddedImages:
    """The vectors of a list of images, on disk, and which images could not be embedded.

    Args:
        images: all of them.
        vectors: (n, D), rows of bad images without meaning.
        stamps: (n,), of the files that they were made from; see file_stamps.
        problems: what is wrong with which row.
    """

    def __init__(
        self, images: ImageList, vectors: Vectors, stamps: npt.NDArray[np.int64], problems: Mapping[int, str]
    ) -> None:
        self.problems = problems
        self.dimension: int = vectors.shape[1]
        self._images = images
        self._vectors = vectors
        self._stamps = stamps
        self._good = np.setdiff1d(np.arange(len(images)), np.array(list(problems), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._good)

    def blocks(self, stamped: bool = False) -> Iterator[Block]:
        """The good images, up to 16,384 at a time: vectors (m, D) and m rows of the table.

        Args:
            stamped: add a column FILE_STAMP, which says which state of its file a vector was made from.
        """
        for start in range(0, len(self._good), ROWS_AT_A_TIME):
            rows = self._good[start : start + ROWS_AT_A_TIME]
            table = self._images.table.iloc[rows].reset_index(drop=True)
            yield np.array(self._vectors[rows]), table.assign(**{FILE_STAMP: self._stamps[rows]}) if stamped else table

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

    Images that cannot be read are listed at the end; all others are embedded first, and their vectors are kept. After
    `fail`, the same call with `drop`, or with repaired files, does only the rest. A changed file is embedded again.

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
        WeightsError: the model gives NaN.
        UserError: a number of workers or a batch that no machine can have.
    """
    for option, value, least, most in (
        ("batch_size", batch_size, 1, LARGEST_BATCH),
        ("workers", workers, 0, MOST_WORKERS),
    ):
        check_whole(f"--{option}", value, least, most)
    if len(images) == 0:
        raise ImageError("there are no images to embed")
    with exclusive_lock(work / ".lock"):
        vectors, stamps = _opened(work, images_key(model, images), len(images), embedder.embedding_size)
        now = file_stamps(images.paths)
        todo = np.flatnonzero((stamps != now) | (now == 0))
        problems = _embed_rows(embedder, images, todo, now, vectors, stamps, workers, batch_size)
    print_problems(list(problems.values())[:PROBLEMS_SHOWN], len(problems), len(images))
    if problems and (on_bad == "fail" or len(problems) == len(images)):
        first = ", ".join(images.paths[row] for row in list(problems)[:3]) + (", ..." if len(problems) > 3 else "")
        fix = "leave them out with --on_bad drop" if len(problems) < len(images) else "check the paths"
        other = _OTHER_FILES.get(Path(images.paths[0]).suffix.lower()) if len(images) == 1 else None
        fix = f"repair them, or {fix}" if other is None else f"this is no image, but {other} may take"
        raise ImageError(f"{len(problems):,} of {counted(len(images), 'image')} cannot be embedded ({first}): {fix}")
    return EmbeddedImages(images, vectors, now, problems)


def discard(work: Path) -> None:
    """Delete the folder of a call of embed_images, if it is there."""
    with suppress(FileNotFoundError):
        remove_folder(work)


def images_key(model: str, images: ImageList) -> str:
    """A digest of a model's fingerprint and of a list of images: what vectors are of."""
    digest = hashlib.sha256(model.encode())
    for path in images.paths:
        digest.update(path.encode(errors="surrogateescape") + b"\0")
    if images.boxes is not None:
        digest.update(images.boxes.tobytes())
    return digest.hexdigest()


def _opened(work: Path, key: str, count: int, size: int) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any]]:
    """Vectors (n, D) and, for each, the stamp of the file that it was made from, 0 for none: found there, or new."""
    files = work / "vectors.npy", work / "stamps.npy"
    if (work / "key").is_file() and (work / "key").read_text() == key:
        found = [np.lib.format.open_memmap(file, "r+") for file in files]
        note(f"going on with {np.count_nonzero(found[1]):,} of {counted(count, 'image')} embedded already")
        return found[0], found[1]
    (work / "key").unlink(missing_ok=True)
    with naming(work):
        vectors = np.lib.format.open_memmap(files[0], "w+", np.float32, (count, size))
        stamps = np.lib.format.open_memmap(files[1], "w+", np.int64, (count,))
        for file in files:
            reserve_space(file)
    with atomic_write(work / "key") as path:
        path.write_text(key)
    return vectors, stamps


class ForgivingDataset(Dataset[tuple[int, Tensor | None, str]]):
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


@freed_memory_kept()
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
    dataset = ForgivingDataset(ImageDataset(images.paths, images.boxes, embedder.images, training=False), todo)
    loader = DataLoader(dataset, batch_size, num_workers=workers if len(todo) > batch_size else 0, collate_fn=list)
    problems: dict[int, str] = {}
    waiting: list[int] = []
    with progress_bar(disable=len(todo) <= batch_size) as bar:
        task = bar.add_task("Embedding", total=len(todo), note="")
        for batch in loader:
            good = [(image, row) for row, image, _ in batch if image is not None]
            problems |= {row: problem for row, image, problem in batch if image is None}
            if good:
                squares, rows = collate(good)
                vectors[rows.numpy()] = embed_squares(embedder, squares)
                waiting += rows.tolist()
            if len(waiting) >= SAVED_AT_A_TIME:
                _keep(waiting, now, vectors, stamps)
            bar.update(task, advance=len(batch), note=f"{len(problems):,} unreadable" if problems else "")
    _keep(waiting, now, vectors, stamps)
    return problems


@torch.inference_mode()
def embed_squares(embedder: Embedder, squares: Tensor) -> Vectors:
    """The vectors, float32 (M, D), of images that are cut and scaled for the network, uint8 (M, 3, size, size)."""
    embeddings: Vectors = checked_embeddings(embedder(squares.to(embedder.device)).float().cpu()).numpy()
    return embeddings


def _keep(
    rows: list[int], now: npt.NDArray[np.int64], vectors: np.memmap[Any, Any], stamps: np.memmap[Any, Any]
) -> None:
    """The vectors first: a stamp says that its vector is there."""
    vectors.flush()
    stamps[rows] = now[rows]
    stamps.flush()
    rows.clear()


def print_problems(first: Sequence[str], problems: int, images: int) -> None:
    """Print the first problems of so many, and how many more there are."""
    for problem in first:
        note(problem, "yellow")
    if problems > len(first):
        note(f"and {problems - len(first):,} more of {counted(images, 'image')}", "yellow")

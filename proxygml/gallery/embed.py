"""Embedding the images of a catalog or of folders by a run's model, into a file of vectors."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack, get_args

from proxygml.arguments import check_arguments
from proxygml.arrays import Block
from proxygml.data.vectors.codes import Coded, Dtype
from proxygml.data.vectors.file import VectorFile, write_vectors
from proxygml.errors import UserError
from proxygml.files import PathLike, cache_folder, check_ending
from proxygml.gallery.atlas import check_column_names, with_map_columns
from proxygml.gallery.embed_parts import PART_ROWS, PartedEmbedding, embed_in_parts, work_key
from proxygml.gallery.source import Model, Source
from proxygml.gallery.vector_input import ITEM_ID
from proxygml.models.embed_images import EmbeddedImages, OnBad, discard, embed_images
from proxygml.models.engines import Engine
from proxygml.models.prefix import check_dimensions, vector_prefix
from proxygml.ray_session import check_shared
from proxygml.remote import check_free
from proxygml.urls import WEB, Place, Url, as_place

Columns = Literal["plain", "atlas"]
"""What a file has beside the vectors: the items' own columns; or also coordinates and neighbours, see atlas.py."""


@check_arguments
def embed(
    run: PathLike,
    out: PathLike,
    *,
    catalog: PathLike | None = None,
    images: PathLike | Sequence[PathLike] = (),
    vectors: PathLike | None = None,
    split: str = "all",
    on_bad: OnBad = "fail",
    force: bool = False,
    workers: int = 2,
    batch_size: int = 64,
    dimensions: int | None = None,
    dtype: Dtype = "float32",
    columns: Columns = "plain",
    engine: Engine = "torch",
    ray: str | None = None,
    part_rows: int = PART_ROWS,
) -> VectorFile:
    """Write the vectors of images, with their paths and the catalog's columns, to a Parquet file.

    With `ray`, the images are embedded by many processes, on one machine or on a cluster, into a folder of such files.
    The run folder, the images and the folder must then be where all machines find them under the same paths.

    A model of vectors embeds the vectors of a file, or of a catalog, and keeps the columns beside them.

    A call that was stopped continues when it is repeated.

    Args:
        run: the run folder of the model.
        out: the .parquet file to write; with `ray`, the folder.
        catalog: a table of images, or of vectors; give exactly one of `catalog`, `images` and `vectors`. All five may
            be URLs.
        images: an image file or a folder of them, or several.
        vectors: for a model of vectors: a Parquet file with a column `embedding` of those to embed, or a .npy file.
        split: of the catalog: train, val, test, or all.
        on_bad: what images that cannot be read lead to: fail after all others are embedded, or drop them.
        force: replace a file that is there.
        workers: processes that decode images; 0 decodes in this one. With `ray`: threads of each process that embeds,
            which takes as many processors.
        batch_size: images embedded at a time.
        dimensions: write the first so many numbers of each vector, scaled to length 1 again; see `embedder.prefixes`.
        dtype: how numbers are written: float32, float16, int8 (a byte each) or binary (a bit each).
        columns: plain: the columns that the items have; atlas: also projection_x, projection_y, neighbors and, of
            images, thumbnail, for tools that show embeddings, such as Embedding Atlas and FiftyOne.
        engine: what computes the embeddings: torch; onnx or openvino (on the CPU), which give the same up to 1e-4.
        ray: the address of a Ray cluster; "auto" takes the Ray that runs on this machine, or starts one. None embeds in
            this process.
        part_rows: with `ray`, images of a part: one file, and what is done again where a process is killed.

    Returns:
        The file or folder: `.rows`, `.dimension`, and `.blocks()` of float32 vectors with their rows of the table.

    Raises:
        UserError: a source is missing, an image cannot be read, or something is at `out` already.
    """
    file, place = as_place(out, "out"), as_place(run, "run")
    source = Source.of(catalog, images, vectors, split)
    if ray is None:
        check_ending(file, ".parquet")
        check_free(file, force)
    _check_content(dtype, columns, ray)
    model = Model.of(place, engine)
    if dimensions is not None:  # named before anything is embedded
        check_dimensions(dimensions, model.embedder().embedding_size)
    content = Content(dimensions, dtype, columns)
    how = EmbeddingOptions(on_bad=on_bad, workers=workers, batch_size=batch_size)
    if ray is not None:
        _write_parts(file, model, source, content, force, ray, part_rows, **how)
    elif source.vectors is not None or model.takes_vectors:
        _write_vectors(file, model, source, content, force)
    else:
        _write_images(file, model, source, content, force, **how)
    return VectorFile(file)


def _folder_of_parts(model: Model, source: Source, out: Place) -> Place:
    """The folder that many processes write to; UserError where they cannot."""
    if model.takes_vectors or source.vectors is not None:
        raise UserError("--ray embeds images, and vectors take little time: leave it out")
    check_shared("the run folder", [model.run])
    check_shared("--out", [out])
    if isinstance(out, Url) and out.scheme in WEB:
        raise UserError(f"--out is {out}, an address of a web server, where nothing can be written: choose another")
    return out.resolve() if isinstance(out, Path) else out


class EmbeddingOptions(TypedDict):
    """How images are embedded; see `embed`."""

    on_bad: OnBad
    workers: int
    batch_size: int


@dataclass(frozen=True)
class Content:
    """What is written of each item; see `embed`."""

    dimensions: int | None
    dtype: Dtype
    columns: Columns


def _check_content(dtype: str, columns: str, ray: str | None) -> None:
    """Raise UserError where a file cannot be written so."""
    for name, value, known in (("dtype", dtype, get_args(Dtype)), ("columns", columns, get_args(Columns))):
        if value not in known:
            raise UserError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
    if columns == "plain":
        return
    if dtype in get_args(Coded):
        raise UserError(
            f"--columns {columns} is for other tools, which cannot read vectors as {dtype}: take float32 or float16"
        )
    if ray is not None:
        raise UserError(
            f"--columns {columns} needs all vectors together: embed with --ray first, then give its folder with "
            "--vectors and --columns"
        )


def _write_parts(
    out: Place,
    model: Model,
    source: Source,
    content: Content,
    force: bool,
    ray: str,
    part_rows: int,
    **how: Unpack[EmbeddingOptions],
) -> None:
    """Embed images by many processes into a folder of parts; see `embed`."""
    where = _folder_of_parts(model, source, out)
    listed = source.image_list()
    check_shared("an image", listed.paths)
    key = work_key(model, listed, content.dimensions, content.dtype, part_rows)
    sizes = how["batch_size"], how["workers"]
    parts = PartedEmbedding(where, key, model, *sizes, content.dimensions, content.dtype, part_rows)
    embed_in_parts(parts, listed, address=ray, on_bad=how["on_bad"], force=force)


def _write_vectors(file: Place, model: Model, source: Source, content: Content, force: bool) -> None:
    """Write what a model of vectors makes of a source; or vectors of a model of images again, with more columns."""
    if not model.takes_vectors and content.columns == "plain":
        raise UserError(f"{model.run} takes images, not vectors: give --images or --catalog")

    def blocks() -> Iterator[Block]:
        for embeddings, items in source.vector_input(model).blocks:
            yield embeddings, items.rename(columns={ITEM_ID: "id"})

    _write(file, model, source.vector_input(model).total, blocks, content, force)


def _write_images(
    file: Place, model: Model, source: Source, content: Content, force: bool, **how: Unpack[EmbeddingOptions]
) -> None:
    """Embed images, and write their vectors."""
    if content.columns == "atlas":
        check_column_names(source.image_list().table.columns)
    work = work_folder(file)
    embedded = embed_source(model, source, work, **how)
    _write(file, model, len(embedded), embedded.blocks, content, force)
    discard(work)


def _write(
    file: Place, model: Model, total: int, blocks: Callable[[], Iterable[Block]], content: Content, force: bool
) -> None:
    """Write embeddings, or their first numbers, with what they are of."""

    def shorter() -> Generator[Block]:
        for embeddings, items in blocks():
            yield vector_prefix(embeddings, content.dimensions), items

    given, mapped = shorter(), content.columns == "atlas"
    if mapped:
        work = work_folder(file)
        folder = work.with_name(f"{work.name}.map")
        given = with_map_columns(shorter, total, folder, pictures=not model.takes_vectors)
    facts = {"model": model.fingerprint, "run": str(model.run)}
    with closing(given):
        write_vectors(file, given, dtype=content.dtype, mapped=mapped, force=force, **facts)


def work_folder(file: Place) -> Path:
    """The folder of vectors that are not in the file yet: beside it, or in the cache where the file is at a URL."""
    if isinstance(file, Path):
        return file.with_name(f".{file.name}.partial")
    return cache_folder("embedded") / hashlib.sha256(file.encode()).hexdigest()[:32]


def embed_source(
    model: Model, source: Source, work: Path, *, on_bad: OnBad, workers: int, batch_size: int
) -> EmbeddedImages:
    """The vectors of a source's images, kept in the folder `work` until the caller discards it; see embed_images."""
    return embed_images(
        model.embedder(),
        model.fingerprint,
        source.image_list(),
        work,
        on_bad=on_bad,
        workers=workers,
        batch_size=batch_size,
    )

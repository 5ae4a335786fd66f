"""Building galleries from images, catalogs or files of vectors, and adding to them.

A gallery keeps the fingerprint of its model; vectors of another model are refused.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from proxygml.arguments import check_arguments
from proxygml.arrays import Block, Rows
from proxygml.console import warn
from proxygml.data.catalog import Catalog
from proxygml.data.catalog.blocks import CatalogBlocks
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.image_list import ImageList, file_stamps
from proxygml.errors import GalleryError, UserError
from proxygml.files import PathLike, check_local
from proxygml.gallery.backends import check_place, work_place
from proxygml.gallery.base import Gallery
from proxygml.gallery.classify import calibrate
from proxygml.gallery.filters.grammar import Where, parse_where
from proxygml.gallery.kinds import Kind, check_enough, check_refine
from proxygml.gallery.source import Model, Source
from proxygml.gallery.vector_input import ITEM_ID, of_catalog, of_catalog_file
from proxygml.gallery.vectors import unit_vectors
from proxygml.models.embed_images import EmbeddedImages, OnBad, discard, embed_images
from proxygml.models.embedder import Embedder
from proxygml.models.engines import Engine
from proxygml.models.prefix import cut_to, vector_prefix
from proxygml.training.recipe import Recipe
from proxygml.training.run_folder import RunFolder
from proxygml.training.splits import split_for_training
from proxygml.urls import Place, absolute, as_place


@check_arguments
def index(
    run: PathLike,
    out: PathLike,
    *,
    catalog: PathLike | None = None,
    images: PathLike | Sequence[PathLike] = (),
    vectors: PathLike | None = None,
    split: str = "all",
    kind: Kind = "exact",
    refine: int | None = None,
    false_accept_rate: float = 0.01,
    on_bad: OnBad = "fail",
    force: bool = False,
    workers: int = 2,
    batch_size: int = 64,
    dimensions: int | None = None,
    engine: Engine = "torch",
) -> Gallery:
    """Build a gallery of a catalog's images, of images in folders, or of vectors that `embed` wrote.

    A call that was stopped continues when it is repeated.

    Args:
        run: the run folder of the model.
        out: the gallery to make: a folder; or in Milvus, `NAME.db` or `http://HOST:19530`.
        catalog: a table of images; give exactly one of `catalog`, `images` and `vectors`. These and `run` may be URLs.
        images: an image file or a folder of them, or several.
        vectors: a file that `embed` wrote; or, for a model of vectors, one of vectors to embed (.parquet or .npy).
        split: of the catalog: train, val, test, or all.
        kind: exact; hnsw, many times faster, misses a few; or codes of the vectors: int8, binary, ivfbinary and ivfpq,
            see `Gallery.create`.
        refine: of codes, how many candidates for each result are compared again by their exact vectors; 0 for none.
        false_accept_rate: the share of queries of classes not in the gallery that may be given a class, in [0, 1). The
            threshold for "none of these" is chosen by it where there are validation classes.
        on_bad: what images that cannot be read lead to: fail after all others are embedded, or drop them.
        force: replace a gallery that is there.
        workers: processes that decode images; 0 decodes in this one.
        batch_size: images embedded at a time.
        dimensions: keep the first so many numbers of each vector; queries are cut likewise. See `embedder.prefixes`.
        engine: what computes the embeddings; see `embed`. The gallery may be searched with any.

    Returns:
        The gallery, ready to search.

    Raises:
        UserError: a source is missing or of another model, an image cannot be read, or something is at `out` already.
    """
    place, source = as_place(run, "run"), Source.of(catalog, images, vectors, split)
    check_local(out, "out", gallery=True)
    return build_gallery(
        Model.of(place, engine),
        source,
        out if isinstance(out, str) else Path(out),
        kind=kind,
        refine=refine,
        false_accept_rate=false_accept_rate,
        on_bad=on_bad,
        force=force,
        workers=workers,
        batch_size=batch_size,
        dimensions=dimensions,
    )


def build_gallery(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    kind: Kind = "exact",
    refine: int | None = None,
    false_accept_rate: float = 0.01,
    on_bad: OnBad = "fail",
    force: bool = False,
    workers: int = 2,
    batch_size: int = 64,
    dimensions: int | None = None,
) -> Gallery:
    """Embed the items, unless they come as vectors, and build a gallery; a stopped call continues when it is repeated.

    Where there are validation classes (a val split in the catalog or in the file of vectors, or classes that the run
    held out when it trained on that table), a threshold for "none of these" is chosen on them and kept with the
    gallery.

    Raises:
        UserError: see embed_images, Gallery.build, VectorFile and Model.
    """
    check_place(out, kind, force)
    check_refine(kind, refine)
    if not 0 <= false_accept_rate < 1:
        raise UserError(f"--false_accept_rate is {false_accept_rate}, but must be 0 up to below 1")
    if source.vectors is not None or model.takes_vectors:
        given = source.vector_input(model)
        check_enough(kind, given.total)

        def choose(gallery: Gallery) -> None:
            if "label" in gallery.columns:
                _calibrate(gallery, model, lambda: _vector_validation(gallery, model, source), false_accept_rate)

        return Gallery.build(
            out, _shortened(given.blocks, dimensions), kind, model=model.fingerprint, run=str(model.run), refine=refine,
            force=force, total=given.total, finish=choose,
        )  # fmt: skip
    images = source.image_list()
    check_enough(kind, len(images))
    work = work_place(out, "partial")
    embedder = model.embedder()
    embedded = embed_images(
        embedder, model.fingerprint, images, work, on_bad=on_bad, workers=workers, batch_size=batch_size
    )

    def embed_and_choose(gallery: Gallery) -> None:
        if source.catalog is not None and (validation := _validation(model, source.catalog)) is not None:
            settings = model, embedder, validation, workers, batch_size
            _calibrate(gallery, model, lambda: _embed_validation(gallery, *settings), false_accept_rate)
        elif source.catalog is not None:
            _calibrate(gallery, model, lambda: None, false_accept_rate)

    gallery = Gallery.build(
        out, _shortened(embedded.blocks(stamped=True), dimensions), kind, model=model.fingerprint,
        run=str(model.run), refine=refine, force=force, total=len(embedded), finish=embed_and_choose,
    )  # fmt: skip
    discard(work)
    return gallery


def _shortened(blocks: Iterable[Block], dimensions: int | None) -> Iterator[Block]:
    for vectors, table in blocks:
        yield vector_prefix(vectors, dimensions), table


class Added(NamedTuple):
    """What adding to a gallery has done."""

    added: int
    """Items that are new."""

    there: int
    """Items of the source that were in the gallery already, as they are."""

    updated: int
    """Items that were in it with an image, or a vector, that has changed since: they have new ids."""


def add_items(
    gallery: Gallery,
    model: Model,
    source: Source,
    *,
    on_bad: OnBad = "fail",
    workers: int = 2,
    batch_size: int = 64,
) -> Added:
    """Add the items whose paths (and boxes) the gallery does not hold yet, replace those that changed, and save it.

    An image has changed when its file has another size or time; a vector, when any of its numbers has. A replaced item
    keeps the cells of columns that the source does not have.

    Returns:
        How many items were added, were there already, and were updated.

    Raises:
        UserError: see build_gallery.
    """
    if source.vectors is not None or model.takes_vectors:
        return _add_blocks(gallery, source.vector_input(model).blocks)
    images = source.image_list()
    ids = _ids(gallery, images.table)
    todo = ids < 0
    before = gallery.file_stamps(ids[~todo])
    now = file_stamps(images.table["path"][~todo].tolist())
    todo[~todo] = (before > 0) & (before != now)
    if not todo.any():
        return Added(0, len(images), 0)
    gallery.check_writable()
    work = work_place(gallery.place, "partial")
    fresh = ImageList(images.table[todo].reset_index(drop=True))
    embedded = embed_images(
        model.embedder(), model.fingerprint, fresh, work, on_bad=on_bad, workers=workers, batch_size=batch_size
    )
    done = _add_blocks(gallery, embedded.blocks(stamped=True))
    discard(work)
    return done._replace(there=done.there + int((~todo).sum()))


def remove_items(gallery: Gallery, where: Where) -> int:
    """Remove from a gallery on disk the items that a filter lets through, and save it.

    Args:
        gallery: the gallery.
        where: see Gallery.search; `id` is the number of an item. An empty filter is refused.

    Returns:
        How many items were removed.

    Raises:
        GalleryError: no item passes, there is no such column, or a value is none of its column.
    """
    if not where:
        raise GalleryError("no condition is given: nothing was removed")
    chosen = gallery.matching(where)
    if not len(chosen):
        wanted = ", ".join(condition.text for condition in parse_where(where, gallery.schema))
        raise GalleryError(f"no item of {gallery.place} has {wanted}: nothing was removed")
    gallery.remove(chosen)
    gallery.save()
    return len(chosen)


def _add_blocks(gallery: Gallery, blocks: Iterable[Block]) -> Added:
    """Add the items that are new, replace those whose vectors differ, and save the gallery."""
    done = Added(0, 0, 0)
    for whole, table in blocks:
        vectors = cut_to(whole, gallery.manifest.dimension)
        ids = _ids(gallery, table)
        new, known = np.flatnonzero(ids < 0), np.flatnonzero(ids >= 0)
        same = (unit_vectors(vectors[known]) == gallery.vectors(ids[known])).all(axis=1)
        changed = known[~same]
        gallery.add(vectors[new], table.iloc[new])
        if len(changed):
            old = gallery.rows(ids[changed]).reset_index(drop=True)
            rows = table.iloc[changed].reset_index(drop=True)
            kept = [name for name in old.columns if name not in rows.columns]
            gallery.add(vectors[changed], pd.concat([rows, old[kept]], axis=1))
            gallery.remove(np.unique(ids[changed]))
        done = Added(done.added + len(new), done.there + int(same.sum()), done.updated + len(changed))
    if done.added or done.updated:
        gallery.save()
    return done


def _ids(gallery: Gallery, table: pd.DataFrame) -> Rows:
    """The id of each row's item, -1 for none; path (and box), or else an id of your own, identifies an item."""
    if "path" not in table or "path" not in gallery.columns:
        if ITEM_ID in table and ITEM_ID in gallery.columns:
            return gallery.ids_of(table, [ITEM_ID])
        return np.full(len(table), -1)
    keys = ["path", *(column for column in BOX_COLUMNS if column in table or column in gallery.columns)]
    return gallery.ids_of(table, keys)


def _calibrate(
    gallery: Gallery, model: Model, validation: Callable[[], Block | None], false_accept_rate: float
) -> None:
    """Choose the threshold on the images of the validation classes, or say why there is none."""
    reason = f"{_why_no_validation(model)}. Every query will be given a class, however far it is"
    try:
        block = validation()
        if block is not None:
            vectors, items = cut_to(block[0], gallery.manifest.dimension), block[1]
            gallery.set_threshold(calibrate(gallery, vectors, list(items["label"]), false_accept_rate))
            return
    except UserError as error:  # also where no validation image can be read
        reason = str(error)
    warn(f"no threshold for `none of these`: {reason}")


def _why_no_validation(model: Model) -> str:
    recipe = _held_out_by(model)
    if recipe is None:
        return "there is no val split, and the run held no classes out"
    return f"there is no val split, and the classes that the run held out are of another table, {recipe.catalog}"


def _own_validation(gallery: Gallery) -> Block | None:
    """The vectors and items of the gallery's own val split."""
    if "split" not in gallery.columns or not len(ids := gallery.matching({"split": "val"})):
        return None
    return gallery.vectors(ids), gallery.rows(ids)


def _vector_validation(gallery: Gallery, model: Model, source: Source) -> Block | None:
    """The vectors and items of the gallery's own val split, or of the classes that the run held out.

    Raises:
        GalleryError: the run held out images of the table, which was given for its vectors.
    """
    own = _own_validation(gallery)
    if own is not None:
        return own
    table = source.catalog or source.vectors
    if table is None or (source.catalog is None and not _recipe_with_held_out(model, table)):
        return None
    if not model.takes_vectors:
        raise GalleryError(f"the run held out classes of the images of {table}: give it as --catalog to embed those")
    if CatalogBlocks.of(table, "all") and not _recipe_with_held_out(model, table):
        if not CatalogBlocks.of(table, "val"):
            return None
        return of_catalog_file(table, "val", model.embedder()).whole()
    held_out = _validation(model, table)
    return None if held_out is None else of_catalog(held_out, model.embedder()).whole()


def _embed_validation(
    gallery: Gallery, model: Model, embedder: Embedder, validation: Catalog, workers: int, batch_size: int
) -> Block:
    """The vectors and items of the validation images, from the gallery where it holds them all."""
    images = ImageList.from_catalog(validation)
    keys = ["path", *(column for column in BOX_COLUMNS if column in images.table or column in gallery.columns)]
    if "path" in gallery.columns and (ids := gallery.ids_of(images.table, keys)).min() >= 0:
        return gallery.vectors(ids), images.table
    work = work_place(gallery.place, "validation")
    embedded: EmbeddedImages = embed_images(
        embedder, model.fingerprint, images, work, on_bad="drop", workers=workers, batch_size=batch_size
    )
    block = embedded.whole()
    discard(work)
    return block


def _validation(model: Model, table: Place) -> Catalog | None:
    """The val split of the catalog; or, of the run's own catalog, the classes that its training held out."""
    catalog = Catalog.read(table)
    if (catalog.table["split"] == "val").any():
        return catalog.split("val")
    recipe = _recipe_with_held_out(model, table)
    return None if recipe is None else split_for_training(recipe)[1]


def _recipe_with_held_out(model: Model, table: Place) -> Recipe | None:
    """The recipe of the model's run, where it held classes of that catalog out of training."""
    recipe = _held_out_by(model)
    return recipe if recipe is not None and absolute(recipe.catalog) == absolute(table) else None


def _held_out_by(model: Model) -> Recipe | None:
    """The recipe of the model's run, where it held classes out of training."""
    folder = RunFolder(model.folder)
    if not folder.recipe.is_file():
        return None
    recipe = folder.read_recipe()
    return recipe if recipe.validation_classes else None

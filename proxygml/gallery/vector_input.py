"""The items of a gallery, a file or a query that come as vectors: already of the model, or for the model to embed.

A model of vectors embeds vectors of another model; a model of images embeds none. build.py embeds images.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from proxygml.arrays import Block, Vectors
from proxygml.data.catalog import Catalog
from proxygml.data.catalog.blocks import CatalogBlocks
from proxygml.data.catalog.table import check_paths
from proxygml.data.catalog.vectors import blocks_of_rows
from proxygml.data.columns import EMBEDDING_ROW
from proxygml.data.paths import absolute_paths
from proxygml.data.vectors.checks import Floats
from proxygml.data.vectors.file import VectorFile
from proxygml.errors import GalleryError
from proxygml.models.embedder import Embedder
from proxygml.training.vectors import check_size, check_source_size
from proxygml.urls import Place

ITEM_ID = "item_id"
"""What a gallery calls the column `id` of your own, since `id` is its own number for an item."""


class VectorInput(NamedTuple):
    """Items with vectors of the model."""

    total: int
    blocks: Iterator[Block]

    def whole(self) -> Block:
        """All at once."""
        parts = list(self.blocks)
        if not parts:
            raise GalleryError("there are no vectors")
        return np.concatenate([vectors for vectors, _ in parts]), pd.concat([t for _, t in parts], ignore_index=True)


def of_file(path: Place, model: str, embedder: Embedder) -> VectorInput:
    """The items of a file of vectors, embedded, unless the file says that this model made them.

    Args:
        path: Parquet with a column `embedding`, or .npy.
        model: the fingerprint of the embedder.
        embedder: a model of vectors.

    Raises:
        GalleryError: no such file, or vectors of another size than the model takes.
    """
    file = VectorFile(path)
    if file.rows and file.model == model:
        return VectorInput(file.rows, items_of(file))
    if file.rows and file.dimension != embedder.num_features:
        raise GalleryError(
            f"{path} has vectors of size {file.dimension}, but the model takes {embedder.num_features}: give vectors "
            "of the model that made those which it was trained on"
        )
    return VectorInput(file.rows, ((_embedded(embedder, vectors), table) for vectors, table in items_of(file)))


def of_catalog_file(place: Place, split: str, embedder: Embedder) -> VectorInput:
    """The items of a catalog with vectors, or of one of its splits, embedded; read a block at a time where that goes.

    Raises:
        CatalogError: see `of_catalog` and Catalog.read.
    """
    found = CatalogBlocks.of(place, split)
    if found is None:
        catalog = Catalog.read(place)
        return of_catalog(catalog if split == "all" else catalog.split(split), embedder)
    check_source_size(found.vectors, embedder.num_features)
    return VectorInput(found.total, (_item_block(embedder, place.parent, *block) for block in found.blocks()))


def _item_block(embedder: Embedder, folder: Place, vectors: Floats, table: pd.DataFrame) -> Block:
    table = table.rename(columns={"id": ITEM_ID})
    if "path" in table:
        table["path"] = absolute_paths(table["path"], folder)
    return _embedded(embedder, vectors.astype(np.float32, copy=False)), table


def of_catalog(catalog: Catalog, embedder: Embedder) -> VectorInput:
    """The items of a catalog with vectors, embedded.

    Raises:
        CatalogError: the catalog has no vectors, or vectors of another size than the model takes.
    """
    check_size(catalog, embedder.num_features)
    return VectorInput(len(catalog), _catalog_blocks(catalog, embedder))


def _catalog_blocks(catalog: Catalog, embedder: Embedder) -> Iterator[Block]:
    table = catalog.table.drop(columns=EMBEDDING_ROW).rename(columns={"id": ITEM_ID})
    if catalog.has_images:
        table["path"] = absolute_paths(table["path"], catalog.folder)
    start = 0
    for vectors in blocks_of_rows(catalog.vector_source, catalog.vector_rows):
        part = table.iloc[start : start + len(vectors)].reset_index(drop=True)
        yield _embedded(embedder, vectors.astype(np.float32, copy=False)), part
        start += len(vectors)


def items_of(file: VectorFile) -> Iterator[Block]:
    """The vectors and items of a file; paths that are not from the root are relative to its folder.

    Raises:
        GalleryError: the file lies at a URL, and a path names a file of this machine, or it is a URL that is not read.
    """
    row = 0
    for vectors, table in file.blocks():
        if "path" in table:
            check_paths(table["path"].set_axis(range(row, row + len(table))), file.folder, GalleryError)
            table["path"] = absolute_paths(table["path"], file.folder)
        row += len(table)
        yield vectors, table.rename(columns={"id": ITEM_ID})


def _embedded(embedder: Embedder, vectors: Vectors) -> Vectors:
    embedded: Vectors = embedder.embed(vectors).numpy()
    return embedded

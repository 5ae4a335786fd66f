"""The vectors of a catalog for training: batches from a mapped file, blocks, and embeddings of all of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from proxygml.data.catalog import Catalog
from proxygml.data.vectors.checks import ROWS_AT_A_TIME
from proxygml.data.vectors.source import VectorSource
from proxygml.errors import CatalogError, counted
from proxygml.models.embedder import Embedder, checked_embeddings
from proxygml.models.vector_embedder import unit

Batch = tuple[Tensor, Tensor]
"""float32 (M, F), of length 1; int64 (M,), which ones they are."""

ALL = slice(None)


class VectorDataset(Dataset[Batch]):
    """A catalog's vectors, scaled to length 1: a list of items at a time, as a batch; see `as_given`."""

    def __init__(self, catalog: Catalog) -> None:
        self._plain = catalog.vector_source.mapped()
        self._rows = catalog.vector_rows

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: vectors are the same in every epoch."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these items; a DataLoader calls this in place of one item at a time."""
        chosen = np.asarray(indices, np.int64)
        return unit(torch.from_numpy(self._plain[self._rows[chosen]])), torch.from_numpy(chosen)


def as_given(batch: Batch) -> Batch:
    """The batch as `VectorDataset.__getitems__` gives it: there is nothing to collate."""
    return batch


def unit_blocks(catalog: Catalog, part: slice = ALL) -> Iterator[Tensor]:
    """The vectors of these rows of a catalog, scaled to length 1, float32 (m, F) with m up to 16,384."""
    plain, rows = catalog.vector_source.mapped(), catalog.vector_rows[part]
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield unit(torch.from_numpy(plain[rows[start : start + ROWS_AT_A_TIME]]))


@torch.inference_mode()
def embed_vectors(embedder: Embedder, catalog: Catalog, part: slice = ALL) -> Tensor:
    """The embeddings of the vectors of these rows of a catalog, float32 (m, D) on the CPU.

    Raises:
        CatalogError: the catalog has no vectors, or of another size than the embedder takes.
        WeightsError: an embedding is NaN.
    """
    check_size(catalog, embedder.num_features)
    embeddings = torch.empty(len(catalog.vector_rows[part]), embedder.embedding_size)
    start, head = 0, embedder.head.eval()
    for block in unit_blocks(catalog, part):
        embeddings[start : start + len(block)] = head(block.to(embedder.device)).float().cpu()
        start += len(block)
    return checked_embeddings(embeddings)


def check_size(catalog: Catalog, expected: int) -> None:
    """Raise CatalogError where the catalog's vectors are not of the size that a model takes."""
    check_source_size(catalog.vector_source, expected)


def check_source_size(source: VectorSource, expected: int) -> None:
    """Raise CatalogError where vectors are not of the size that a model takes."""
    if source.size != expected:
        raise CatalogError(
            f"{source.path} has vectors of {counted(source.size, 'number')}, but the model takes {expected}"
        )

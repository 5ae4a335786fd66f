"""The first numbers of embeddings, as embeddings by themselves: see `embedder.prefixes`."""

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from proxygml.errors import UserError


def check_dimensions(dimensions: int | None, size: int) -> None:
    """Raise UserError where embeddings of that size have not so many numbers; None stands for all of them."""
    if dimensions is not None and not 1 <= dimensions <= size:
        raise UserError(f"dimensions is {dimensions}, but must be 1 to {size}, the size of the model's embeddings")


def prefix(embeddings: Tensor, dimensions: int | None) -> Tensor:
    """The first numbers of embeddings (n, D), scaled to length 1 again; all where `dimensions` is None.

    Raises:
        UserError: there are not so many.
    """
    check_dimensions(dimensions, embeddings.shape[1])
    if dimensions is None or dimensions == embeddings.shape[1]:
        return embeddings
    return F.normalize(embeddings[:, :dimensions], dim=1)


def cut_to(vectors: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Vectors (n, D) as a gallery of prefixes has them: the first `size` numbers, where there are more."""
    return vector_prefix(vectors, size) if size < vectors.shape[1] else vectors


def vector_prefix(vectors: npt.NDArray[np.float32], dimensions: int | None) -> npt.NDArray[np.float32]:
    """The same of an array (n, D)."""
    check_dimensions(dimensions, vectors.shape[1])
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    lengths = np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    shorter: npt.NDArray[np.float32] = (cut / lengths).astype(np.float32)
    return shorter

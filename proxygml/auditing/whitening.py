"""The space in which classes are compared: features whitened by their covariance within the classes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.feature_rows import FeatureRows, parts_of
from proxygml.training.projections import Moments

SHRINKAGE = 0.6
"""Of the covariance within classes towards its mean. Few images of many features make its small directions noise."""

FAINT = 1e-9
"""Of the mean energy of the features: where all images of each class are alike, nothing varies within them."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map after which the images of one class vary alike in every direction; then length 1.

    Attributes:
        mean: float32 (F,).
        projection: float32 (F, F).
    """

    mean: Vectors
    projection: Vectors

    @classmethod
    def of(cls, features: FeatureRows, places: Rows, labels: Rows) -> "Whitening":
        """That of these images, read once, a block at a time.

        Args:
            features: of all images.
            places: int64 (m,), the images to learn from.
            labels: int64 (n,), the classes of all images.
        """
        blocks: Iterator[Tensor] = (torch.from_numpy(features.take(part)) for part in parts_of(places))
        moments = Moments.of(blocks, torch.from_numpy(labels[places]))
        within = (moments.products - moments.between) / moments.count
        size = len(within)
        energy = float(within.diagonal().mean())
        least = FAINT * float(moments.products.diagonal().mean()) / moments.count
        identity = torch.eye(size, dtype=torch.float64)
        shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * max(energy, least) * identity
        # Any root of the inverse gives the same cosines; that of Cholesky is the cheapest.
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), identity, upper=False)
        return cls(moments.mean.float().numpy(), np.ascontiguousarray(root.T.float().numpy()))

    def __call__(self, vectors: Vectors) -> Vectors:
        """Vectors (m, F) in that space, float32 (m, F), of length 1; one that is the mean itself becomes zeros."""
        whitened = (vectors - self.mean) @ self.projection
        lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
        unit: Vectors = whitened / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

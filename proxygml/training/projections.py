"""Projections of features that a layer can start from: principal directions, discriminants; by moments, in one pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.linalg import eigh
from torch import Tensor

FAINT = 1e-9  # of the strongest direction's energy
SHRINKAGE = 0.1  # of the mean energy within classes: few images of many features make its small directions noise


@dataclass(frozen=True)
class Moments:
    """Sums over n features (n, F), in float64.

    Attributes:
        count: n.
        total: (F,), the sum of all.
        products: (F, F), the sum of their outer products.
        between: (F, F), the sum over the classes of the outer products of their sums, each divided by its count; zeros
            where there are no labels.
        classes: how many classes there are; 0 where there are no labels.
    """

    count: int
    total: Tensor
    products: Tensor
    between: Tensor
    classes: int = 0

    @classmethod
    def of(cls, blocks: Iterable[Tensor], labels: Tensor | None = None) -> "Moments":
        """Those of features that come in blocks (m, F), with the class of each, int64 (n,)."""
        count, total, products, sums = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
        for block in blocks:
            exact = block.double()
            total = total + exact.sum(dim=0)
            products = products + exact.T @ exact
            if labels is not None:
                if not count:
                    sums = torch.zeros(int(labels.max()) + 1, exact.shape[1], dtype=torch.float64)
                sums.index_add_(0, labels[count : count + len(exact)], exact)
            count += len(exact)
        if labels is None:
            return cls(count, total, products, torch.zeros_like(products))
        scaled = sums / torch.bincount(labels).clamp_min(1).double().sqrt()[:, None]
        return cls(count, total, products, scaled.T @ scaled, len(sums))

    @property
    def mean(self) -> Tensor:
        """(F,)"""
        return self.total / self.count

    @property
    def is_one_point(self) -> bool:
        """Whether the features differ by rounding alone."""
        energy = float(self.products.trace()) / self.count
        return energy - float(self.mean @ self.mean) <= FAINT * energy

    @property
    def deviation(self) -> Tensor:
        """(F,), the standard deviation of each feature; 1 where it does not vary."""
        squares = self.products.diagonal() / self.count
        variance = squares - self.mean**2
        # Of a constant, rounding leaves a little, which must not be amplified.
        kept: Tensor = torch.where(variance > FAINT * squares, variance, 1).sqrt()
        return kept


def principal_directions(products: Tensor, size: int, whitening: float = 0.0) -> Tensor:
    """The projection that keeps most of the features' inner products: ours, by truncated SVD.

    Its rows are the leading right singular vectors of the features, not centred, so cosines hardly change. With
    whitening, each row is divided by its singular value to that power. Then a few strong directions, which all images
    share, do not hide the others. This is the whitening with shrinkage of Mukundan et al. (IJCV 2019), not centred.

    Args:
        products: float64 (F, F), the sum of the features' outer products.
        size: D, at most F.
        whitening: 0, cosines as they were, to 1, every direction as strong as the first.

    Returns:
        float64 (D, F).
    """
    squares, directions = _leading(products, size)
    # A direction that the training images lack is noise and must not be amplified.
    strength = (squares / squares[0]).clamp_min(FAINT).sqrt()
    projection: Tensor = (_signed(directions) / strength**whitening).T
    return projection


def discriminants(moments: Moments, size: int, whitening: float = 1.0) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis (Fisher 1936; Rao 1948), with shrinkage: what separates the classes most.

    The covariance within classes, its directions shrunk towards their mean, is whitened; then the directions in which
    the C classes differ most are kept. Where D is C or more, directions of most variance follow them.

    Args:
        moments: of features and their classes.
        size: D, at most F.
        whitening: the power of the whitening; 1 is the classical method.

    Returns:
        The projection float64 (D, F), and its bias (D,), which takes the mean to 0.
    """
    within = (moments.products - moments.between) / moments.count
    energy, directions = torch.linalg.eigh(within)
    energy = energy.clamp_min(0)
    shrunk = (1 - SHRINKAGE) * energy + SHRINKAGE * energy.mean()
    largest = shrunk.max().clamp_min(torch.finfo(torch.float64).tiny)
    strength = (shrunk / largest).clamp_min(FAINT).sqrt() ** whitening
    whitener = (directions / strength) @ directions.T
    mean = torch.outer(moments.mean, moments.mean)
    between, whole = moments.between / moments.count - mean, moments.products / moments.count - mean
    leading = _leading(whitener @ between @ whitener, min(size, moments.classes - 1))[1]
    if leading.shape[1] < size:
        left = whitener @ whole @ whitener
        left -= leading @ (leading.T @ left)
        left -= (left @ leading) @ leading.T
        leading = torch.cat([leading, _leading(left, size - leading.shape[1])[1]], dim=1)
    weight = _signed(leading).T @ whitener
    return weight, -weight @ moments.mean


def _leading(products: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, falling, (count,), and their eigenvectors, the columns of (F, count)."""
    if count == 0:
        return products.new_empty(0), products.new_empty(len(products), 0)
    # torch.linalg.eigh computes all of them, which takes three times as long for a tenth of 1,280.
    last = len(products) - 1
    values, vectors = eigh(products.numpy(), subset_by_index=(last - count + 1, last))
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].copy())


def _signed(directions: Tensor) -> Tensor:
    """The sign of a direction (a column) is arbitrary; this choice makes it the same on every machine."""
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    signed: Tensor = directions * largest.sign()
    return signed

"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision and NMI, each with a 95% interval.

Exact, ties included, and in bounded memory (ranking.py finds the ranks). This module takes embeddings and labels; it
opens no image and runs no network.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from proxygml.errors import UserError
from proxygml.evaluation import ranking
from proxygml.evaluation.kmeans import kmeans
from proxygml.evaluation.retrieval import Array, Precision, QueryScores, Retrieval

if TYPE_CHECKING:
    from rich.table import Table

Labels = Tensor | Array | Sequence[int] | Sequence[str]
Mask = Tensor | Array | Sequence[bool]

__all__ = ["Estimate", "Evaluation", "QueryScores", "evaluate", "nearest", "score_queries"]

CPU_MEMORY_LIMIT = 256 * 2**20
GPU_MEMORY_LIMIT = 8 * 2**30  # small tiles leave a GPU waiting for the next one
_RESAMPLES = 100  # drawn together: one matrix product for all of them


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval (bootstrap over classes), all in 0..1."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers under their names."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of embeddings, and what they were computed from."""

    recall: dict[int, Estimate]
    map_at_r: Estimate
    r_precision: Estimate
    nmi: Estimate | None
    num_queries: int  # queries that were scored
    num_gallery: int
    num_classes: int  # classes among query and gallery images
    queries_without_positive: int  # left out of every figure
    scores: QueryScores | None = field(default=None, repr=False, compare=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)  # taken by each part

    def as_dict(self) -> dict[str, Any]:
        """The content of evaluation.json: plain dictionaries and numbers, without single queries and times."""
        return {
            "recall": {str(k): estimate.as_dict() for k, estimate in self.recall.items()},
            "map_at_r": self.map_at_r.as_dict(),
            "r_precision": self.r_precision.as_dict(),
            "nmi": None if self.nmi is None else self.nmi.as_dict(),
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_classes": self.num_classes,
            "queries_without_positive": self.queries_without_positive,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """The inverse of `as_dict`; unknown keys are ignored."""
        return cls(
            recall={int(k): Estimate(**estimate) for k, estimate in content["recall"].items()},
            map_at_r=Estimate(**content["map_at_r"]),
            r_precision=Estimate(**content["r_precision"]),
            nmi=None if content["nmi"] is None else Estimate(**content["nmi"]),
            num_queries=content["num_queries"],
            num_gallery=content["num_gallery"],
            num_classes=content["num_classes"],
            queries_without_positive=content["queries_without_positive"],
        )

    def figures(self) -> dict[str, Estimate]:
        """Every estimate under the name that people read, Recall@K first."""
        named = {f"Recall@{k}": estimate for k, estimate in self.recall.items()}
        named |= {"MAP@R": self.map_at_r, "R-precision": self.r_precision}
        return named if self.nmi is None else named | {"NMI": self.nmi}

    def table(self) -> Table:
        """A table for the console, in per cent; the time of each part stands under it."""
        from rich.table import Table  # noqa: PLC0415

        caption = f"{self.num_queries:,} queries, gallery of {self.num_gallery:,}, {self.num_classes:,} classes"
        if self.queries_without_positive:
            caption += f"\nqueries without a positive, left out: {self.queries_without_positive:,}"
        if self.seconds:
            caption += "".join(f"\n{part}: {seconds:.1f} s" for part, seconds in self.seconds.items())
        table = Table(caption=caption)
        table.add_column("")
        table.add_column("per cent", justify="right")
        table.add_column("95% interval", justify="right")
        for name, estimate in self.figures().items():
            interval = f"{100 * estimate.low:.1f} - {100 * estimate.high:.1f}"
            table.add_row(name, f"{100 * estimate.value:.1f}", interval)
        return table


def evaluate(
    embeddings: Tensor | Array,
    labels: Labels,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    nmi: bool = True,
    *,
    is_query: Mask | None = None,
    is_gallery: Mask | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
) -> Evaluation:
    """Measure how well every query finds its class in the gallery by cosine similarity.

    Recall@K is the share of queries with an image of their class among the K nearest; R-precision and MAP@R are of
    Musgrave et al., "A Metric Learning Reality Check", 2020. Intervals are 95% bootstrap percentiles over the queries'
    classes. A query never finds itself; one whose class has no other image in the gallery is left out and counted.
    All figures are the same as from sorting whole rows of the similarity matrix: ties rank in the order of the gallery,
    and an embedding of zeros has similarity 0 to all. In float32, copies of an image have exactly the same
    similarities; in float64 they may differ in the last bit.

    Args:
        embeddings: (n, D) floats of any length, normalised here. Computed on their device, in float32 (or float64).
        labels: n integers or strings.
        recall_at: the K of Recall@K, each 1 or more.
        nmi: whether to compare the classes with as many k-means clusters of the query and gallery images.
        is_query: n booleans: which images are queries; None for all. An image may be in both.
        is_gallery: likewise: which are searched.
        seed: of k-means and bootstrap, 0 to below 2**32.
        bootstrap: the number of resamples; each draws the classes with replacement.
        memory_limit: bytes for a part of the similarities and all that is derived from it (16 rows at least), beside
            normalised copies of the embeddings. None: 256 MiB; on a GPU 8 GiB, or a quarter of what is free if less.
        progress: show a progress bar on standard error.
        precision: of the products of float32 embeddings; "tf32" (on GPUs) keeps 11 bits of each factor, "bfloat16" 8.

    Raises:
        UserError: shapes or lengths that do not fit, embeddings that are not finite, no query with a positive.
    """
    ks = _checked_ks(recall_at)
    _check_resampling(bootstrap, seed)
    seconds: dict[str, float] = {}
    with _timed("retrieval", seconds):
        task = _retrieval(embeddings, labels, is_query, is_gallery, precision)
        scores = _scores(task, memory_limit, progress)
    with _timed("bootstrap", seconds):
        *recalls, map_at_r, r_precision = _means_over_classes(scores, task.codes[scores.index], ks, bootstrap, seed)
    return Evaluation(
        recall=dict(zip(ks, recalls, strict=True)),
        map_at_r=map_at_r,
        r_precision=r_precision,
        nmi=_clustering_nmi(task, bootstrap, seed, progress, seconds) if nmi else None,
        num_queries=len(scores.index),
        num_gallery=task.num_gallery,
        num_classes=len(np.unique(task.codes[task.evaluated])),
        queries_without_positive=int(task.is_query.sum()) - len(scores.index),
        scores=scores,
        seconds=seconds,
    )


@contextmanager
def _timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of the block to that of the part; all parts end on the CPU, so that there is nothing to wait for."""
    start = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start


def score_queries(
    embeddings: Tensor | Array,
    labels: Labels,
    *,
    is_query: Mask | None = None,
    is_gallery: Mask | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
) -> QueryScores:
    """The scores of the single queries that have a positive; arguments and errors as in `evaluate`."""
    return _scores(_retrieval(embeddings, labels, is_query, is_gallery, precision), memory_limit, progress)


def nearest(
    embeddings: Tensor | Array,
    queries: Tensor | Array | Sequence[int],
    k: int,
    *,
    is_gallery: Mask | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
) -> tuple[Tensor, Tensor]:
    """The k gallery images nearest to each query, nearest first, ties in the order of the gallery.

    Args:
        embeddings: (n, D), as in `evaluate`.
        queries: q indices of images, 0..n-1; a query is never among its own neighbours.
        k: how many; cut to what the gallery holds beside the query.
        is_gallery, memory_limit, progress, precision: as in `evaluate`.

    Returns:
        Cosine similarities (q, k), and the indices of the images (q, k), int64; both where the embeddings are.

    Raises:
        UserError: as in `evaluate`, for indices that are none of 0..n-1, and without any.
    """
    task = _retrieval(embeddings, None, None, is_gallery, precision)
    images = _checked_images(queries, len(task.codes))
    k = min(k, task.num_gallery - int((task.column[images] >= 0).any()))
    if k < 1:
        raise UserError(f"k is {k} after it was cut to the gallery: at least one other image is needed")
    values, columns = ranking.nearest(task, images, k, memory_limit or _memory_limit(task.unit.device), progress)
    return values, task.tensor(task.gallery)[columns]


def _retrieval(
    embeddings: Tensor | Array,
    labels: Labels | None,
    is_query: Mask | None,
    is_gallery: Mask | None,
    precision: Precision,
) -> Retrieval:
    """Checked input; without labels all images are of one class."""
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}, but one of {', '.join(get_args(Precision))} was expected")
    unit = _normalised(embeddings)
    codes = np.zeros(len(unit), dtype=np.int64) if labels is None else _label_codes(labels, len(unit))
    query_mask = _checked_mask(is_query, "is_query", len(unit))
    gallery_mask = _checked_mask(is_gallery, "is_gallery", len(unit))
    return Retrieval(unit, codes, query_mask, gallery_mask, precision)


def _scores(task: Retrieval, memory_limit: int | None, progress: bool) -> QueryScores:
    if not (task.is_query & (task.num_positives() > 0)).any():
        raise UserError(
            f"none of the {task.is_query.sum()} queries has another image of its class in the gallery of "
            f"{task.num_gallery}: retrieval needs classes with at least two images"
        )
    return ranking.score(task, memory_limit or _memory_limit(task.unit.device), progress)


def _memory_limit(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_MEMORY_LIMIT
    free, _ = torch.cuda.mem_get_info(device)
    return min(GPU_MEMORY_LIMIT, free // 4)


def _clustering_nmi(task: Retrieval, bootstrap: int, seed: int, progress: bool, seconds: dict[str, float]) -> Estimate:
    """NMI of the classes and of k-means clusters; the interval holds the clustering fixed."""
    from sklearn.metrics import normalized_mutual_info_score  # noqa: PLC0415

    classes = np.unique(task.codes[task.evaluated], return_inverse=True)[1]
    whole = len(task.evaluated) == len(task.unit)
    vectors = (task.unit if whole else task.unit[task.tensor(task.evaluated)]).cpu().numpy()
    with _timed("k-means", seconds):
        clusters = kmeans(vectors, int(classes.max()) + 1, seed, progress=progress)
    with _timed("NMI", seconds):
        value = float(normalized_mutual_info_score(classes, clusters))
    with _timed("bootstrap", seconds):
        information, entropy = _information_by_class(classes, clusters)
        if entropy.sum() <= 0:  # one class and one cluster: nothing to resample
            return Estimate(value, value, value)
        low, high = _bootstrap_interval(information[:, None], entropy[:, None], bootstrap, seed)
    return Estimate(value, float(low[0]), float(high[0]))


def _information_by_class(classes: Array, clusters: Array) -> tuple[Array, Array]:
    """What each class's images add to the mutual information and to the mean entropy; NMI is the ratio of the sums.

    The frequencies inside the logarithms stay those of all images. The ratio is then, to first order, NMI as a function
    of how often each class is drawn, without the bias of counting the classes of a resample anew.
    """
    total = len(classes)
    class_sizes, cluster_sizes = np.bincount(classes), np.bincount(clusters)
    cells, counts = np.unique(classes * len(cluster_sizes) + clusters, return_counts=True)
    row, column = cells // len(cluster_sizes), cells % len(cluster_sizes)

    def by_class(terms: Array) -> Array:
        return np.bincount(row, weights=counts * terms)

    class_surprise = np.log(total / class_sizes[row])
    cluster_surprise = np.log(total / cluster_sizes[column])
    joint_surprise = np.log(total / counts)
    return (
        by_class(class_surprise + cluster_surprise - joint_surprise),
        by_class((class_surprise + cluster_surprise) / 2),
    )


def _means_over_classes(
    scores: QueryScores, codes: Array, ks: Sequence[int], bootstrap: int, seed: int
) -> list[Estimate]:
    """Recall at each K, MAP@R and R-precision of queries of these classes, with intervals over the classes."""
    _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
    # The queries of a class by the first K that holds a positive: as many columns as there are K, and one for beyond.
    first_k = np.searchsorted(ks, scores.first_positive, side="right")
    cells = np.bincount(codes * (len(ks) + 1) + first_k, minlength=len(counts) * (len(ks) + 1))
    found = cells.reshape(len(counts), -1).cumsum(axis=1)[:, :-1]
    precisions = (np.bincount(codes, weights=each) for each in (scores.average_precision, scores.r_precision))
    sums = np.column_stack([found, *precisions])
    values = sums.sum(axis=0) / len(codes)
    low, high = _bootstrap_interval(sums, counts[:, None].astype(np.float64), bootstrap, seed)
    return [Estimate(*map(float, estimate)) for estimate in zip(values, low, high, strict=True)]


def _bootstrap_interval(numerators: Array, denominators: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """95% percentile interval of the ratio of sums over classes, (C, m) by (C, 1), with the classes drawn anew."""
    generator = np.random.default_rng(seed)
    num_classes = len(numerators)
    ratios = np.empty((resamples, numerators.shape[1]))
    for batch in np.split(ratios, range(_RESAMPLES, resamples, _RESAMPLES)):
        drawn = np.stack(
            [np.bincount(generator.integers(num_classes, size=num_classes), minlength=num_classes) for _ in batch]
        ).astype(np.float64)
        batch[:] = (drawn @ numerators) / (drawn @ denominators)
    low, high = np.percentile(ratios, [2.5, 97.5], axis=0).clip(0.0, 1.0)
    return low, high


def _normalised(embeddings: Tensor | Array) -> Tensor:
    """A copy (n, D) of length 1 in float32 (or float64), rows of zeros left as they are."""
    given = embeddings.detach() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    if given.ndim != 2 or 0 in given.shape:
        raise UserError(f"embeddings has the shape {tuple(given.shape)}, but (n, D) was expected, both at least 1")
    vectors = given if isinstance(given, Tensor) else _float_tensor(given)
    if not vectors.is_floating_point():
        raise UserError(f"embeddings is of {vectors.dtype}, but a floating-point type was expected: convert it")
    if vectors.dtype != torch.float64:
        vectors = vectors.float()
    # By the largest entry first: the square of 1e20 is not a float32.
    largest = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=1, keepdim=True)
    if not (finite := torch.isfinite(largest)).all():
        row = int(finite.flatten().int().argmin())
        raise UserError(f"embeddings[{row}] holds a NaN or an infinity: look at the network or image it comes from")
    tiny = torch.finfo(vectors.dtype).tiny
    unit: Tensor = vectors / largest.clamp(min=tiny)
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp(min=tiny))


def _float_tensor(array: Array) -> Tensor:
    if array.dtype.kind != "f":
        raise UserError(f"embeddings is of {array.dtype}, but a floating-point type was expected: convert it")
    precision = np.float64 if array.dtype.itemsize >= 8 else np.float32
    array = np.ascontiguousarray(array, dtype=precision)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _label_codes(labels: Labels, count: int) -> Array:
    """(n,) int64: which class each image is of, 0..C-1."""
    array = _array(labels)
    if array.shape != (count,):
        raise UserError(
            f"labels has the shape {array.shape}, but there are {count} embeddings: give one label for each"
        )
    if array.dtype == object:
        wrong = [label for label in array if not isinstance(label, str | int | np.integer)]
        if wrong:
            raise UserError(f"labels holds {wrong[0]!r}, but integers or strings were expected")
        array = array.astype(str)
    if array.dtype.kind not in "iubUS":
        raise UserError(f"labels is of {array.dtype}, but integers or strings were expected")
    codes: Array = np.unique(array, return_inverse=True)[1].astype(np.int64)
    return codes


def _checked_mask(mask: Mask | None, name: str, count: int) -> Array:
    if mask is None:
        return np.ones(count, dtype=bool)
    array = _array(mask)
    if array.shape != (count,):
        raise UserError(
            f"{name} has the shape {array.shape}, but there are {count} embeddings: give one boolean for each"
        )
    if array.dtype != bool:
        raise UserError(f"{name} is of {array.dtype}, but booleans were expected: convert it with .astype(bool)")
    if not array.any():
        raise UserError(f"{name} is False for all {count} images: mark at least one")
    return array


def _checked_images(queries: Tensor | Array | Sequence[int], count: int) -> Array:
    images = _array(queries)
    if images.ndim != 1 or not len(images):
        raise UserError(f"queries has the shape {images.shape}, but one index or more was expected, as (q,)")
    if images.dtype.kind not in "iu":
        raise UserError(f"queries is of {images.dtype}, but indices of images were expected: integers in 0..n-1")
    outside = images[(images < 0) | (images >= count)]
    if len(outside):
        raise UserError(f"queries holds {outside[0]}, but there are {count} embeddings: give 0..n-1")
    return images.astype(np.int64)


def _check_resampling(bootstrap: int, seed: int) -> None:
    if bootstrap < 1:
        raise UserError(f"bootstrap is {bootstrap}, but at least 1 resample is needed: give 1000 for a steady interval")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}, but an integer from 0 to below 2**32 was expected")


def _checked_ks(recall_at: Sequence[int]) -> list[int]:
    try:
        ks = [operator.index(k) for k in recall_at]
    except TypeError:
        ks = []
    if not ks or min(ks) < 1:
        raise UserError(f"recall_at is {recall_at}, but one or more integers were expected, each at least 1")
    return sorted(set(ks))


def _array(values: Tensor | Array | Sequence[int] | Sequence[str] | Sequence[bool]) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

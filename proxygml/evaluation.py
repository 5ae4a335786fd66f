"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision and NMI, each with a 95% interval.

Exact, ties included, and in bounded memory: similarities are computed a block of queries at a time, never as the whole
matrix. This module takes embeddings and labels; it opens no image and runs no network.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxygml.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

Array = np.ndarray[Any, Any]
Labels = Tensor | Array | Sequence[int] | Sequence[str]
Mask = Tensor | Array | Sequence[bool]

MEMORY_LIMIT = 256 * 2**20
_CHUNK = 128  # columns that are searched as one when the largest of a row are sought
_LIST_BYTES = 96  # taken by one entry of a list of nearest images: values, columns, hits, and their sorted copies


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
class QueryScores:
    """What every scored query contributes, in the order of the images; Q queries."""

    index: Array  # (Q,) int64: which image the query is
    first_positive: Array  # (Q,) int64: how many gallery images come before its nearest positive
    average_precision: Array  # (Q,) float64: average precision at R, whose mean is MAP@R
    r_precision: Array  # (Q,) float64


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

    def as_dict(self) -> dict[str, Any]:
        """The content of evaluation.json: plain dictionaries and numbers, without the scores of single queries."""
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
        """The inverse of `as_dict`; keys that are not of an evaluation are passed over."""
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
        """A table for the console, in per cent."""
        from rich.table import Table  # noqa: PLC0415

        caption = f"{self.num_queries:,} queries, gallery of {self.num_gallery:,}, {self.num_classes:,} classes"
        if self.queries_without_positive:
            caption += f"\nqueries without a positive, left out: {self.queries_without_positive:,}"
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
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> Evaluation:
    """Let every query find its class in the gallery by cosine similarity.

    Recall@K is the share of queries with an image of their class among the K nearest; R-precision and MAP@R are of
    Musgrave et al., "A Metric Learning Reality Check", 2020. Intervals are 95% bootstrap percentile intervals over the
    classes of the queries.

    A query never finds itself, and a query whose class has no other image in the gallery is left out and counted. Equal
    similarities rank in the order of the gallery, as a stable descending sort has them. An embedding of zeros has
    similarity 0 to all.

    Args:
        embeddings: (n, D) floats of any precision, of any length: they are normalised here. Computed where they are, in
            float32 (float64 stays float64) and in the matrix-product precision that torch is set to.
        labels: n integers or strings.
        recall_at: the K of Recall@K, each 1 or more.
        nmi: whether to compare the classes with the clusters of k-means (as many as there are classes, seeded) over the
            query and gallery images.
        is_query, is_gallery: n booleans each; without them every image is in. An image may be both.
        seed: of k-means and of the bootstrap.
        bootstrap: how often the classes are drawn anew, with replacement, for the intervals.
        memory_limit: bytes for a block of similarities and all that is derived from it (a row at a time at least);
            normalised copies of the embeddings come on top.
        progress: show a progress bar on standard error.

    Raises:
        UserError: shapes or lengths that do not fit, embeddings that are not finite, no query with a positive.
    """
    ks = _checked_ks(recall_at)
    if bootstrap < 1:
        raise UserError(f"bootstrap is {bootstrap}, but at least 1 resample is needed: give 1000 for a steady interval")
    task = _Retrieval(embeddings, labels, is_query, is_gallery)
    scores = _score(task, memory_limit, progress)
    per_query = np.stack(
        [*(scores.first_positive < k for k in ks), scores.average_precision, scores.r_precision], axis=1
    ).astype(np.float64)
    *recalls, map_at_r, r_precision = _means_over_classes(per_query, task.codes[scores.index], bootstrap, seed)
    return Evaluation(
        recall=dict(zip(ks, recalls, strict=True)),
        map_at_r=map_at_r,
        r_precision=r_precision,
        nmi=_clustering_nmi(task, bootstrap, seed, progress) if nmi else None,
        num_queries=len(scores.index),
        num_gallery=task.num_gallery,
        num_classes=len(np.unique(task.codes[task.evaluated])),
        queries_without_positive=int(task.is_query.sum()) - len(scores.index),
        scores=scores,
    )


def score_queries(
    embeddings: Tensor | Array,
    labels: Labels,
    *,
    is_query: Mask | None = None,
    is_gallery: Mask | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> QueryScores:
    """The scores of the single queries that have a positive; arguments and errors as in `evaluate`."""
    return _score(_Retrieval(embeddings, labels, is_query, is_gallery), memory_limit, progress)


def nearest(
    embeddings: Tensor | Array,
    queries: Tensor | Array | Sequence[int],
    k: int,
    *,
    is_gallery: Mask | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k gallery images nearest to each query, nearest first, ties in the order of the gallery.

    Args:
        embeddings: (n, D), as in `evaluate`.
        queries: q indices of images, 0..n-1; a query is never among its own neighbours.
        k: how many; cut to what the gallery holds beside the query.
        is_gallery, memory_limit, progress: as in `evaluate`.

    Returns:
        Cosine similarities (q, k), and the indices of the images (q, k), int64; both where the embeddings are.

    Raises:
        UserError: as in `evaluate`, and for indices outside 0..n-1.
    """
    task = _Retrieval(embeddings, None, None, is_gallery)
    images = _array(queries).astype(np.int64)
    outside = images[(images < 0) | (images >= len(task.codes))]
    if len(outside):
        raise UserError(f"queries holds {outside[0]}, but there are {len(task.codes)} embeddings: give 0..n-1")
    k = min(k, task.num_gallery - int((task.column[images] >= 0).any()))
    if k < 1:
        raise UserError(f"k is {k} after it was cut to the gallery: at least one other image is needed")
    blocks = _blocks(np.full(len(images), k), task.row_bytes, memory_limit)
    found = [_best(task.similarities(images[block]), k) for block in _shown(blocks, "Searching", progress)]
    columns = torch.cat([columns for _, columns in found])
    return torch.cat([values for values, _ in found]), torch.from_numpy(task.gallery).to(columns.device)[columns]


class _Retrieval:
    """Checked input, and the similarities of queries to the gallery; an image's column is its place in the gallery."""

    def __init__(
        self, embeddings: Tensor | Array, labels: Labels | None, is_query: Mask | None, is_gallery: Mask | None
    ) -> None:
        self.unit = _normalised(embeddings)
        count = len(self.unit)
        self.codes = np.zeros(count, dtype=np.int64) if labels is None else _label_codes(labels, count)
        self.is_query = _checked_mask(is_query, "is_query", count)
        in_gallery = _checked_mask(is_gallery, "is_gallery", count)
        self.evaluated = np.flatnonzero(self.is_query | in_gallery)
        self.gallery = np.flatnonzero(in_gallery)
        self.num_gallery = len(self.gallery)
        self.column = np.where(in_gallery, np.cumsum(in_gallery) - 1, -1)
        self._gallery_unit = self.unit if in_gallery.all() else self.unit[self._tensor(self.gallery)]
        # Whole chunks of columns, so that `_best` can look at the maximum of each; those beyond the gallery are -inf.
        self.width = -(-self.num_gallery // _CHUNK) * _CHUNK
        self._buffer = self.unit.new_empty(0)

    @property
    def row_bytes(self) -> int:
        """Memory for a row of similarities, a copy of it and the comparisons that count what lies before a positive."""
        return self.width * (3 * self.unit.element_size() + 4)

    def similarities(self, images: Array) -> Tensor:
        """(b, width) cosine similarities to the gallery; -inf to the query itself and beyond the gallery.

        The next call overwrites them: memory is claimed once for all blocks.
        """
        if len(images) == 1:
            # A product with a single row rounds by position, and equal images would no longer be equally similar.
            return self.similarities(images.repeat(2))[:1]
        size = len(images) * self.width
        if len(self._buffer) < size:
            self._buffer = self.unit.new_empty(size)
        block = self._buffer[:size].view(len(images), self.width)
        with torch.autocast(block.device.type, enabled=False):
            torch.mm(self.unit[self._tensor(images)], self._gallery_unit.T, out=block[:, : self.num_gallery])
        block[:, self.num_gallery :] = -torch.inf
        rows = np.flatnonzero(self.column[images] >= 0)
        block[self._tensor(rows), self._tensor(self.column[images[rows]])] = -torch.inf
        return block

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.unit.device)


def _score(task: _Retrieval, memory_limit: int, progress: bool) -> QueryScores:
    """Score the queries that have a positive, those with equally many together: a block's lists are of one length."""
    device = task.unit.device
    positives = np.bincount(task.codes[task.gallery], minlength=task.codes.max() + 1)[task.codes] - (task.column >= 0)
    queries = np.flatnonzero(task.is_query & (positives > 0))
    if not len(queries):
        raise UserError(
            f"none of the {task.is_query.sum()} queries has another image of its class in the gallery of "
            f"{task.num_gallery}: retrieval needs classes with at least two images"
        )
    order = queries[np.argsort(-positives[queries], kind="stable")]
    classes = _ClassColumns(task.codes[task.gallery], device)
    first_positive = torch.empty(len(order), dtype=torch.int64, device=device)
    precisions = torch.empty(2, len(order), device=device)
    for block in _shown(_blocks(positives[order], task.row_bytes, memory_limit), "Comparing", progress):
        images = order[block]
        similarity = task.similarities(images)
        codes, relevant = (torch.from_numpy(array[images]).to(device) for array in (task.codes, positives))
        values, columns = _best(similarity, int(positives[images[0]]))
        # A query whose list is as long as the gallery ends it on itself or on a column beyond the gallery: no hits.
        found = classes.codes[columns.clamp(max=task.num_gallery - 1)]
        hits = (found == codes[:, None]) & (values > -torch.inf)
        first_positive[block] = _first_positive(similarity, hits, codes, classes)
        precisions[:, block] = torch.stack(_precisions(hits, relevant))
    back = np.argsort(order)
    average_precision, r_precision = precisions.double().cpu().numpy()[:, back]
    return QueryScores(order[back], first_positive.cpu().numpy()[back], average_precision, r_precision)


class _ClassColumns:
    """Which columns of the gallery belong to a class, in rising order."""

    def __init__(self, gallery_codes: Array, device: torch.device) -> None:
        counts = np.bincount(gallery_codes)
        self.codes = torch.from_numpy(gallery_codes).to(device)
        self._columns = torch.from_numpy(np.argsort(gallery_codes, kind="stable")).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """For each class its columns, filled up to the largest class, and which of them are its own."""
        counts = self._counts[codes][:, None]
        offset = torch.arange(int(counts.max()), device=codes.device)
        place = (self._starts[codes][:, None] + offset).clamp(max=len(self._columns) - 1)
        return self._columns[place], offset < counts


def _first_positive(similarity: Tensor, hits: Tensor, codes: Tensor, classes: _ClassColumns) -> Tensor:
    """How many gallery images come before the nearest positive: read from the list, counted where it is not in it."""
    found, ahead = hits.max(dim=1)
    missing = torch.nonzero(~found).squeeze(1)
    if len(missing):
        ahead[missing] = _count_ahead(similarity[missing], *classes.of(codes[missing]))
    return ahead


def _count_ahead(similarity: Tensor, columns: Tensor, own: Tensor) -> Tensor:
    """Columns that are more similar than the best of the given ones, or as similar and before it in the gallery."""
    best, place = similarity.gather(1, columns).masked_fill_(~own, -torch.inf).max(dim=1, keepdim=True)
    before = torch.arange(similarity.shape[1], device=columns.device) < columns.gather(1, place)
    return torch.where(before, similarity >= best, similarity > best).sum(dim=1)


def _precisions(hits: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision at R and R-precision of lists (b, k) of hits and misses; R is `relevant`, (b,)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (rank <= relevant[:, None])
    precision = hits.cumsum(dim=1).to(torch.float32) / rank
    return (precision * hits).sum(dim=1) / relevant, hits.sum(dim=1) / relevant


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, exactly as a stable descending sort would give them."""
    count = min(k + 1, similarity.shape[1])
    values, columns = _largest(similarity, count)
    straddling = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -torch.inf) & (count > k)
    # Ties inside the list: bring the columns into their order, then sort by value without disturbing it.
    columns, order = columns[:, :k].sort(dim=1)
    values, order = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # A tie that goes on beyond the list: which of the equals belong in it takes the whole row, one row at a time.
    for row in torch.nonzero(straddling).flatten().tolist():
        columns[row] = similarity[row].sort(descending=True, stable=True).indices[:k]
    return values, columns


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, several times faster for small k: a row's k largest lie in its k chunks of largest maximum."""
    chunks = similarity.view(len(similarity), -1, _CHUNK)
    if 4 * k > chunks.shape[1]:
        return similarity.topk(k, dim=1)
    best = chunks.amax(dim=2).topk(k, dim=1, sorted=False).indices
    candidates = chunks.gather(1, best[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
    values, place = candidates.topk(k, dim=1)
    return values, best.gather(1, place // _CHUNK) * _CHUNK + place % _CHUNK


def _blocks(lengths: Array, row_bytes: int, memory_limit: int) -> list[slice]:
    """Slices of the queries, whose lists have these falling lengths, that fit in the memory or are one row."""
    blocks, start = [], 0
    while start < len(lengths):
        rows = max(1, memory_limit // (row_bytes + int(lengths[start]) * _LIST_BYTES))
        blocks.append(slice(start, min(start + rows, len(lengths))))
        start += rows
    return blocks


def _shown(blocks: list[slice], description: str, progress: bool) -> Iterable[slice]:
    if not progress:
        return blocks
    from proxygml.console import track  # noqa: PLC0415

    return track(blocks, description)


def _clustering_nmi(task: _Retrieval, bootstrap: int, seed: int, progress: bool) -> Estimate:
    """NMI of the classes and of k-means clusters; the interval holds the clustering fixed."""
    from sklearn.metrics import normalized_mutual_info_score  # noqa: PLC0415

    classes = np.unique(task.codes[task.evaluated], return_inverse=True)[1]
    whole = len(task.evaluated) == len(task.unit)
    vectors = (task.unit if whole else task.unit[torch.from_numpy(task.evaluated).to(task.unit.device)]).cpu().numpy()
    clusters = _kmeans(vectors, int(classes.max()) + 1, seed, progress)
    value = float(normalized_mutual_info_score(classes, clusters))
    information, entropy = _information_by_class(classes, clusters)
    if entropy.sum() <= 0:  # one class and one cluster: nothing to resample
        return Estimate(value, value, value)
    low, high = _bootstrap_interval(information[:, None], entropy[:, None], bootstrap, seed)
    return Estimate(value, float(low[0]), float(high[0]))


def _kmeans(vectors: Array, num_clusters: int, seed: int, progress: bool) -> Array:
    """The cluster of each vector (n, D), int64; every vector takes part in every iteration."""
    import faiss  # noqa: PLC0415

    from proxygml.console import console  # noqa: PLC0415

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=25,
        nredo=1,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    if not progress:
        kmeans.train(vectors)
    else:
        with console.status(f"Clustering {len(vectors):,} embeddings into {num_clusters:,} clusters"):
            kmeans.train(vectors)
    clusters: Array = kmeans.assign(vectors)[1]
    return clusters


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


def _means_over_classes(per_query: Array, codes: Array, bootstrap: int, seed: int) -> list[Estimate]:
    """The mean of each column of (Q, m) over the queries, with intervals over their classes."""
    _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(codes, weights=column) for column in per_query.T], axis=1)
    values = sums.sum(axis=0) / len(per_query)
    low, high = _bootstrap_interval(sums, counts[:, None].astype(np.float64), bootstrap, seed)
    return [Estimate(*map(float, estimate)) for estimate in zip(values, low, high, strict=True)]


def _bootstrap_interval(numerators: Array, denominators: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """95% percentile interval of the ratio of sums over classes, (C, m) by (C, 1), with the classes drawn anew."""
    generator = np.random.default_rng(seed)
    num_classes = len(numerators)
    ratios = np.empty((resamples, numerators.shape[1]))
    for resample in ratios:
        drawn = np.bincount(generator.integers(num_classes, size=num_classes), minlength=num_classes).astype(np.float64)
        resample[:] = (drawn @ numerators) / (drawn @ denominators)
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

"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision, mAP and NMI, each with a 95% interval.

Exact, ties included, and in bounded memory (ranking.py finds the ranks). This module takes embeddings and labels; it
opens no image and runs no network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack, get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from proxygml.arguments import check_arguments
from proxygml.errors import UserError, check_whole, counted
from proxygml.evaluation import ranking
from proxygml.evaluation.bootstrap import bootstrap_interval, full_mean, information_by_class, means_over_classes
from proxygml.evaluation.estimates import Estimate, Evaluation
from proxygml.evaluation.failing import failing_together
from proxygml.evaluation.inputs import (
    Groups,
    Labels,
    Mask,
    check_resampling,
    checked_images,
    checked_ks,
    label_codes,
    normalised,
    rules_of,
)
from proxygml.evaluation.kmeans import kmeans
from proxygml.evaluation.retrieval import Array, Precision, QueryScores, Retrieval
from proxygml.evaluation.rules import RuleColumns
from proxygml.evaluation.sharded import check_gatherable, gathered, sharded_retrieval

__all__ = ["Estimate", "Evaluation", "QueryScores", "evaluate", "nearest", "score_queries"]

CPU_MEMORY_LIMIT = 256 * 2**20
GPU_MEMORY_LIMIT = 8 * 2**30  # small tiles leave a GPU waiting for the next one


@failing_together
@check_arguments
def evaluate(
    embeddings: Tensor | Array,
    labels: Labels,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    nmi: bool = True,
    *,
    is_query: Mask | None = None,
    is_gallery: Mask | None = None,
    sequence: Groups | None = None,
    camera: Groups | None = None,
    is_junk: Mask | None = None,
    is_distractor: Mask | None = None,
    mean_average_precision: bool = False,
    seed: int = 0,
    bootstrap: int = 1000,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
    process_group: ProcessGroup | None = None,
) -> Evaluation:
    """Measure how well every query finds its class in the gallery by cosine similarity.

    Recall@K is the share of queries with an image of their class among the K nearest; R-precision and MAP@R are of
    Musgrave et al., "A Metric Learning Reality Check", 2020. Intervals are 95% bootstrap percentiles over the queries'
    classes. A query never finds itself; one whose class has no other image in the gallery is left out and counted.
    All figures are the same as from sorting whole rows of the similarity matrix: ties rank in the order of the gallery,
    and an embedding of zeros has similarity 0 to all. In float32, copies of an image have exactly the same
    similarities; in float64 they may differ in the last bit.

    With `sequence`, `camera` and `is_junk`, images that may not answer for a query are taken out of its ranking, and R
    is the number of matches that are left. A query whose matches are all of its own camera is left out, as in the
    protocol of Market-1501; one whose matches are all of its own sequence counts as not found, as in
    open-metric-learning.

    Args:
        embeddings: (n, D) floats of any length, normalised here. Computed on their device, in float32 (or float64).
        labels: n integers or strings.
        recall_at: the K of Recall@K, each 1 or more.
        nmi: whether to compare the classes with as many k-means clusters of the query and gallery images.
        is_query: n booleans: which images are queries; None for all. An image may be in both.
        is_gallery: likewise: which are searched.
        sequence: n integers, strings or None (for none): an image may not answer for one of its own sequence, whatever
            their classes.
        camera: likewise: an image may not answer for one of its own class and camera.
        is_junk: n booleans: images that are neither query nor gallery, whatever the other arguments say.
        is_distractor: n booleans: images that are searched, are a wrong answer to every query, and are no query.
        mean_average_precision: whether to compute mAP too, over the whole ranking; every row is then sorted.
        seed: of k-means and bootstrap, 0 to below 2**32.
        bootstrap: the number of resamples; each draws the classes with replacement.
        memory_limit: bytes for a part of the similarities and all that is derived from it (16 rows at least), beside
            normalised copies of the embeddings. None: 256 MiB; on a GPU 8 GiB, or a quarter of what is free if less.
        progress: show a progress bar on standard error.
        precision: of the products of float32 embeddings; "tf32" (on GPUs) keeps 11 bits of each factor, "bfloat16" 8.
        process_group: processes that share the work, each of which calls this with its own part of all arrays, in the
            order of the processes; parts may differ in size or be empty. All get the figures that one process would
            find with all parts put together. No process holds all embeddings, except for NMI: the first process
            gathers them for k-means, up to 16 GiB, and the others wait for it as long as the group's timeout allows.
            Where one process fails, all do.

    Raises:
        UserError: shapes or lengths that do not fit, embeddings that are not finite, no query with a positive, more
            embeddings than are gathered for NMI.
        OtherProcessError: another process has failed or ended.
    """
    if labels is None:
        raise UserError("labels is None: give one label for each embedding")
    ks = checked_ks(recall_at)
    check_resampling(bootstrap, seed)
    if memory_limit is not None:
        check_whole("memory_limit", memory_limit, 1, 2**62)
    seconds: dict[str, float] = {}
    columns = RuleColumns(
        is_query=is_query,
        is_gallery=is_gallery,
        sequence=sequence,
        camera=camera,
        is_junk=is_junk,
        is_distractor=is_distractor,
    )
    with _timed("retrieval", seconds):
        task = _retrieval(embeddings, labels, columns, precision, process_group)
        if nmi:  # before the ranking, which takes long where there are many
            check_gatherable(task, np.flatnonzero(task.rules.in_a_class))
        scores = _scores(task, memory_limit, progress, mean_average_precision)
    with _timed("bootstrap", seconds):
        codes = task.codes[scores.index]
        *recalls, map_at_r, r_precision = means_over_classes(scores, codes, ks, bootstrap, seed)
        full = full_mean(scores, codes, bootstrap, seed) if mean_average_precision else None
    return Evaluation(
        recall=dict(zip(ks, recalls, strict=True)),
        map_at_r=map_at_r,
        r_precision=r_precision,
        nmi=_clustering_nmi(task, bootstrap, seed, progress, seconds) if nmi else None,
        mean_average_precision=full,
        num_queries=len(scores.index),
        num_gallery=task.num_gallery,
        num_classes=len(np.unique(task.codes[task.rules.in_a_class])),
        queries_without_positive=int(task.rules.is_query.sum()) - len(scores.index),
        rules=task.rules.summary(),
        scores=scores,
        seconds=seconds,
    )


@contextmanager
def _timed(part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of the block to that of the part; all parts end on the CPU, so that there is nothing to wait for."""
    start = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start


@failing_together
def score_queries(
    embeddings: Tensor | Array,
    labels: Labels,
    *,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
    process_group: ProcessGroup | None = None,
    **rules: Unpack[RuleColumns],
) -> QueryScores:
    """The scores of the single queries that are scored; arguments and errors as in `evaluate`."""
    return _scores(_retrieval(embeddings, labels, rules, precision, process_group), memory_limit, progress)


@failing_together
def nearest(
    embeddings: Tensor | Array,
    queries: Tensor | Array | Sequence[int],
    k: int,
    *,
    labels: Labels | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
    precision: Precision = "float32",
    process_group: ProcessGroup | None = None,
    **rules: Unpack[RuleColumns],
) -> tuple[Tensor, Tensor]:
    """The k gallery images nearest to each query, nearest first, ties in the order of the gallery.

    Args:
        embeddings: (n, D), as in `evaluate`.
        queries: q indices of images, 0..n-1; a query is never among its own neighbours.
        k: how many; cut to what the gallery holds beside the query.
        labels: (n,), which only the rule of cameras needs.
        memory_limit, progress, precision: as in `evaluate`.
        process_group: as in `evaluate`: each process gives its part of all arrays but the queries, which are the same
            on all, and are numbered over all parts.
        rules: as in `evaluate`; is_query has no effect.

    Returns:
        Cosine similarities (q, k), and the indices of the images (q, k), int64; both where the embeddings are. Where a
        sequence or camera leaves fewer than k images, the rest is -inf and -1. The same on all processes.

    Raises:
        UserError: as in `evaluate`, for indices that are none of 0..n-1, and without any.
    """
    task = _retrieval(embeddings, labels, rules, precision, process_group)
    images = checked_images(queries, len(task.codes))
    k = min(k, task.num_gallery - int((task.column[images] >= 0).any()))
    if k < 1:
        raise UserError(f"k is {k} after it was cut to the gallery: at least one other image is needed")
    values, columns = ranking.nearest(task, images, k, memory_limit or _memory_limit(task.unit.device), progress)
    index = task.tensor(task.gallery)[columns.clamp(max=task.num_gallery - 1)]
    return values, index.masked_fill_(values == -torch.inf, -1)


def _retrieval(
    embeddings: Tensor | Array,
    labels: Labels | None,
    columns: RuleColumns,
    precision: Precision,
    group: ProcessGroup | None = None,
) -> Retrieval:
    """Checked input; without labels all images are of one class."""
    _check_precision(precision)
    if group is not None:
        return sharded_retrieval(embeddings, labels, columns, precision, group)
    unit = normalised(embeddings)
    codes = np.zeros(len(unit), dtype=np.int64) if labels is None else label_codes(labels, len(unit))
    return Retrieval(unit, rules_of(codes, columns), precision)


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}, but one of {', '.join(get_args(Precision))} was expected")


def _scores(task: Retrieval, memory_limit: int | None, progress: bool, whole_ranking: bool = False) -> QueryScores:
    rules = task.rules
    if not (rules.is_query & (rules.num_matches > 0)).any():
        which = " that counts" if rules.groups else ""
        raise UserError(
            f"none of {counted(rules.is_query.sum(), 'query')} has another image of its class{which} in the gallery of "
            f"{task.num_gallery}: retrieval needs classes with at least two images"
        )
    # The same on all processes, whose tiles must be of one shape.
    limit = min(task.ring.gather(memory_limit or _memory_limit(task.unit.device)))
    return ranking.score(task, limit, progress, whole_ranking)


def _memory_limit(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_MEMORY_LIMIT
    free, _ = torch.cuda.mem_get_info(device)
    return min(GPU_MEMORY_LIMIT, free // 4)


def _clustering_nmi(task: Retrieval, bootstrap: int, seed: int, progress: bool, seconds: dict[str, float]) -> Estimate:
    """NMI of the classes and of k-means clusters; the interval holds the clustering fixed."""
    clustered = np.flatnonzero(task.rules.in_a_class)
    if task.ring.size == 1:
        vectors = task.unit_of(clustered, np.array([0, len(clustered)])).cpu().numpy()
        return _nmi(vectors, task.codes[clustered], bootstrap, seed, progress, seconds)
    gathered_vectors = gathered(task, clustered)
    found = None
    if gathered_vectors is not None:
        found = _nmi(gathered_vectors, task.codes[clustered], bootstrap, seed, progress, seconds)
    return task.ring.broadcast(found)


def _nmi(
    vectors: Array, codes: Array, bootstrap: int, seed: int, progress: bool, seconds: dict[str, float]
) -> Estimate:
    from sklearn.metrics import normalized_mutual_info_score  # noqa: PLC0415

    classes = np.unique(codes, return_inverse=True)[1]
    with _timed("k-means", seconds):
        clusters = kmeans(vectors, int(classes.max()) + 1, seed, progress=progress)
    with _timed("NMI", seconds):
        value = float(normalized_mutual_info_score(classes, clusters))
    with _timed("bootstrap", seconds):
        information, entropy = information_by_class(classes, clusters)
        if entropy.sum() <= 0:  # one class and one cluster: nothing to resample
            return Estimate(value, value, value)
        low, high = bootstrap_interval(information[:, None], entropy[:, None], bootstrap, seed)
    return Estimate(value, float(low[0]), float(high[0]))

"""The class of a query by the labels of its nearest items, or none of them.

How similar a query must be to count as one of the gallery's classes is chosen on the validation classes: the model was
not trained on them, and users do not search for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from proxygml.arrays import Vectors
from proxygml.errors import GalleryError, counted
from proxygml.gallery.base import Gallery, SearchResult
from proxygml.gallery.folder.manifest import Threshold

LEAST_CLASSES = 5
"""Validation classes that a threshold needs (ours): the images of one class are alike, and fewer classes are chance."""

LEAST_TRUE_ACCEPT_RATE = 0.5
"""Share of the right queries that a threshold must accept to be applied (ours)."""

TEMPERATURE = 0.07
"""A neighbour's vote weighs exp(cosine / 0.07), as in Wu et al., CVPR 2018."""


@dataclass(frozen=True)
class Prediction:
    """The class that a query is given."""

    label: str | None
    """The label with the most votes; None where the query is rejected, or no item that was found has a label."""

    share: float
    """The share of all votes, 0..1, for the label with the most, even where `label` is None."""

    score: float
    """Cosine of the nearest item, which is compared with the threshold."""

    rejected: bool = False
    """Whether the nearest item is below the threshold; not so where `label` is None because no item found has one."""


def is_labelled(result: SearchResult) -> bool:
    """Whether any item that was found has a label to vote for."""
    return "label" in result.table and any(_as_text(cell) is not None for cell in result.cells("label"))


def predict(result: SearchResult, threshold: float | None = None) -> list[Prediction]:
    """The class of each query, by a weighted vote of the items that were found for it.

    Args:
        result: of Gallery.search; items without a label do not vote.
        threshold: cosine that the nearest item must reach; None accepts every query.

    Raises:
        GalleryError: the items have no column `label`.
    """
    if "label" not in result.table:
        raise GalleryError("the gallery's items have no label: build it from a catalog to predict classes")
    texts, k = [_as_text(cell) for cell in result.cells("label")], result.ids.shape[1]
    return [_vote(texts[k * row : k * (row + 1)], scores, threshold) for row, scores in enumerate(result.scores)]


def _as_text(label: object) -> str | None:
    if pd.api.types.is_scalar(label) and pd.isna(label):
        return None
    return label.decode(errors="backslashreplace") if isinstance(label, bytes) else str(label)


def _vote(labels: Sequence[str | None], scores: Vectors, threshold: float | None) -> Prediction:
    best = float(scores.max())
    votes: dict[str, float] = {}
    weights = np.exp((scores.astype(np.float64) - best) / TEMPERATURE)
    for label, weight in zip(labels, weights, strict=True):
        if isinstance(label, str):
            votes[label] = votes.get(label, 0.0) + float(weight)
    rejected = threshold is not None and best < threshold
    if not votes:
        return Prediction(None, 0.0, best, rejected)
    label = max(votes, key=lambda name: votes[name])
    return Prediction(None if rejected else label, votes[label] / sum(votes.values()), best, rejected)


def calibrate(
    gallery: Gallery,
    embeddings: Tensor | npt.NDArray[np.floating],
    labels: Sequence[object],
    false_accept_rate: float = 0.01,
) -> Threshold:
    """The lowest threshold at which at most this share of queries of unknown classes is accepted.

    Every validation image queries the gallery's items of other labels. Whatever it finds there is wrong, and the
    gallery has the size that will be searched.

    Args:
        gallery: with a column `label`.
        embeddings: (n, D) floats, of the images of the validation classes.
        labels: n, of those images; text or numbers, as the gallery has them. Images without one are left out.
        false_accept_rate: 0 up to below 1.

    Raises:
        GalleryError: the rate is out of range, labels are missing, the gallery has no item of another class, or the
            images do not tell with any certainty what threshold keeps the promise and is of use.
    """
    if not 0 <= false_accept_rate < 1:
        raise GalleryError(f"the false-accept rate is {false_accept_rate}, but must be 0 up to below 1")
    if "label" not in gallery.columns:
        raise GalleryError("the gallery's items have no label: a threshold cannot be chosen")
    embeddings, names = _labelled(embeddings, labels)
    wrong = _best_of_others(gallery, embeddings, names)
    falling = np.sort(wrong)[::-1]
    threshold = float(np.nextafter(falling[int(false_accept_rate * len(falling))], np.float32(2)))
    right = _best_of_own(embeddings, names)
    known = np.isfinite(right)
    accepted = np.maximum(right, wrong)[known] >= threshold
    found = Threshold(
        score=threshold,
        false_accept_rate=float(np.mean(wrong >= threshold)),
        true_accept_rate=float(accepted.mean()) if known.any() else None,
        queries=len(names),
        classes=len(set(names)),
    )
    _check_useful(found, false_accept_rate)
    return found


def _labelled(
    embeddings: Tensor | npt.NDArray[np.floating], labels: Sequence[object]
) -> tuple[Vectors, npt.NDArray[np.object_]]:
    """The embeddings that have a label, and their labels as text: one file has numbers where another has text."""
    texts = [_as_text(label) for label in labels]
    rows = [row for row, text in enumerate(texts) if text is not None]
    if not rows:
        raise GalleryError("no validation image has a label: a threshold cannot be chosen")
    vectors = embeddings.detach().cpu().float().numpy() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    return vectors[rows], np.array([texts[row] for row in rows], dtype=object)


def _check_useful(found: Threshold, false_accept_rate: float) -> None:
    """Raise GalleryError for a threshold that is chosen by chance, or that rejects most queries it should accept."""
    needed = math.ceil(1 / false_accept_rate) if false_accept_rate else 0
    images = f"{counted(found.queries, 'image')} of {counted(found.classes, 'validation class')}"
    if found.queries < needed or found.classes < LEAST_CLASSES:
        raise GalleryError(
            f"there are {images}, but a share of {false_accept_rate:.3g} needs at least {counted(needed, 'image')} of "
            f"{counted(LEAST_CLASSES, 'class')}: hold out more, or allow a larger share with --false_accept_rate"
        )
    if found.true_accept_rate is not None and found.true_accept_rate < LEAST_TRUE_ACCEPT_RATE:
        raise GalleryError(
            f"by {images} it would be {found.score:.3f}, which accepts only {found.true_accept_rate:.0%} of the "
            "queries whose class is in the gallery: allow a larger share of wrong ones with "
            "--false_accept_rate, or train a better model"
        )


def _best_of_others(gallery: Gallery, vectors: Vectors, labels: npt.NDArray[np.object_]) -> Vectors:
    """(n,): the similarity of each image's nearest item of another label."""
    best = np.full(len(labels), -np.inf, np.float32)
    todo, k = np.arange(len(labels)), 16
    while len(todo):
        found = gallery.search(vectors[todo], k)
        texts = found.table["label"].astype(object).map(_as_text)
        names = texts.reindex(found.ids.ravel()).to_numpy(dtype=object)
        other = names.reshape(found.ids.shape) != labels[todo, None]
        best[todo] = np.where(other, found.scores, -np.inf).max(axis=1)
        todo = todo[~other.any(axis=1)]
        if len(todo) and found.ids.shape[1] == len(gallery):
            raise GalleryError("the gallery holds validation classes only: a threshold cannot be chosen")
        k *= 4
    return best


def _best_of_own(vectors: Vectors, labels: npt.NDArray[np.object_]) -> Vectors:
    """(n,): the similarity of each image's nearest other image of its class; -inf where it is the only one."""
    own = Gallery.create(vectors, pd.DataFrame({"label": labels}))
    best = np.full(len(labels), -np.inf, np.float32)
    for label in set(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            found = own.search(own.vectors(rows), 1, {"label": str(label)}, exclude=rows)
            best[rows] = found.scores[:, 0]
    return best

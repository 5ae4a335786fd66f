"""How much the proxies and the neighbours of an image contradict its label, by models that have not seen that label.

The images are divided into folds. For each fold, a closed-form model is made from the others: whitening, one proxy for
each class, and the images themselves as neighbours. An image of the fold keeps the proxy of its own class and the
hardest proxies of other classes, as in the sub-graph of ProxyGML; only the classes that it keeps are compared.
"""

from contextlib import closing, nullcontext
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.feature_rows import FeatureRows, parts_of, scratch_array
from proxygml.auditing.folds import FOLDS, stratified_folds
from proxygml.auditing.references import references_of_classes
from proxygml.auditing.whitening import Whitening
from proxygml.console import track

KEPT_CLASSES = 20
"""Of other classes: so many hardest ones are compared with an image's own."""

NEIGHBORS = 3
"""Most similar images of a class, whose mean similarity counts as much as that of the proxy."""

SIMILARITIES_AT_A_TIME = 2**24

NO_SCORE = -2.0
"""That of a class which is not there: below all others."""


@dataclass(frozen=True, eq=False)
class Contradictions:
    """What speaks for an image's own class and for the best other one. Scores are sums of two cosines.

    Attributes:
        own_proxy: float32 (n,), the cosine to the proxy of its own class; NaN where no other image of that class is in
            another fold, so that nothing can be said.
        own_neighbors: float32 (n,), the mean cosine to the most similar images of its own class; NaN likewise.
        other: int64 (n,), the best other class; -1 where there is none.
        other_proxy, other_neighbors: float32 (n,), the same cosines of that class.
        classes: int32 (n, 1 + KEPT_CLASSES), those that it keeps, its own first; -1 where there are fewer.
        kept_scores: float32 (n, 1 + KEPT_CLASSES), of these classes; -2 where there is none.
        proxies: float32 (C, F), those of the last fold, in its whitened space; NaN for a class without one.
    """

    own_proxy: Vectors
    own_neighbors: Vectors
    other: Rows
    other_proxy: Vectors
    other_neighbors: Vectors
    classes: npt.NDArray[np.int32]
    kept_scores: Vectors
    proxies: Vectors

    @classmethod
    def empty(cls, count: int, num_classes: int, size: int) -> "Contradictions":
        """Of so many images, of which nothing is known yet."""
        unknown = [np.full(count, np.nan, np.float32) for _ in range(4)]
        classes = np.full((count, 1 + KEPT_CLASSES), -1, np.int32)
        scores = np.full((count, 1 + KEPT_CLASSES), NO_SCORE, np.float32)
        proxies = np.full((num_classes, size), np.nan, np.float32)
        return cls(
            unknown[0], unknown[1], np.full(count, -1, np.int64), unknown[2], unknown[3], classes, scores, proxies
        )

    @property
    def own(self) -> Vectors:
        """The score of the own class, in -2..2."""
        return self.own_proxy + self.own_neighbors

    @property
    def best_other(self) -> Vectors:
        """The score of the best other class, in -2..2."""
        return self.other_proxy + self.other_neighbors

    @property
    def margin(self) -> Vectors:
        """By how much the best other class has the higher score; NaN where one of the two scores is missing."""
        return self.best_other - self.own

    @property
    def scores(self) -> Vectors:
        """float32 (n, 1 + KEPT_CLASSES), of all classes that it keeps, falling; -2 where there are fewer."""
        falling: Vectors = -np.sort(-self.kept_scores, axis=1)
        return falling

    @property
    def gap(self) -> Vectors:
        """By how much the best of all classes is ahead of the second, whichever the label is."""
        best = -np.partition(-self.kept_scores, 1, axis=1)[:, :2]
        return best[:, 0] - best[:, 1]

    def or_earlier(self, earlier: "Contradictions") -> "Contradictions":
        """The same, with the values of an earlier pass for images without a margin."""
        missing = np.isnan(self.margin)
        for key in fields(self):
            if key.name == "proxies":
                continue
            getattr(self, key.name)[missing] = getattr(earlier, key.name)[missing]
        return self


def contradictions(
    features: FeatureRows,
    labels: Rows,
    num_classes: int,
    *,
    seed: int = 0,
    trusted: npt.NDArray[np.bool_] | None = None,
    units: Rows | None = None,
) -> Contradictions:
    """Those of all images: cross-fitted in folds, exact, a block at a time. Ours.

    Args:
        features: of n images.
        labels: int64 (n,) in 0..C-1.
        num_classes: C.
        seed: of the folds, and of the references of large classes.
        trusted: bool (n,), the images that models are made from; all of them if left out. Every image is judged.
        units: int64 (n,), the same number for images that may not judge each other.
    """
    found = Contradictions.empty(len(labels), num_classes, features.size)
    folds = stratified_folds(labels, seed, units=units)
    usable = np.ones(len(labels), bool) if trusted is None else trusted
    whitened, file = scratch_array(len(labels), features.size)
    with nullcontext() if file is None else closing(file):
        for fold in track(range(FOLDS), "Looking for labels that are contradicted"):
            judged = np.flatnonzero(folds == fold)
            training = np.flatnonzero((folds != fold) & usable)
            if len(judged) and len(training):
                _judge(features, labels, num_classes, judged, training, whitened, seed, found)
    return found


def _judge(
    features: FeatureRows,
    labels: Rows,
    num_classes: int,
    judged: Rows,
    training: Rows,
    whitened: Vectors,
    seed: int,
    found: Contradictions,
) -> None:
    """Fill in what is found of the judged images by a model of the training images."""
    whitening = Whitening.of(features, training, labels)
    for part in parts_of(np.sort(np.concatenate([judged, training]))):
        whitened[part] = whitening(features.take(part))
    proxies = _proxies(whitened, labels, training, num_classes)
    found.proxies[:] = proxies
    references = references_of_classes(labels, training, num_classes, seed)
    height = max(1, SIMILARITIES_AT_A_TIME // num_classes)
    for part in parts_of(judged, min(height, 2**14)):
        classes, to_proxies = _kept(whitened[part], labels[part], proxies)
        to_neighbors = _neighbor_similarity(whitened, part, classes, references)
        _fill(found, part, classes, to_proxies, to_neighbors)


def _proxies(whitened: Vectors, labels: Rows, training: Rows, num_classes: int) -> Vectors:
    """The direction of each class's mean, float32 (C, F); NaN for a class without images."""
    sums = torch.zeros(num_classes, whitened.shape[1])
    for part in parts_of(training):
        sums.index_add_(0, torch.from_numpy(labels[part]), torch.from_numpy(whitened[part]))
    proxies: Vectors = F.normalize(sums, dim=1).numpy()
    proxies[np.bincount(labels[training], minlength=num_classes) == 0] = np.nan
    return proxies


def _kept(vectors: Vectors, labels: Rows, proxies: Vectors) -> tuple[Rows, Vectors]:
    """The own class of each vector and its hardest others, (m, 1 + kept), -1 for none; and the cosines to them."""
    similarity = np.nan_to_num(vectors @ proxies.T, nan=-np.inf, copy=False)
    rows = np.arange(len(labels))
    own = similarity[rows, labels].copy()
    similarity[rows, labels] = -np.inf
    kept = torch.from_numpy(similarity).topk(min(KEPT_CLASSES, similarity.shape[1] - 1), dim=1)
    classes = np.concatenate([labels[:, None], kept.indices.numpy()], axis=1)
    cosines = np.concatenate([own[:, None], kept.values.numpy()], axis=1)
    absent = np.isneginf(cosines)
    return np.where(absent, -1, classes), np.where(absent, np.float32(np.nan), cosines)


def _neighbor_similarity(whitened: Vectors, part: Rows, classes: Rows, references: list[Rows]) -> Vectors:
    """The mean cosine to the most similar images of each kept class, float32 like `classes`; NaN for none."""
    result = np.full(classes.shape, np.nan, np.float32)
    flat = classes.ravel()
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]
    starts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    for pairs in np.split(order, starts[1:]) if len(order) else ():
        others = references[flat[pairs[0]]]
        vectors = whitened[others]
        count = min(NEIGHBORS, len(others))
        for some in parts_of(pairs, max(1, SIMILARITIES_AT_A_TIME // len(others))):
            similarity = whitened[part[some // classes.shape[1]]] @ vectors.T
            nearest = np.partition(similarity, len(others) - count, axis=1)[:, len(others) - count :]
            result.ravel()[some] = nearest.mean(axis=1)
    return result


def _fill(found: Contradictions, part: Rows, classes: Rows, to_proxies: Vectors, to_neighbors: Vectors) -> None:
    found.own_proxy[part], found.own_neighbors[part] = to_proxies[:, 0], to_neighbors[:, 0]
    scores = np.nan_to_num(to_proxies + to_neighbors, nan=NO_SCORE)
    found.classes[part, : scores.shape[1]], found.kept_scores[part, : scores.shape[1]] = classes, scores
    if classes.shape[1] == 1:
        return
    rows, best = np.arange(len(part)), 1 + scores[:, 1:].argmax(axis=1)
    found.other[part] = classes[rows, best]
    found.other_proxy[part], found.other_neighbors[part] = to_proxies[rows, best], to_neighbors[rows, best]

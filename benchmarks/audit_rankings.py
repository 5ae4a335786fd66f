"""Rankings of labels, the most doubtful first: ours, confident learning, disagreement of neighbours, and loss.

Every one gets the same vectors and the same labels. Confident learning (cleanlab) gets our own out-of-fold scores, of
all classes, as probabilities whose temperature fits the labels best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.evidence import Evidence
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.folds import FOLDS, stratified_folds
from proxygml.auditing.whitening import Whitening

NEIGHBORS = 10
TEMPERATURES = np.geomspace(1, 100, 41)
EPOCHS, BATCH = 15, 64

Doubt = npt.NDArray[np.floating]
"""(n,), higher where a label is more doubtful."""


def rows_of(vectors: Vectors) -> FeatureRows:
    return FeatureRows(vectors, np.arange(len(vectors)))


def ours(vectors: Vectors, labels: Rows, num_classes: int, seed: int) -> tuple[Doubt, Evidence]:
    """By the log-odds that a label is wrong."""
    evidence = Evidence.of(rows_of(vectors), labels, num_classes, seed)
    return np.nan_to_num(evidence.doubt, nan=-np.inf), evidence


def out_of_fold_scores(vectors: Vectors, labels: Rows, num_classes: int, seed: int) -> Vectors:
    """The scores of our first pass, of every class, float32 (n, C): by models that have not seen the label."""
    folds, rows = stratified_folds(labels, seed), rows_of(vectors)
    scores = np.full((len(labels), num_classes), -2, np.float32)
    for fold in range(FOLDS):
        judged, training = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        whitening = Whitening.of(rows, training, labels)
        images, known = whitening(rows.take(judged)), whitening(rows.take(training))
        for label in range(num_classes):
            members = known[labels[training] == label]
            if len(members):
                mean = members.mean(axis=0)
                similarity = images @ members.T
                nearest = -np.partition(-similarity, min(3, len(members)) - 1, axis=1)[:, :3]
                scores[judged, label] = images @ (mean / np.linalg.norm(mean)) + nearest.mean(axis=1)
    return scores


def probabilities(scores: Vectors, labels: Rows) -> npt.NDArray[np.float64]:
    """The softmax of the scores, (n, C), at the temperature at which the labels are most likely."""
    rows = np.arange(len(labels))

    def softmax(scale: float) -> npt.NDArray[np.float64]:
        powers = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)).astype(float))
        result: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return result

    best = min(TEMPERATURES, key=lambda scale: -np.log(softmax(scale)[rows, labels] + 1e-300).mean())
    return softmax(float(best))


def cleanlab_rankings(chances: npt.NDArray[np.float64], labels: Rows) -> dict[str, Doubt]:
    """By the two scores of cleanlab, and with what its confident learning calls an issue put first."""
    from cleanlab.filter import find_label_issues  # noqa: PLC0415  (a dependency of this benchmark alone)
    from cleanlab.rank import get_label_quality_scores  # noqa: PLC0415

    confidence = get_label_quality_scores(labels, chances, method="self_confidence")
    margin = get_label_quality_scores(labels, chances, method="normalized_margin")
    issues = find_label_issues(labels, chances, filter_by="prune_by_noise_rate", n_jobs=1)
    return {
        "cleanlab, self-confidence": -confidence,
        "cleanlab, normalized margin": -margin,
        "cleanlab, confident learning": issues.astype(float) - confidence,
    }


def neighbor_disagreement(vectors: Vectors, labels: Rows) -> Doubt:
    """The share of the nearest images, weighted by their cosine, that have another label."""
    doubt = np.empty(len(labels))
    for start in range(0, len(labels), 1024):
        similarity = torch.from_numpy(vectors[start : start + 1024] @ vectors.T)
        here = torch.arange(len(similarity))
        similarity[here, start + here] = -2
        found = similarity.topk(NEIGHBORS, dim=1)
        weights = found.values.clamp(min=0).numpy()
        same = labels[found.indices.numpy()] == labels[start : start + 1024, None]
        doubt[start : start + 1024] = 1 - (weights * same).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return doubt


def mean_loss(vectors: Vectors, labels: Rows, num_classes: int, seed: int) -> Doubt:
    """The loss of each image, averaged over the epochs of a linear classifier that trains on all labels.

    Wrong labels are learned last (Huang et al. 2019, O2U-Net; Pleiss et al. 2020, whose margin is the loss's kin).
    """
    torch.manual_seed(seed)
    images = torch.from_numpy(vectors - vectors.mean(axis=0))
    images /= images.std()
    targets = torch.from_numpy(labels)
    layer = torch.nn.Linear(images.shape[1], num_classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=1e-4)
    doubt = torch.zeros(len(labels))
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), BATCH):
            batch = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(images[batch]), targets[batch])
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            doubt += torch.cat(
                [F.cross_entropy(layer(images[part]), targets[part], reduction="none") for part in _parts(len(labels))]
            )
    return (doubt / EPOCHS).numpy()


def _parts(count: int) -> list[slice]:
    return [slice(start, start + 4096) for start in range(0, count, 4096)]


Noise = Callable[[Vectors, Rows, int, np.random.Generator], Rows]


def at_random(vectors: Vectors, labels: Rows, num_classes: int, random: np.random.Generator) -> Rows:
    """For each image, another class, each as likely."""
    return (labels + random.integers(1, num_classes, len(labels))) % num_classes


def nearest_class(vectors: Vectors, labels: Rows, num_classes: int, random: np.random.Generator) -> Rows:
    """For each image, the class whose mean is most like that of its own."""
    means = np.zeros((num_classes, vectors.shape[1]), np.float32)
    np.add.at(means, labels, vectors)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    similarity = means @ means.T
    np.fill_diagonal(similarity, -2)
    nearest: Rows = similarity.argmax(axis=1)[labels]
    return nearest


NOISES: dict[str, Noise] = {"random": at_random, "nearest": nearest_class}


def with_noise(
    vectors: Vectors, labels: Rows, num_classes: int, kind: str, share: float, seed: int
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Labels of which a share is changed, and which they are."""
    random = np.random.default_rng(seed)
    wrong = random.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[wrong] = NOISES[kind](vectors, labels, num_classes, random)[wrong]
    return changed, changed != labels

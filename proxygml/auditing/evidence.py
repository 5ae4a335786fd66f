"""The evidence on all labels of a catalog: contradictions, from two passes, and how likely they make a wrong label."""

from dataclasses import dataclass

import numpy as np

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.contradiction import Contradictions, contradictions
from proxygml.auditing.copies import DUPLICATE_COSINE, copy_groups, copy_weights, units_of
from proxygml.auditing.feature_rows import FeatureRows
from proxygml.auditing.probability import Doubles, LabelNoise
from proxygml.auditing.ranking import log_odds

HALF = 0.5
"""Of an image: sums of weights are rounded to whole images."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about n labels.

    Attributes:
        labels: int64 (n,) in 0..C-1.
        found: what speaks for each label and against it.
        noise: the share of wrong labels.
        probability: float64 (n,), that a label is wrong, in 0..1; NaN where it cannot be judged.
        doubt: float64 (n,), the log-odds that a label is wrong, up to a constant, by which labels are ranked; NaN
            likewise.
        groups: of near-duplicates, each int64 (m,) rising.
    """

    labels: Rows
    found: Contradictions
    noise: LabelNoise
    probability: Doubles
    doubt: Doubles
    groups: tuple[Rows, ...] = ()

    @property
    def margin(self) -> Vectors:
        """float32 (n,), by how much the best other class has the higher score; NaN where a label cannot be judged."""
        return self.found.margin

    @property
    def order(self) -> Rows:
        """int64 (n,), the images from the most to the least doubtful label; last those that cannot be judged."""
        return np.argsort(-np.nan_to_num(self.doubt, nan=-np.inf), kind="stable")

    @classmethod
    def of(
        cls,
        features: FeatureRows,
        labels: Rows,
        num_classes: int,
        seed: int = 0,
        duplicate_cosine: float = DUPLICATE_COSINE,
    ) -> "Evidence":
        """That of all images. Ours.

        The second pass makes its models without the labels that the first contradicts most, as many as it takes for
        wrong: wrong labels draw the proxies of their classes towards them. Near-duplicates of one label do not judge
        each other: a series of photos that got a wrong label together would confirm itself. The doubt is the mean of
        both passes, whose folds are different ones, so that chance in the folds evens out.

        Args:
            features: of n images.
            labels: int64 (n,) in 0..C-1.
            num_classes: C.
            seed: of the folds.
            duplicate_cosine: from which two images are near-duplicates.
        """
        groups = copy_groups(features, duplicate_cosine, seed)
        units = units_of(labels, groups)
        found = contradictions(features, labels, num_classes, seed=seed, units=units)
        weights = copy_weights(len(labels), groups)
        noise = _noise(found, weights)
        doubt = log_odds(found, labels)
        doubtful = np.argsort(-np.nan_to_num(doubt, nan=-np.inf), kind="stable")
        doubtful = doubtful[weights[doubtful].cumsum() <= noise.share * weights.sum() + HALF]
        doubtful = doubtful[np.nan_to_num(found.margin[doubtful], nan=-1) > 0]
        trusted = np.ones(len(labels), bool)
        if len(doubtful):
            trusted[doubtful] = False
            again = contradictions(features, labels, num_classes, seed=seed + 1, trusted=trusted, units=units)
            found = again.or_earlier(found)
            noise = _noise(found, weights)
            doubt = (doubt + log_odds(found, labels, np.flatnonzero(trusted))) / 2
        probability = _in_order(noise.probability(found.scores, found.margin, weights), doubt)
        return cls(labels, found, noise, probability, doubt, tuple(groups))


def _in_order(probability: Doubles, doubt: Doubles) -> Doubles:
    """The probabilities, evened out so that they never rise as the doubt falls; their sum stays."""
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    known = np.flatnonzero(~np.isnan(doubt))
    if len(known) and probability[known].any():
        probability = probability.copy()
        probability[known] = IsotonicRegression().fit_transform(doubt[known], probability[known])
    return probability


def _noise(found: Contradictions, weights: Doubles) -> LabelNoise:
    margin = found.margin
    judged = ~np.isnan(margin)
    return LabelNoise.fit(found.gap[judged], margin[judged] > 0, weights[judged])

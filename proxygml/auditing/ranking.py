"""In which order labels are doubted: the odds that a label is wrong, given where wrong labels seem to come from.

The scores of the classes that an image keeps become probabilities, by the masked softmax of the loss. A wrong label is
any other class with equal chance, or rather one that is similar to the right class. How much rather is one number, and
the labels say which number makes them most likely. Ours; Patrini et al. 2017 describe noise by a matrix of all classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Rows, Vectors
from proxygml.auditing.contradiction import NO_SCORE, Contradictions
from proxygml.auditing.feature_rows import parts_of
from proxygml.auditing.probability import Doubles

TEMPERATURES = np.geomspace(1, 100, 41)
"""Factors of the scores that are tried."""

PREFERENCES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""For similar classes, by standard deviations of the similarity: 0 is none, 8 almost the most similar one alone."""

SAFETY = 5.0
"""By so much must the log-likelihood rise before a preference is believed: a wrong one costs more than none."""

SAMPLED = 20_000
"""Images, evenly spaced, that choose the factor."""

ROUNDS = 30
MOST_COMPARED = 20_000
"""Classes that are compared with each other; of more, wrong labels are taken to be any class with equal chance."""

SIMILARITIES_AT_A_TIME = 2**22


def log_odds(found: Contradictions, labels: Rows, trusted: Rows | None = None) -> Doubles:
    """Of each label's being wrong, up to a constant, float64 (n,); NaN where a label cannot be judged.

    Args:
        found: what speaks for the classes that each image keeps.
        labels: int64 (n,).
        trusted: images whose labels choose the temperature; all where left out.
    """
    odds = np.full(len(labels), np.nan)
    known = np.flatnonzero(~np.isnan(found.margin))
    if not len(known):
        return odds
    chosen = known if trusted is None else np.intersect1d(known, trusted)
    scale = _temperature(found.kept_scores, chosen if len(chosen) else known)
    closeness = _Closeness.of(found.proxies)
    own, reached = np.zeros(len(known)), np.zeros((closeness.totals.shape[1], len(known)))
    for part in parts_of(np.arange(len(known))):
        own[part], others = _chances(found.kept_scores[known[part]], scale)
        for place, row in enumerate(reached):
            row[part] = (others * closeness.weights(found.classes[known[part]], labels[known[part]], place)).sum(axis=1)
    likelihood = [_likelihood(own, row) - (SAFETY if place else 0.0) for place, row in enumerate(reached)]
    odds[known] = np.log(reached[int(np.argmax(likelihood))] + 1e-300) - np.log(own + 1e-300)
    return odds


def _temperature(scores: Vectors, places: Rows) -> float:
    """The factor of the scores at which the labels of these images, in the first column, are most likely."""
    sample = scores[places[np.linspace(0, len(places) - 1, min(len(places), SAMPLED)).astype(int)]]

    def loss(scale: float) -> float:
        own, _ = _chances(sample, scale)
        return -float(np.log(own + 1e-300).mean())

    return float(min(TEMPERATURES, key=loss))


def _chances(scores: Vectors, scale: float) -> tuple[Doubles, Doubles]:
    """Softmax over the kept classes: of the own one (m,), and of the others (m, K)."""
    powers = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)).astype(float))
    powers[scores <= NO_SCORE] = 0
    powers /= powers.sum(axis=1, keepdims=True)
    return powers[:, 0], powers[:, 1:]


def _likelihood(own: Doubles, reached: Doubles) -> float:
    """The largest log-likelihood of the labels, over the share of wrong ones."""
    share = 0.1
    for _ in range(ROUNDS):  # expectation and maximisation
        share = float((share * reached / (share * reached + (1 - share) * own + 1e-300)).mean())
    return float(np.log(share * reached + (1 - share) * own + 1e-300).sum())


@dataclass(frozen=True, eq=False)
class _Closeness:
    """How similar classes are, by their proxies: in standard deviations of each class's similarity to the others.

    Attributes:
        proxies: float32 (C, F), zeros for a class without one.
        mean, spread: float64 (C,), of the similarity of a class to the others.
        totals: float64 (C, P), the log of the sum that makes the weights of a class add up to 1, for each preference;
            of too many classes for the first preference alone.
    """

    proxies: Vectors
    mean: Doubles
    spread: Doubles
    totals: Doubles

    @classmethod
    def of(cls, proxies: Vectors) -> "_Closeness":
        proxies = np.nan_to_num(proxies)
        count = len(proxies)
        mean, spread = np.zeros(count), np.ones(count)
        totals = np.full((count, len(PREFERENCES)), np.log(max(count - 1, 1)))
        if count > MOST_COMPARED:
            return cls(proxies, mean, spread, totals[:, :1])
        for part in parts_of(np.arange(count), max(1, SIMILARITIES_AT_A_TIME // count)):
            similarity = (proxies[part] @ proxies.T).astype(float)
            similarity[np.arange(len(part)), part] = np.nan
            mean[part] = np.nanmean(similarity, axis=1)
            spread[part] = np.maximum(np.nanstd(similarity, axis=1), 1e-6)
            far = (similarity - mean[part, None]) / spread[part, None]
            for place, preference in enumerate(PREFERENCES):
                most = preference * np.nanmax(far, axis=1)
                totals[part, place] = most + np.log(np.nansum(np.exp(preference * far - most[:, None]), axis=1))
        return cls(proxies, mean, spread, totals)

    def weights(self, classes: npt.NDArray[np.int32], labels: Rows, place: int) -> Doubles:
        """The chance that a wrong label of an image of each class is the label it has, (m, K), for one preference.

        Args:
            classes: int (m, 1 + K), those that each image keeps, its own first, -1 for none.
            labels: int64 (m,).
            place: of the preference.
        """
        others = classes[:, 1:]
        target = self.proxies[labels]
        similarity = np.stack(
            [(self.proxies[column] * target).sum(axis=1) for column in others.T], axis=1
        )  # a column at a time: all at once would take K times the memory
        far = np.where(others < 0, 0.0, (similarity - self.mean[others]) / self.spread[others])
        return np.where(others < 0, 0.0, np.exp(PREFERENCES[place] * far - self.totals[others, place]))

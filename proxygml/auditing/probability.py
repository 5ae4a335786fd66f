"""From margins to probabilities: how many labels are wrong, how sure that is, and which ones.

The gap between the two best classes of an image does not depend on its label. Where labels are right, a label differs
from the best class less and less often as the gap grows: in logistic fashion. Wrong labels differ at any gap. So the
share of labels that still differ where the gap is wide is the share of wrong labels, whatever they were changed to.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxygml.arrays import Vectors

BINS = 400
"""Of images with gaps of about the same width."""

DROP_95 = 1.92
"""By so much the log-likelihood falls to the ends of a 95% interval of one parameter: half a chi-squared quantile."""

CLOSENESS = (*np.linspace(1, 0, 21).tolist(),)
"""Parts of the slope that are tried for the preference of right labels for closer classes."""

MOST_OFFSET = 4.0
"""At a gap of 0, at most so many (logistic, 98%) labels of images between many classes differ from the best one."""

AT_WIDEST = 3.0
"""Where the gap is widest, at most so many (logistic, 5%) right labels differ from the best class."""

FEWEST = 1.0
"""Labels that may be wrong where the most likely share is 0: one far from all others is not explained away."""

CAUTION = 5.0
"""By so much more right labels are expected there: one must be far enough that there is a tenth of them or less."""

SAMPLED = 50_000
"""Images, evenly spaced, that stand for all where it is computed how right labels differ."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelNoise:
    """The share of wrong labels, and the probability that a label which differs from the best class is wrong.

    Attributes:
        share: the most likely share of wrong labels, in 0..1.
        low, high: of its 95% interval, by profile likelihood.
        slope, offset: of the logistic curve by which right labels differ from the best class.
    """

    share: float
    low: float
    high: float
    slope: float
    offset: float

    @classmethod
    def fit(cls, gap: Vectors, differs: npt.NDArray[np.bool_], weights: Doubles | None = None) -> "LabelNoise":
        """The most likely one. Ours: a logistic curve with a floor, fitted to how often labels differ at each gap.

        Args:
            gap: float (n,), 0 or more, of the images that can be judged.
            differs: bool (n,), whether the label is another than the best class.
            weights: float64 (n,), how much each image counts; 1 if left out. Images that are nearly the same are one
                observation together: they lie at the same gap, and their labels were given together.
        """
        if not len(gap):
            return cls(0.0, 0.0, 1.0, 0.0, 0.0)
        order = np.argsort(gap, kind="stable")
        groups = [group for group in np.array_split(order, min(BINS, len(order))) if len(group)]
        width = max(float(np.std(gap)), 1e-6)
        weights = np.ones(len(gap)) if weights is None else weights
        counts = np.array([weights[group].sum() for group in groups], float)
        wrong = np.array([(weights * differs)[group].sum() for group in groups], float)
        middle = np.array([gap[group].mean() for group in groups], float) / width
        shares = np.concatenate([[0.0], np.geomspace(1e-5, 0.95, 40)])
        curve = [_profile(share, middle, counts, wrong) for share in shares]
        near = int(np.argmax([value for value, _, _ in curve]))
        finer = np.linspace(shares[max(near - 1, 0)], shares[min(near + 1, len(shares) - 1)], 21)[1:-1]
        curve += [_profile(share, middle, counts, wrong) for share in finer]
        order = np.argsort(np.concatenate([shares, finer]), kind="stable")
        shares, curve = np.concatenate([shares, finer])[order], [curve[place] for place in order]
        likelihood = np.array([value for value, _, _ in curve])
        best = int(likelihood.argmax())
        inside = np.flatnonzero(likelihood >= likelihood[best] - DROP_95)
        _, slope, offset = curve[best]
        low, high = shares[inside[0]], shares[min(inside[-1] + 1, len(shares) - 1)]
        return cls(float(shares[best]), float(low), float(high), slope / width, offset)

    def probability(self, scores: Vectors, margin: Vectors, weights: Doubles | None = None) -> Doubles:
        """That a label is wrong, in 0..1, by the margin of the best other class over it; never less with a wider one.

        A local false discovery rate (Efron 2008): how many more labels differ by such a margin than right labels would.
        0 where the label is the best class. Also where the share of wrong labels is 0, one may stand out.

        Args:
            scores: float (n, R), those of the best R classes of each image, falling.
            margin: float (n,); NaN, where a label cannot be judged, stays so.
            weights: float64 (n,), how much each image counts; 1 if left out.
        """
        known = ~np.isnan(margin)
        probability = np.where(known, 0.0, np.nan)
        differs = known & (margin > 0)
        if not differs.any():
            return probability
        weights = np.ones(len(margin)) if weights is None else weights
        places = np.flatnonzero(known)
        sample = places[np.linspace(0, len(places) - 1, min(len(places), SAMPLED)).astype(int)]
        behind = (scores[sample, :1] - scores[sample, 1:]).astype(float)
        observed, counted = margin[differs].astype(float), weights[differs]
        each = weights[sample] * (weights[places].sum() / weights[sample].sum())
        expected = self._right(behind, each, observed, counted)
        probability[differs] = _excess(behind.ravel(), expected.ravel(), observed, counted)
        return probability

    def _right(self, behind: Doubles, each: Doubles, margin: Doubles, counted: Doubles) -> Doubles:
        """How many right labels are expected to be each of the other classes of an image, (s, R), 0 or more.

        They are rather the closer classes: as much rather as possible, while no more labels than the wrong ones are
        left to be explained at any margin.

        Args:
            behind: (s, R), by how much the other classes are behind the best one, of a sample of the images.
            each: (s,), how many images each of them stands for.
            margin: (m,), by how much the class of a label is, of all images whose label differs.
            counted: (m,), how much each of those counts.
        """
        differing = (1 - self.share) * _logistic(-(self.slope * behind[:, :1] + self.offset)) * each[:, None]
        most = self.share * float(each.sum())
        if most < FEWEST:
            most, differing = FEWEST, CAUTION * differing
        most += math.sqrt(most)  # as much as chance adds
        edges = np.quantile(margin, np.linspace(0, 1, 50))
        observed = _at_least(margin, counted, edges)
        for closeness in CLOSENESS:
            likelihood = np.exp(-closeness * self.slope * (behind - behind[:, :1]))
            expected: Doubles = differing * likelihood / likelihood.sum(axis=1, keepdims=True)
            if (observed - _at_least(behind.ravel(), expected.ravel(), edges)).max() <= most:
                break
        return expected


def _at_least(values: Doubles, weights: Doubles, edges: Doubles) -> Doubles:
    """The weights, summed, of the values from each edge on."""
    counts: Doubles = np.histogram(values, np.append(edges, np.inf), weights=weights)[0][::-1].cumsum()[::-1]
    return counts


def _excess(places: Doubles, expected: Doubles, margin: Doubles, counted: Doubles) -> Doubles:
    """The share of labels, at each margin at which labels differ, that right labels do not explain: (m,) in 0..1.

    Args:
        places: (k,), margins at which right labels are expected to differ.
        expected: (k,), how many at each.
        margin: (m,), at which labels differ.
        counted: (m,), how much each of those counts.
    """
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    values = np.concatenate([np.ones(len(places)), np.zeros(len(margin))])
    weights = np.concatenate([expected, counted])
    fitted = IsotonicRegression(increasing=False, out_of_bounds="clip")
    fitted.fit(np.concatenate([places, margin]), values, sample_weight=weights)
    right = fitted.predict(margin).clip(0, 1 - 1e-9)
    return np.asarray(np.clip(1 - right / (1 - right), 0, 1), np.float64)


def _logistic(values: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def _profile(share: float, gap: Doubles, counts: Doubles, wrong: Doubles) -> tuple[float, float, float]:
    """The largest log-likelihood at this share of wrong labels, with the slope and offset that give it."""
    from scipy.optimize import minimize  # noqa: PLC0415

    def slope_and_offset(parameters: Doubles) -> tuple[float, float]:
        # An image between two classes, whose gap is 0, differs as often as not, or more often: the offset is below 0.
        offset = min(math.exp(min(parameters[1], 50)), MOST_OFFSET)
        # And where the gap is widest, right labels hardly differ. Without these bounds, a curve that does not fall
        # could explain all labels that differ.
        return (AT_WIDEST + offset) / widest + math.exp(min(parameters[0], 50)), -offset

    def loss(parameters: Doubles) -> float:
        slope, offset = slope_and_offset(parameters)
        differs = share + (1 - share) * _logistic(-(slope * gap + offset))
        differs = np.clip(differs, 1e-12, 1 - 1e-12)
        return -float((wrong * np.log(differs) + (counts - wrong) * np.log1p(-differs)).sum())

    widest = max(float(gap.max()), 1e-9)
    starts = ([0.0, -1.0], [2.0, -1.0])
    fitted = min((minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda found: found.fun)
    return -float(fitted.fun), *slope_and_offset(fitted.x)

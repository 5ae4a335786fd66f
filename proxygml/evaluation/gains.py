"""By how much one set of embeddings retrieves better than another of the same images, with intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from proxygml.evaluation.bootstrap import gains_over_classes
from proxygml.evaluation.estimates import Estimate, Evaluation
from proxygml.evaluation.inputs import Labels

Gain = Mapping[str, Estimate]
"""By how much each figure is better, -1..1, under its name in `Evaluation.figures`."""


def gains(after: Evaluation, before: Evaluation, labels: Labels, bootstrap: int = 1000, seed: int = 0) -> Gain:
    """The differences of the figures of two evaluations of the same queries: ours.

    Each resample draws the same classes for both, so most of what makes a figure uncertain, how hard the classes are,
    cancels: an interval is narrower than those of the two figures, and one without 0 is a difference that counts.

    Args:
        after, before: made by `evaluate` with the same labels, rules and `recall_at`; not read from a file.
        labels: n, those that both were made with.
        bootstrap: the number of resamples.
        seed: of the bootstrap.

    Returns:
        Of Recall at each K, MAP@R and R-precision; above 0 where `after` is better.
    """
    assert after.scores is not None and before.scores is not None
    ks = tuple(after.recall)
    codes = np.asarray(labels)[after.scores.index]
    found = gains_over_classes(after.scores, before.scores, codes, ks, bootstrap, seed)
    return dict(zip([*(f"Recall@{k}" for k in ks), "MAP@R", "R-precision"], found, strict=True))

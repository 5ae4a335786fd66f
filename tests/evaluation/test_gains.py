"""By how much one set of embeddings is better than another of the same images."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from proxygml.evaluation.estimates import Evaluation
from proxygml.evaluation.gains import gains
from proxygml.evaluation.metrics import evaluate

NAMES = ["Recall@1", "Recall@4", "MAP@R", "R-precision"]


def clouds(noise: float, classes: int = 20, each: int = 6) -> tuple[np.ndarray, list[str]]:
    """A few images of each class, one that has no other image, and how far they lie from their class's centre."""
    random = np.random.default_rng(3)
    labels = np.append(np.arange(classes * each) % classes, classes)
    centres = random.normal(size=(classes + 1, 5))
    return centres[labels] + noise * random.normal(size=(len(labels), 5)), [f"c{label}" for label in labels]


def judged(noise: float) -> Evaluation:
    return evaluate(*clouds(noise), recall_at=(1, 4), nmi=False)


def test_gains_are_the_differences_of_the_figures_with_intervals_of_the_differences() -> None:
    """Held against a plain computation: each resample draws classes, and both means are taken over their queries."""
    labels = np.array(clouds(0)[1])
    after, before = judged(0.3), judged(0.9)
    found = gains(after, before, labels, bootstrap=300, seed=5)
    assert list(found) == NAMES
    assert after.scores is not None and before.scores is not None
    classes = np.unique(labels[after.scores.index])
    of_class = {name: np.flatnonzero(labels[after.scores.index] == name) for name in classes}
    random, drawn = np.random.default_rng(5), []
    for _ in range(300):
        rows = np.concatenate([of_class[classes[number]] for number in random.integers(20, size=20)])
        drawn.append([np.mean(each[rows]) for each in _differences(after, before)])
    for column, (name, gain) in enumerate(found.items()):
        assert gain.value == pytest.approx(after.figures()[name].value - before.figures()[name].value)
        low, high = np.percentile(np.array(drawn)[:, column], [2.5, 97.5])
        assert (gain.low, gain.high) == (pytest.approx(low), pytest.approx(high))
    assert found["MAP@R"].low > 0
    lost = gains(before, after, labels, bootstrap=300, seed=5)["MAP@R"]
    assert (lost.value, lost.low, lost.high) == pytest.approx(
        (-found["MAP@R"].value, -found["MAP@R"].high, -found["MAP@R"].low)
    )


def _differences(after: Evaluation, before: Evaluation) -> list[np.ndarray]:
    one, other = after.scores, before.scores
    assert one is not None and other is not None
    recalls = [(one.first_positive < k).astype(float) - (other.first_positive < k) for k in (1, 4)]
    return [*recalls, one.average_precision - other.average_precision, one.r_precision - other.r_precision]


def test_the_interval_of_a_gain_is_narrower_than_that_of_the_figures() -> None:
    after, before = judged(0.55), judged(0.6)
    gain = gains(after, before, clouds(0)[1])["MAP@R"]
    assert gain.high - gain.low < 0.5 * (after.map_at_r.high - after.map_at_r.low)
    same = gains(after, after, clouds(0)[1])
    assert {(each.value, each.low, each.high) for each in same.values()} == {(0.0, 0.0, 0.0)}


def test_the_table_shows_gains_on_a_line_each_in_80_characters() -> None:
    after, before = judged(0.9), judged(0.3)
    gain = gains(after, before, clouds(0)[1])
    after = replace(after, nmi=after.map_at_r)  # which has no gain
    console = Console(width=80, file=StringIO())
    console.print(after.table(before, gain))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for name in NAMES:
        assert any(name in line and gain[name].in_points() in line for line in lines)
    assert gain["MAP@R"].in_points().startswith("-")

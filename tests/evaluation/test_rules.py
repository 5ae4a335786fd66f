"""Sequences, cameras, junk and distractors, held against published protocols written out plainly."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxygml.errors import UserError
from proxygml.evaluation import metrics
from proxygml.evaluation.metrics import Evaluation, evaluate, nearest, score_queries

KS = (1, 2, 5, 10, 1000)
seeds = st.integers(0, 2**32 - 1)
limits = st.sampled_from([1, 12_000, 40_000, metrics.CPU_MEMORY_LIMIT])


@dataclass
class Plain:
    """What a protocol says of each query that it scores."""

    recall: dict[int, list[bool]] = field(default_factory=lambda: {k: [] for k in KS})
    average_precision: list[float] = field(default_factory=list)
    map_at_r: list[float] = field(default_factory=list)
    r_precision: list[float] = field(default_factory=list)

    def add(self, hits: np.ndarray) -> None:
        """Enter a query whose ranking, without what does not count, holds matches where `hits` is true."""
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        matches = hits.sum()
        for k in KS:
            self.recall[k].append(bool(hits[:k].any()))
        self.average_precision.append((precision * hits).sum() / matches if matches else 0.0)
        self.map_at_r.append((precision * hits)[:matches].sum() / matches if matches else 0.0)
        self.r_precision.append(hits[:matches].mean() if matches else 0.0)


def cosine(embeddings: np.ndarray) -> np.ndarray:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit @ unit.T


def market1501(embeddings, labels, camera, is_query, is_gallery) -> Plain:
    """Market-1501's protocol: gallery images of the query's identity and camera, and those of identity -1, are taken
    out of the ranking; identity 0 stays in it; a query without a match left is skipped."""
    similarity, result = cosine(embeddings), Plain()
    for query in np.flatnonzero(is_query & (labels > 0)):
        ranking = sorted(np.flatnonzero(is_gallery), key=lambda image: -similarity[query, image])
        kept = [
            image
            for image in ranking
            if labels[image] != -1 and not (labels[image] == labels[query] and camera[image] == camera[query])
        ]
        hits = np.array([labels[image] == labels[query] for image in kept], dtype=bool)
        if hits.any():
            result.add(hits)
    return result


def open_metric_learning(embeddings, labels, sequence, is_query, is_gallery) -> Plain:
    """Its rule: the query itself and all images of its sequence are taken out of the ranking; a query without a match
    left counts as not found."""
    similarity, result = cosine(embeddings), Plain()
    for query in np.flatnonzero(is_query):
        ranking = sorted(np.flatnonzero(is_gallery), key=lambda image: -similarity[query, image])
        kept = [image for image in ranking if image != query and sequence[image] != sequence[query]]
        result.add(np.array([labels[image] == labels[query] for image in kept], dtype=bool))
    return result


def agrees(found: Evaluation, expected: Plain) -> None:
    assert found.num_queries == len(expected.map_at_r)
    assert {k: found.recall[k].value for k in KS} == pytest.approx({k: np.mean(expected.recall[k]) for k in KS})
    assert found.map_at_r.value == pytest.approx(np.mean(expected.map_at_r), abs=1e-6)
    assert found.r_precision.value == pytest.approx(np.mean(expected.r_precision), abs=1e-6)
    assert found.mean_average_precision is not None
    assert found.mean_average_precision.value == pytest.approx(np.mean(expected.average_precision), abs=1e-6)


def evaluated(expected: Plain, embeddings, labels, limit: int, rules: dict[str, np.ndarray]) -> Evaluation | None:
    """What `evaluate` finds, the same with the whole ranking and without, and as a protocol says. None where no query
    finds anything, which is refused."""
    if not any(expected.recall[1000]):
        with pytest.raises(UserError):
            evaluate(embeddings, labels, KS, nmi=False, memory_limit=limit, **rules)
        return None
    whole, found = (
        evaluate(
            embeddings, labels, KS, nmi=False, memory_limit=limit, bootstrap=2,
            mean_average_precision=whole_ranking, **rules,
        )
        for whole_ranking in (True, False)
    )  # fmt: skip
    agrees(whole, expected)
    assert found.recall == whole.recall
    assert found.map_at_r.value == pytest.approx(whole.map_at_r.value)
    return found


def randomly(seed: int, count: int, classes: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Embeddings whose similarities are all different, around a centre for each class, and labels 1..classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(1, classes + 1, size=count)
    centres = generator.standard_normal((classes + 1, 24))
    return generator, centres[labels] + 1.5 * generator.standard_normal((count, 24)), labels


@settings(max_examples=60, deadline=None)
@given(seed=seeds, count=st.integers(10, 150), classes=st.integers(1, 40), cameras=st.integers(1, 6), limit=limits)
def test_the_protocol_of_market1501(seed, count, classes, cameras, limit):
    generator, embeddings, labels = randomly(seed, count, classes)
    kind = generator.random(count)
    labels = np.where(kind < 0.1, -1, np.where(kind < 0.3, 0, labels))
    camera = generator.integers(cameras, size=count)
    is_query = generator.random(count) < 0.4
    expected = market1501(embeddings, labels, camera, is_query, ~is_query)
    given_rules = {
        "is_query": is_query, "is_gallery": ~is_query, "camera": camera, "is_junk": labels == -1,
        "is_distractor": labels == 0,
    }  # fmt: skip
    found = evaluated(expected, embeddings, labels, limit, given_rules)
    if found is None:
        return
    assert found.num_gallery == (~is_query & (labels != -1)).sum()
    assert found.rules.get("junk_images", 0) == (labels == -1).sum()


@settings(max_examples=80, deadline=None)
@given(
    seed=seeds, count=st.integers(4, 120), classes=st.integers(1, 30), across=st.booleans(), masked=st.booleans(),
    limit=limits,
)  # fmt: skip
def test_the_sequences_of_open_metric_learning(seed, count, classes, across, masked, limit):
    generator, embeddings, labels = randomly(seed, count, classes)
    sequence = generator.integers(1 + count // 4, size=count)
    if not across:  # each sequence of one class, as in most tables
        sequence = sequence * 100 + labels
    is_query, is_gallery = generator.random((2, count)) < 0.7 if masked else np.ones((2, count), bool)
    alone = np.array([((labels == label) & is_gallery).sum() for label in labels]) - is_gallery == 0
    is_query = is_query & ~alone  # open-metric-learning refuses a query whose class is not in the gallery
    expected = open_metric_learning(embeddings, labels, sequence, is_query, is_gallery)
    rules = {"is_query": is_query, "is_gallery": is_gallery, "sequence": sequence.astype(str)}
    found = evaluated(expected, embeddings, labels, limit, rules)
    if found is None:
        return
    missed = sum(not found_at_all for found_at_all in expected.recall[1000])
    assert found.rules["queries_with_matches_in_own_sequence_only"] == missed


@settings(max_examples=40, deadline=None)
@given(seed=seeds, count=st.integers(20, 90), limit=limits)
def test_ties_sequences_and_cameras_together(seed, count, limit):
    """Similarities are whole numbers and mostly tied: of equals, the first of the gallery that may answer is first."""
    generator = np.random.default_rng(seed)
    embeddings = generator.choice([-1.0, 1.0], size=(count, 4)).astype(np.float32)
    labels, camera, sequence = generator.integers(6, size=(3, count))
    sequence = np.where(sequence == 0, None, sequence)  # some have none
    scores = score_queries(embeddings, labels, camera=camera, sequence=sequence, memory_limit=limit)
    similarity = embeddings @ embeddings.T
    for query, first, average in zip(scores.index, scores.first_positive, scores.average_precision, strict=True):
        others = [
            image
            for image in range(count)
            if image != query
            and not (sequence[query] is not None and sequence[image] == sequence[query])
            and not (labels[image] == labels[query] and camera[image] == camera[query])
        ]
        ranking = sorted(others, key=lambda image: -similarity[query, image])
        plain = Plain()
        plain.add(np.array([labels[image] == labels[query] for image in ranking], dtype=bool))
        assert average == pytest.approx(plain.map_at_r[0], abs=1e-6)
        hits = [rank for rank, image in enumerate(ranking) if labels[image] == labels[query]]
        assert first == (hits[0] if hits else np.iinfo(np.int64).max)


EMBEDDINGS = np.array([[1.0, 0], [1, 0.1], [1, 0.3], [0, 1]])


def test_an_images_own_sequence_does_not_answer_for_it():
    labels = ["a", "a", "b", "a"]
    assert evaluate(EMBEDDINGS, labels, nmi=False).recall[1].value == pytest.approx(2 / 3)
    found = evaluate(EMBEDDINGS, labels, (1, 2), nmi=False, sequence=["s", "s", "t", "u"])
    # Of 0 and 1, image 2 is nearest, then 3 answers; of 3 the nearest of its class is 1, behind 2.
    assert found.recall[1].value == 0
    assert found.recall[2].value == 1
    assert found.rules == {"excluded_matches_of_same_sequence": 2, "queries_with_matches_in_own_sequence_only": 0}


def test_none_nan_and_empty_text_are_no_sequence():
    labels, plain = ["a", "a", "b", "a"], evaluate(EMBEDDINGS, ["a", "a", "b", "a"], nmi=False)
    for nothing in (None, float("nan"), ""):
        assert evaluate(EMBEDDINGS, labels, nmi=False, sequence=[nothing] * 4).recall == plain.recall
    halves = [
        evaluate(EMBEDDINGS, labels, nmi=False, sequence=s) for s in ([5, 5, None, None], np.array([5, 5, np.nan, 7]))
    ]
    assert halves[0].recall == halves[1].recall
    with pytest.raises(UserError, match=r"sequence holds 0\.5, but integers, strings or None"):
        evaluate(EMBEDDINGS, labels, sequence=[0.5, 1, 1, 1])
    with pytest.raises(UserError, match="camera has 3 values for 4 embeddings"):
        evaluate(EMBEDDINGS, labels, camera=[1, 1, 1])


def test_junk_and_distractors_do_not_count_as_classes():
    embeddings = np.concatenate([np.eye(4).repeat(3, axis=0), np.eye(4)[:2]])
    labels = [*np.arange(4).repeat(3), 0, 1]
    is_junk, is_distractor = np.arange(14) == 12, np.arange(14) == 13
    found = evaluate(embeddings, labels, is_junk=is_junk, is_distractor=is_distractor)
    assert (found.num_queries, found.num_gallery, found.num_classes) == (12, 13, 4)
    assert found.nmi is not None
    assert found.nmi.value == 1.0  # with the distractor in its cluster it would be less
    assert found.rules == {"junk_images": 1, "distractor_images": 1}
    with pytest.raises(UserError, match="all queries are junk or distractors"):
        evaluate(EMBEDDINGS, [0, 0, 1, 1], is_junk=[True] * 4)


def test_neighbours_leave_out_what_may_not_answer():
    values, index = nearest(EMBEDDINGS, [0, 3], 3, sequence=["s", "s", "t", "s"])
    assert index.tolist() == [[2, -1, -1], [2, -1, -1]]
    assert (values[:, 1:] == -np.inf).all()
    _, index = nearest(EMBEDDINGS, [0], 3, labels=[0, 0, 1, 0], camera=[1, 1, 1, 2])
    assert index.tolist() == [[2, 3, -1]]


def test_figures_and_rules_come_back_from_json():
    found = evaluate(EMBEDDINGS, [0, 0, 1, 0], nmi=False, sequence=[1, 1, 2, 3], mean_average_precision=True)
    assert Evaluation.from_dict(found.as_dict()) == found
    assert "mAP" in found.figures()

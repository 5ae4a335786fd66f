"""Evaluation is held against a plain dense computation: the whole similarity matrix, one stable sort a row."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from io import StringIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from proxygml.errors import UserError
from proxygml.evaluation import bootstrap, inputs, lists, retrieval, rules, tiles
from proxygml.evaluation import metrics as module
from proxygml.evaluation.metrics import Estimate, Evaluation, evaluate, nearest, score_queries


@dataclass
class Plain:
    """What the plain computation says of each scored query, and the lists it says it from."""

    index: list[int]
    first_positive: list[int]
    average_precision: list[float]
    r_precision: list[float]
    ranking: dict[int, list[int]]
    without_positive: int

    def recall(self, k: int) -> float:
        return float(np.mean([rank < k for rank in self.first_positive]))


def cosine(embeddings) -> np.ndarray:
    vectors = torch.as_tensor(embeddings).double().numpy()
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit @ unit.T


def plain(similarity: np.ndarray, labels, is_query=None, is_gallery=None) -> Plain:
    """Sort the gallery for every query and read all figures off the list, as their definitions say."""
    count = len(similarity)
    is_query = np.ones(count, bool) if is_query is None else np.asarray(is_query)
    is_gallery = np.ones(count, bool) if is_gallery is None else np.asarray(is_gallery)
    result = Plain([], [], [], [], {}, 0)
    for query in np.flatnonzero(is_query):
        others = [image for image in np.flatnonzero(is_gallery) if image != query]
        ranking = sorted(others, key=lambda image: -similarity[query, image])  # sorted() is stable
        hits = [labels[image] == labels[query] for image in ranking]
        positives = sum(hits)
        if positives == 0:
            result.without_positive += 1
            continue
        precision_at_hits = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(positives) if hits[rank]]
        result.index.append(int(query))
        result.first_positive.append(hits.index(True))
        result.average_precision.append(sum(precision_at_hits) / positives)
        result.r_precision.append(sum(hits[:positives]) / positives)
        result.ranking[int(query)] = ranking
    return result


def agrees(
    embeddings, labels, *, is_query=None, is_gallery=None, memory_limit=module.CPU_MEMORY_LIMIT, similarity=None
) -> None:
    """Every score of every query, and the figures, are those of the plain computation."""
    similarity = cosine(embeddings) if similarity is None else similarity
    expected = plain(similarity, np.asarray(labels), is_query, is_gallery)
    masks = {"is_query": is_query, "is_gallery": is_gallery}
    if not expected.index:
        with pytest.raises(UserError, match="none of"):
            evaluate(embeddings, labels, nmi=False, **masks, memory_limit=memory_limit)
        return
    ks = (1, 2, 3, 5, 1000)
    found = evaluate(embeddings, labels, ks, nmi=False, **masks, memory_limit=memory_limit, bootstrap=2)
    assert found.scores is not None
    assert found.scores.index.tolist() == expected.index
    assert found.scores.first_positive.tolist() == expected.first_positive
    assert found.scores.average_precision == pytest.approx(expected.average_precision, abs=1e-6)
    assert found.scores.r_precision == pytest.approx(expected.r_precision, abs=1e-6)
    assert {k: found.recall[k].value for k in ks} == pytest.approx({k: expected.recall(k) for k in ks})
    assert found.map_at_r.value == pytest.approx(np.mean(expected.average_precision), abs=1e-6)
    assert found.r_precision.value == pytest.approx(np.mean(expected.r_precision), abs=1e-6)
    assert found.queries_without_positive == expected.without_positive


def signs(generator: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Rows of -1 and 1, of a length that is a power of two: every similarity is exact, and most are tied."""
    return generator.choice([-1.0, 1.0], size=(count, size)).astype(np.float32)


seeds = st.integers(0, 2**32 - 1)
limits = st.sampled_from([1, 5_000, 12_000, 40_000, module.CPU_MEMORY_LIMIT])  # 40,000 bytes: tiles of 16 x 16


@settings(max_examples=150, deadline=None)
@given(
    seed=seeds,
    count=st.integers(2, 60),
    size=st.sampled_from([1, 4, 16]),
    classes=st.integers(1, 20),
    limit=limits,
    masked=st.booleans(),
)
def test_ties_rank_in_the_order_of_the_gallery(seed, count, size, classes, limit, masked):
    generator = np.random.default_rng(seed)
    embeddings, labels = signs(generator, count, size), generator.integers(classes, size=count)
    is_query, is_gallery = (generator.random((2, count)) < 0.7) if masked else (None, None)
    if masked and not (is_query.any() and is_gallery.any()):
        return
    agrees(embeddings, labels, is_query=is_query, is_gallery=is_gallery, memory_limit=limit)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, count=st.integers(2, 80), size=st.integers(1, 40), classes=st.integers(1, 30), limit=limits)
def test_generic_embeddings_agree_with_the_plain_computation(seed, count, size, classes, limit):
    generator = np.random.default_rng(seed)
    agrees(generator.standard_normal((count, size)), generator.integers(classes, size=count), memory_limit=limit)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, tied=st.booleans(), limit=st.sampled_from([1, 300_000, module.CPU_MEMORY_LIMIT]))
def test_galleries_of_many_chunks_agree_with_the_plain_computation(seed, tied, limit):
    """More than a thousand images in small classes: the lists come from chunk maxima, and ties straddle their ends."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1_100, 1_700))
    embeddings = signs(generator, count, 16) if tied else generator.standard_normal((count, 24))
    labels = generator.integers(count // 3, size=count)
    is_query = np.arange(count) % 23 == 0
    agrees(embeddings, labels, is_query=is_query, memory_limit=limit)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, count=st.integers(4, 300), size=st.integers(1, 130), limit=limits)
def test_equal_images_are_equally_similar_wherever_they_stand(seed, count, size, limit):
    """Rounding must not tell copies apart: the list of a query holds them in the order of the gallery."""
    generator = np.random.default_rng(seed)
    different = generator.standard_normal((max(2, count // 3), size)).astype(np.float32)
    source = generator.integers(len(different), size=count)
    similarity, index = (t.numpy() for t in nearest(different[source], range(count), count - 1, memory_limit=limit))
    same = source[index[:, 1:]] == source[index[:, :-1]]
    assert np.all(similarity[:, 1:][same] == similarity[:, :-1][same])
    assert np.all(index[:, 1:][same] > index[:, :-1][same])


@settings(max_examples=150, deadline=None)
@given(
    seed=seeds,
    count=st.integers(16, 90),
    size=st.integers(1, 70),
    classes=st.integers(1, 60),
    limit=limits,
    masked=st.booleans(),
)
def test_copies_rank_as_the_sorted_float32_matrix_has_them(seed, count, size, classes, limit, masked):
    """To the bit: few different images, copied under any label, whose similarities are rounded as products are."""
    generator = np.random.default_rng(seed)
    different = generator.standard_normal((generator.integers(1, count), size)).astype(np.float32)
    embeddings = different[generator.integers(len(different), size=count)]
    labels = generator.integers(classes, size=count)
    is_query, is_gallery = (generator.random((2, count)) < 0.7) if masked else (None, None)
    if masked and not (is_query.any() and is_gallery.any()):
        return
    unit = inputs.normalised(embeddings)
    similarity = (unit @ unit.T).numpy()
    agrees(embeddings, labels, is_query=is_query, is_gallery=is_gallery, memory_limit=limit, similarity=similarity)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds, count=st.integers(2, 400), tile=st.sampled_from([16, 48, 160]), kind=st.sampled_from(["self", "masks"])
)
def test_counting_in_tiles_and_listing_the_nearest_say_the_same(seed, count, tile, kind):
    generator = np.random.default_rng(seed)
    embeddings = generator.standard_normal((count, 6)).astype(np.float32)[generator.integers(count, size=count)]
    is_query, is_gallery = np.ones((2, count), bool) if kind == "self" else generator.random((2, count)) < 0.6
    labels = generator.permutation(np.arange(count) // 4)
    embeddings += (labels % 7)[:, None]
    task = retrieval.Retrieval(
        inputs.normalised(embeddings), rules.make_rules(labels, is_query=is_query, is_gallery=is_gallery)
    )
    positives = task.rules.num_matches
    queries = np.flatnonzero(is_query & (positives > 0))
    if not len(queries):
        return
    listed = lists.score_by_lists(task, queries, positives, module.CPU_MEMORY_LIMIT, progress=False)
    rows = task.gallery if kind == "self" else queries
    counted = tiles.score_by_tiles(task, rows, kind == "self", (tile, tile), queries, progress=False)
    assert counted.index.tolist() == listed.index.tolist() == queries.tolist()
    assert counted.first_positive.tolist() == listed.first_positive.tolist()
    assert counted.average_precision == pytest.approx(listed.average_precision, abs=1e-6)
    assert counted.r_precision == pytest.approx(listed.r_precision, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 29, 40])
def test_the_size_of_a_block_changes_nothing(rows):
    generator = np.random.default_rng(3)
    embeddings, labels = signs(generator, 40, 4), generator.integers(8, size=40)
    row_bytes = lists.Rows(module._retrieval(embeddings, labels, {}, "float32")).row_bytes
    longest = int(np.bincount(labels).max()) * lists.LIST_BYTES
    agrees(embeddings, labels, memory_limit=rows * (row_bytes + longest))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_is_judged_as_it_is(dtype):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 12, generator=generator).to(dtype)
    agrees(embeddings, torch.arange(50) % 7)
    assert nearest(embeddings, [0], 1)[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_numpy_and_torch_and_strings_and_lists_say_the_same():
    generator = np.random.default_rng(1)
    embeddings, labels = generator.standard_normal((30, 5)).astype(np.float16), generator.integers(5, size=30)
    names = np.array(["wren", "owl", "<tern>", "é", "zz"])[labels]
    reference = evaluate(embeddings, labels)
    read_only = embeddings.copy()
    read_only.flags.writeable = False
    for vectors in (torch.from_numpy(embeddings), read_only, np.asfortranarray(embeddings), embeddings[::-1][::-1]):
        assert evaluate(vectors, torch.from_numpy(labels)) == reference
    assert evaluate(torch.from_numpy(embeddings).float().requires_grad_(), labels.tolist()) == reference
    for strings in (names, names.tolist(), names.astype(object)):
        assert evaluate(embeddings, strings, nmi=False).map_at_r.value == reference.map_at_r.value


def test_neither_the_length_of_embeddings_nor_their_scale_matters():
    generator = np.random.default_rng(2)
    embeddings, labels = signs(generator, 40, 16), generator.integers(6, size=40)
    lengths = 2.0 ** generator.integers(-120, 120, size=(40, 1)).astype(np.float32)
    assert evaluate(embeddings * lengths, labels) == evaluate(embeddings, labels)


def test_autocast_around_it_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(60, 8, generator=generator), torch.arange(60) % 9
    expected = evaluate(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(embeddings, labels) == expected


def test_collapsed_embeddings_are_ranked_by_the_gallery_alone():
    agrees(np.ones((200, 16), dtype=np.float32), np.arange(200) % 50)
    agrees(np.zeros((40, 16), dtype=np.float32), np.arange(40) % 10)


@pytest.mark.parametrize("limit", [1, 40_000, module.CPU_MEMORY_LIMIT])
@pytest.mark.parametrize("different", [2, 3])
def test_a_handful_of_different_embeddings(different, limit):
    embeddings = signs(np.random.default_rng(0), different, 16)[np.arange(96) % different]
    agrees(embeddings, np.arange(96) // 3, memory_limit=limit)
    agrees(embeddings, np.arange(96) % 40, memory_limit=limit)


def test_precision_is_that_asked_for_whatever_torch_is_set_to():
    embeddings, labels = blobs(60, 5, 1.5)
    exact = nearest(embeddings.astype(np.float32), range(300), 5)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(nearest(embeddings.astype(np.float32), range(300), 5)[0], exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    coarse = nearest(embeddings.astype(np.float32), range(300), 5, precision="bfloat16")[0]
    assert not torch.equal(coarse, exact)
    assert torch.allclose(coarse, exact, atol=2**-7)
    found = evaluate(embeddings.astype(np.float32), labels, nmi=False, precision="bfloat16")
    assert found.map_at_r.value == pytest.approx(evaluate(embeddings, labels, nmi=False).map_at_r.value, abs=0.05)


def test_one_class_and_gallery_smaller_than_every_k():
    found = evaluate(np.eye(4), [7, 7, 7, 7], recall_at=(1, 50))
    assert [found.recall[k].value for k in (1, 50)] == [1.0, 1.0]
    assert found.map_at_r.value == found.r_precision.value == 1.0
    assert found.nmi is not None
    assert found.nmi.as_dict() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_queries_without_a_positive_are_left_out_and_counted():
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]])
    found = evaluate(embeddings, ["a", "a", "alone", "also alone"])
    assert (found.num_queries, found.queries_without_positive, found.num_gallery, found.num_classes) == (2, 2, 4, 3)
    assert found.recall[1].value == 1.0


def test_query_and_gallery_may_overlap():
    """Image 1 is both: it is in the gallery of the others, never in its own list."""
    embeddings = np.array([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]])
    is_query, is_gallery = [True, True, False, False], [False, True, True, True]
    agrees(embeddings, [0, 0, 0, 1], is_query=is_query, is_gallery=is_gallery)
    similarity, index = nearest(embeddings, [0, 1], 2, is_gallery=is_gallery)
    assert index.tolist() == [[1, 2], [2, 3]]
    assert similarity[0, 0].item() == pytest.approx(1 / np.sqrt(1.01))
    found = evaluate(embeddings, [0, 0, 0, 1], is_query=is_query, is_gallery=is_gallery)
    assert (found.num_queries, found.num_gallery, found.num_classes) == (2, 3, 2)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, count=st.integers(3, 50), k=st.integers(1, 60), limit=limits)
def test_nearest_lists_what_the_plain_computation_lists(seed, count, k, limit):
    generator = np.random.default_rng(seed)
    embeddings = signs(generator, count, 4)
    is_gallery = generator.random(count) < 0.8
    if is_gallery.sum() < 2:
        return
    queries = generator.integers(count, size=5)
    similarity, index = nearest(embeddings, queries, k, is_gallery=is_gallery, memory_limit=limit)
    dense = cosine(embeddings)
    expected = plain(dense, np.zeros(count), is_gallery=is_gallery)
    for query, values, images in zip(queries, similarity, index, strict=True):
        assert images.tolist() == expected.ranking[int(query)][: index.shape[1]]
        assert values.numpy() == pytest.approx(dense[query, images])
    assert index.shape[1] == min(k, is_gallery.sum() - is_gallery[queries].any())


def blobs(classes: int, size: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((classes, 16))
    labels = np.repeat(np.arange(classes), size)
    return centres[labels] + spread * generator.standard_normal((len(labels), 16)), labels


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_intervals_hold_the_value_and_are_seeded(spread):
    embeddings, labels = blobs(40, 12, spread)
    found, again, other = (evaluate(embeddings, labels, seed=seed) for seed in (0, 0, 1))
    assert found == again
    assert found.map_at_r != other.map_at_r
    for name, estimate in found.figures().items():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1, name
        assert estimate.high - estimate.low < 0.2, name


def test_intervals_are_percentiles_of_classes_drawn_anew():
    generator = np.random.default_rng(0)
    numerators = generator.random((9, 3))
    counts = generator.integers(1, 5, size=(9, 1)).astype(float)
    resamples = 2 * bootstrap.RESAMPLES + 7
    draws = np.random.default_rng(5)
    ratios = []
    for _ in range(resamples):
        drawn = draws.integers(9, size=9)
        ratios.append(numerators[drawn].sum(axis=0) / counts[drawn].sum())
    low, high = bootstrap.bootstrap_interval(numerators, counts, resamples, seed=5)
    assert low == pytest.approx(np.percentile(ratios, 2.5, axis=0))
    assert high == pytest.approx(np.percentile(ratios, 97.5, axis=0))


def test_the_time_of_each_part_is_kept_beside_the_figures():
    found = evaluate(*blobs(5, 4, 1.0))
    assert set(found.seconds) == {"retrieval", "bootstrap", "k-means", "NMI"}
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert set(evaluate(*blobs(5, 4, 1.0), nmi=False).seconds) == {"retrieval", "bootstrap"}
    assert "seconds" not in found.as_dict()


def test_the_interval_covers_what_other_classes_give():
    """Figures of fresh classes from the same source fall into the interval about as often as promised."""
    intervals = [evaluate(*blobs(40, 8, 1.4, seed), recall_at=[1], nmi=False, bootstrap=300) for seed in range(60)]
    truth = np.mean([found.map_at_r.value for found in intervals])
    covered = np.mean([found.map_at_r.low <= truth <= found.map_at_r.high for found in intervals])
    assert covered > 0.8


def test_nmi_is_that_of_scikit_learn_over_k_means_clusters():
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    embeddings, labels = blobs(20, 15, 0.8)
    found = evaluate(embeddings, labels).nmi
    assert found is not None
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    theirs = [KMeans(20, n_init=1, init="random", random_state=seed).fit_predict(unit) for seed in range(5)]
    scores = [normalized_mutual_info_score(labels, clusters) for clusters in theirs]
    assert min(scores) - 0.05 < found.value < max(scores) + 0.05


def test_what_classes_add_to_nmi_adds_up_to_nmi():
    from sklearn.metrics import normalized_mutual_info_score

    generator = np.random.default_rng(0)
    classes, clusters = generator.integers(12, size=300), generator.integers(9, size=300)
    clusters[classes < 6] = classes[classes < 6]
    information, entropy = bootstrap.information_by_class(classes, clusters)
    assert information.sum() / entropy.sum() == pytest.approx(normalized_mutual_info_score(classes, clusters))


def test_the_interval_of_nmi_has_the_width_of_its_influence():
    """Its spread is that of NMI computed anew when every class counts a little more or less."""
    from sklearn.metrics import normalized_mutual_info_score

    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(60), 20)
    clusters = np.where(
        generator.random(1200) < generator.random(60)[classes], classes, generator.integers(60, size=1200)
    )
    value = normalized_mutual_info_score(classes, clusters)
    # The jackknife over classes: an interval by another road.
    left_out = np.array(
        [normalized_mutual_info_score(classes[classes != c], clusters[classes != c]) for c in range(60)]
    )
    error = np.sqrt(59 / 60 * np.sum((left_out - left_out.mean()) ** 2))
    low, high = bootstrap.bootstrap_interval(
        *(terms[:, None] for terms in bootstrap.information_by_class(classes, clusters)), resamples=2000, seed=0
    )
    assert low[0] < value < high[0]
    assert (high[0] - low[0]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.2)


def test_nmi_covers_query_and_gallery_images_and_can_be_left_out():
    embeddings, labels = blobs(6, 10, 0.1)
    is_query, is_gallery = np.arange(60) % 10 < 3, np.arange(60) % 10 > 5
    found = evaluate(embeddings, labels, is_query=is_query, is_gallery=is_gallery)
    both = is_query | is_gallery
    assert found.nmi is not None
    assert found.nmi == evaluate(embeddings[both], labels[both]).nmi
    assert evaluate(embeddings, labels, nmi=False).nmi is None


def test_as_dict_is_plain_json_and_comes_back():
    found = evaluate(*blobs(5, 4, 1.0), recall_at=(4, 1))
    content = json.loads(json.dumps(found.as_dict()))
    assert list(content) == [
        "recall", "map_at_r", "r_precision", "nmi",
        "num_queries", "num_gallery", "num_classes", "queries_without_positive",
    ]  # fmt: skip
    assert list(content["recall"]) == ["1", "4"]
    assert set(content["map_at_r"]) == {"value", "low", "high"}
    assert Evaluation.from_dict(content | {"protocol": "test"}) == found
    without = evaluate(*blobs(5, 4, 1.0), nmi=False)
    assert Evaluation.from_dict(without.as_dict()) == without


def test_the_table_names_every_figure():
    from rich.console import Console

    found = evaluate(np.array([[1.0, 0], [1, 0.1], [0, 1]]), ["a", "a", "alone"], recall_at=[1, 10])
    console = Console(width=100, record=True)
    console.print(found.table())
    text = console.export_text()
    for part in (
        "retrieval",
        "k-means",
        "Recall@1",
        "Recall@10",
        "MAP@R",
        "R-precision",
        "NMI",
        "100.0",
        "left out: 1",
    ):
        assert part in text


GOOD = np.eye(4, dtype=np.float32)
LABELS = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(np.ones(4), LABELS), r"embeddings has the shape \(4,\), but \(n, D\)"),
        (lambda: evaluate(np.ones((0, 4)), []), r"embeddings has the shape \(0, 4\)"),
        (lambda: evaluate(torch.ones(4, 0), LABELS), r"embeddings has the shape \(4, 0\)"),
        (lambda: evaluate(np.eye(4, dtype=int), LABELS), "embeddings is of int64"),
        (lambda: evaluate(torch.eye(4).int(), LABELS), "embeddings is of torch.int32"),
        (lambda: evaluate(np.where(GOOD == 0, np.nan, GOOD), LABELS), r"embeddings\[0\] holds a NaN"),
        (
            lambda: evaluate(GOOD + np.array([[0], [0], [np.inf], [0]]), LABELS),
            r"embeddings\[2\] holds a NaN or an inf",
        ),
        (lambda: evaluate(GOOD, [0, 0, 1]), r"labels has the shape \(3,\) for 4 embeddings"),
        (lambda: evaluate(GOOD, [0.5, 0.5, 1, 1]), "labels is of float64"),
        (lambda: evaluate(GOOD, ["a", "a", None, "b"]), "labels holds None"),
        (lambda: evaluate(GOOD, LABELS, recall_at=(0, 1)), r"recall_at is \(0, 1\)"),
        (lambda: evaluate(GOOD, LABELS, recall_at=()), r"recall_at is \(\)"),
        (lambda: evaluate(GOOD, LABELS, bootstrap=0), "bootstrap is 0"),
        (lambda: evaluate(GOOD, LABELS, seed=-1), "seed is -1, but must be 0 to 4,294,967,295"),
        (
            lambda: evaluate(GOOD, LABELS, precision="fp8"),
            "precision is 'fp8', but must be one of float32, tf32",
        ),
        (lambda: evaluate(GOOD, [0, 1, 2, 3]), "none of 4 queries has another image of its class"),
        (lambda: evaluate(GOOD, LABELS, is_query=[True]), r"is_query has the shape \(1,\)"),
        (lambda: evaluate(GOOD, LABELS, is_gallery=[1, 1, 1, 0]), "is_gallery is of int64, but booleans"),
        (lambda: evaluate(GOOD, LABELS, is_query=[False] * 4), "is_query is False for every image"),
        (lambda: score_queries(GOOD, LABELS, is_gallery=np.zeros(4, bool)), "is_gallery is False for every image"),
        (lambda: nearest(GOOD, [0, 4], 1), "queries holds 4, which is no row of embeddings"),
        (lambda: nearest(GOOD, [-1], 1), "queries holds -1"),
        (lambda: nearest(GOOD[:1], [0], 1), "k is 0"),
        (lambda: nearest(GOOD, [], 1), r"queries has the shape \(0,\), but one index or more"),
        (lambda: nearest(GOOD, [0.5], 1), "queries is of float64, but indices"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_it_loads_nothing_heavy():
    loaded = run_python("import sys, proxygml.evaluation.metrics; print(*sys.modules)").split()
    assert not {"faiss", "sklearn", "scipy", "pandas", "matplotlib", "rich", "accelerate"} & set(loaded)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory as Linux reports it")
def test_memory_stays_within_the_limit():
    """12,000 images: the whole matrix would take 576 MB, a block may take 16 MiB."""
    grown = run_python(
        "import resource, numpy as np, torch\n"
        "from proxygml.evaluation.metrics import evaluate\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = np.random.default_rng(0).standard_normal((12_000, 4), dtype=np.float32)\n"
        "evaluate(data[:1000], np.arange(1000) // 4, nmi=False, memory_limit=2**20)\n"
        "before = peak()\n"
        "evaluate(data, np.arange(12_000) // 4, nmi=False, memory_limit=16 * 2**20)\n"
        "print(peak() - before)"
    )
    assert int(grown) * 1024 < 48 * 2**20


def test_table_counts_in_words_and_shows_the_figures_before() -> None:
    one = evaluate(torch.eye(4), [0, 0, 0, 0], bootstrap=10)
    text = printed(one.table())
    assert "4 queries, gallery of 4, 1 class" in text
    assert "classes" not in text
    assert "before" not in text
    earlier = replace(one, recall={k: Estimate(0.123, 0.1, 0.2) for k in one.recall}, nmi=None)
    text = printed(one.table(earlier))
    assert "before training" in text
    assert text.count("12.3") == len(one.recall)


def printed(table: Table) -> str:
    console = Console(width=120, file=StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]

"""Evaluation over real processes: every figure, ties and rules included, is that of one process."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from proxygml.errors import OtherProcessError, UserError
from proxygml.evaluation import metrics, ranking, sharded, tiles
from proxygml.evaluation.metrics import CPU_MEMORY_LIMIT, Evaluation, evaluate, nearest
from proxygml.evaluation.sharded import vectors_of
from tests.helpers.processes import in_processes

PARTS = ("is_query", "is_gallery", "sequence", "camera", "is_junk", "is_distractor")


def drawn(seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Embeddings and arguments of an evaluation of a random kind and size."""
    generator = np.random.default_rng(seed)
    count, size = int(generator.integers(6, 260)), int(generator.integers(1, 40))
    classes = int(generator.integers(1, count // 2))
    labels = generator.integers(classes, size=count)
    kind = generator.integers(3)
    if kind == 0:  # most similarities are tied
        embeddings = generator.choice([-1.0, 1.0], size=(count, size))
    elif kind == 1:  # copies under any label
        embeddings = generator.standard_normal((count, size))[generator.integers(count // 2, size=count)]
    else:
        embeddings = generator.standard_normal((count, size)) + np.eye(size)[labels % size]
    arguments: dict[str, Any] = {"labels": labels if seed % 3 else labels.astype(str)}
    if generator.random() < 0.5:
        arguments["is_query"], arguments["is_gallery"] = generator.random((2, count)) < 0.7
    if generator.random() < 0.4:
        arguments["sequence"] = [None if s == 0 else int(s) for s in generator.integers(count // 3 + 1, size=count)]
    if generator.random() < 0.4:
        arguments["camera"] = generator.integers(3, size=count).astype(str)
    if generator.random() < 0.3:
        arguments["is_junk"], arguments["is_distractor"] = generator.random((2, count)) < 0.15
    arguments["memory_limit"] = int(generator.choice([1, 40_000, 400_000, CPU_MEMORY_LIMIT]))
    arguments["mean_average_precision"] = bool(generator.random() < 0.3)
    dtype = np.float64 if kind == 2 and generator.random() < 0.2 else np.float32  # float64 may tell copies apart
    return embeddings.astype(dtype), arguments


def part_of(values: Any, begin: int, end: int) -> Any:
    return values[begin:end]


def bounds_of(seed: int, count: int, processes: int) -> list[int]:
    """Where each process's part begins: uneven, and empty for some."""
    cuts = np.sort(np.random.default_rng(seed + 1).integers(0, count + 1, size=processes - 1))
    return [0, *cuts.tolist(), count]


def shared_evaluation(seed: int, nmi: bool = False) -> Evaluation:
    """The figures of this process's group, each of which gives its part."""
    embeddings, arguments = drawn(seed)
    bounds = bounds_of(seed, len(embeddings), dist.get_world_size())
    own = slice(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
    given = {name: value[own] if name in (*PARTS, "labels") else value for name, value in arguments.items()}
    labels = given.pop("labels")
    return evaluate(
        embeddings[own], labels, (1, 2, 5, 1000), nmi, bootstrap=20, process_group=dist.group.WORLD, **given
    )


def same_as_one_process(seeds: list[int], largest_class: int, nmi: bool) -> list[str]:
    """What differs from one process; its numbers are compared to the bit."""
    ranking._LARGEST_CLASS = largest_class
    wrong = []
    for seed in seeds:
        embeddings, arguments = drawn(seed)
        labels = arguments.pop("labels")
        try:
            expected = evaluate(embeddings, labels, (1, 2, 5, 1000), nmi, bootstrap=20, **arguments)
        except UserError as error:
            with pytest.raises(UserError, match="none of the|no query|all queries|all gallery"):
                shared_evaluation(seed, nmi)
            assert "none of the" in str(error) or "all " in str(error)
            continue
        found = shared_evaluation(seed, nmi)
        wrong += [f"seed {seed}: {name}" for name in differences(found, expected)]
    return wrong


def differences(found: Evaluation, expected: Evaluation) -> list[str]:
    """The names of the fields that differ: to the bit, but for precisions that lists compute in float32."""
    assert found.scores is not None
    assert expected.scores is not None
    counts = ("recall", "nmi", "num_queries", "num_gallery", "num_classes", "queries_without_positive", "rules")
    wrong = [name for name in counts if getattr(found, name) != getattr(expected, name)]
    scores = [(name, getattr(found.scores, name), getattr(expected.scores, name)) for name in vars(found.scores)]
    wrong += [name for name, one, other in scores if (one is None) != (other is None)]
    wrong += [name for name, one, other in scores if one is not None and not np.allclose(one, other, rtol=0, atol=1e-6)]
    ends = [abs(getattr(found.map_at_r, end) - getattr(expected.map_at_r, end)) for end in ("value", "low", "high")]
    return wrong if max(ends) < 1e-6 else [*wrong, "map_at_r"]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("largest_class", [50, 0])  # in tiles where they fit, and in lists always
def test_figures_are_those_of_one_process(tmp_path: Path, processes: int, largest_class: int) -> None:
    seeds = list(range(1000 * largest_class, 1000 * largest_class + 12))
    for wrong in in_processes(processes, same_as_one_process, tmp_path, seeds, largest_class, False):
        assert wrong == []


def test_nmi_is_that_of_one_process(tmp_path: Path) -> None:
    for wrong in in_processes(3, same_as_one_process, tmp_path, list(range(6)), 50, True):
        assert wrong == []


def refused() -> list[str]:
    """The message of each wrong call, none of which may leave a process waiting."""
    rank, messages = dist.get_rank(), []
    good, labels = np.eye(4, dtype=np.float32), [0, 0, 1, 1]
    broken = np.full((4, 4), np.nan, dtype=np.float32)
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (broken if rank else good, labels, {}),
        (good, labels[:3] if rank else labels, {}),
        (np.eye(4, 3 + rank, dtype=np.float32), labels, {}),
        (good, ["a", "a", "b", "b"] if rank else labels, {}),
        (good, labels, {"camera": [1, 1, 2, 2]} if rank else {}),
        (good, labels, {"camera": [1, 1, 2, 0.5] if rank else [1, 1, 2, 2]}),
        (good[:0], [], {}),
        (good, [rank * 4 + number for number in range(4)], {}),
    ]
    for embeddings, given, rules in calls:
        with pytest.raises(UserError) as caught:
            evaluate(embeddings, given, nmi=False, process_group=dist.group.WORLD, **rules)
        messages.append(str(caught.value))
    return messages


def test_what_is_wrong_on_one_process_is_raised_on_all(tmp_path: Path) -> None:
    one, other = in_processes(2, refused, tmp_path)
    assert one == other
    for message, expected in zip(
        one,
        [
            "process 1: embeddings[0] holds a NaN",
            "process 1: labels has the shape (3,) for 4 embeddings",
            "the processes give embeddings of different widths",
            "labels are numbers on some processes and text on others",
            "camera is given on some processes and not on others",
            "process 1: camera holds 0.5",
            "no process has an embedding",
            "none of 8 queries has another image",
        ],
        strict=True,
    ):
        assert message.startswith(expected)


def refused_for_nmi(limit: int) -> tuple[list[str], int]:
    """The message for each of two types, and how many products were computed before."""
    products, messages = [0], []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            products[0] += "mm" in function.__name__
            return function(*arguments, **(options or {}))

    sharded.NMI_LIMIT = limit
    for dtype in (np.float32, np.float64):
        embeddings = np.eye(100, dtype=dtype)
        with Watching(), pytest.raises(UserError) as caught:
            evaluate(embeddings, np.arange(100) // 2, process_group=dist.group.WORLD)
        messages.append(str(caught.value))
    return messages, products[0]


def test_too_many_vectors_for_nmi_are_refused_before_they_are_ranked(tmp_path: Path) -> None:
    """80,000 bytes of float32, 160,000 of float64."""
    for messages, products in in_processes(2, refused_for_nmi, tmp_path, 79_999):
        assert all("give nmi=False" in message for message in messages)
        assert len(messages) == 2
        assert products == 0


def largest_tensor(count: int, size: int) -> int:
    """The most rows of that size that any tensor held while an evaluation ran."""
    rows = [0]

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            found = function(*arguments, **(options or {}))
            if isinstance(found, torch.Tensor) and found.ndim == 2 and found.shape[1] == size:
                rows[0] = max(rows[0], len(found))
            return found

    generator = np.random.default_rng(dist.get_rank())
    embeddings = generator.standard_normal((count, size)).astype(np.float32)
    labels = generator.integers(count, size=count)
    with Watching():
        evaluate(embeddings, labels, nmi=False, memory_limit=100_000, process_group=dist.group.WORLD)
    return rows[0]


def test_no_process_holds_more_vectors_than_a_share(tmp_path: Path) -> None:
    for rows in in_processes(4, largest_tensor, tmp_path, 500, 97):
        assert rows <= 600  # of 2,000


def neighbours_that_differ(seeds: list[int]) -> list[str]:
    """Where the nearest, or the vectors, are not those of one process with all parts."""
    wrong = []
    for seed in seeds:
        embeddings, arguments = drawn(seed)
        embeddings = embeddings.astype(np.float32)  # in float64 the last bit may differ
        bounds = bounds_of(seed, len(embeddings), dist.get_world_size())
        own = slice(bounds[dist.get_rank()], bounds[dist.get_rank() + 1])
        given = {name: value for name, value in arguments.items() if name in ("is_gallery", "sequence", "labels")}
        parts = {name: value[own] for name, value in given.items()}
        queries = np.random.default_rng(seed).integers(len(embeddings), size=9)  # some of them twice
        limit, group = arguments["memory_limit"], dist.group.WORLD
        expected = nearest(embeddings, queries, 5, memory_limit=limit, **given)
        found = nearest(embeddings[own], queries, 5, memory_limit=limit, process_group=group, **parts)
        wrong += [f"seed {seed}: nearest"] * (not all(map(torch.equal, found, expected)))
        vectors = vectors_of(embeddings[own], queries, process_group=group)
        expected_vectors = vectors_of(embeddings, queries)[: 0 if dist.get_rank() else None]
        wrong += [f"seed {seed}: vectors"] * (not np.array_equal(vectors, expected_vectors))
    return wrong


def test_the_nearest_are_those_of_one_process(tmp_path: Path) -> None:
    for wrong in in_processes(3, neighbours_that_differ, tmp_path, list(range(10))):
        assert wrong == []


class Interrupted(BaseException):
    """As Ctrl-C, of which multiprocessing makes a case of its own."""


def failures() -> list[tuple[str, str, bool]]:
    """What each process raises where only the second one fails, early, midway or last; and whether all go on after."""
    embeddings, labels = np.eye(300, 8, dtype=np.float32), np.arange(300) // 3
    own = slice(dist.get_rank() * 100, (dist.get_rank() + 1) * 100)
    raised = []
    places = [
        (metrics, "checked_ks", MemoryError("no more")),
        (metrics, "check_resampling", UserError("wrong seed")),
        (ranking, "score_by_tiles", MemoryError("no more")),
        (tiles, "_whole_classes", Interrupted("by hand")),  # while vectors are on their way to the next process
        (metrics, "means_over_classes", KeyError("last")),
    ]
    for module, name, error in places:
        kept = getattr(module, name)
        if dist.get_rank() == 1:
            setattr(module, name, raising(error))
        try:
            evaluate(embeddings[own], labels[own], nmi=False, process_group=dist.group.WORLD)
            raised.append(("nothing", "", False))
        except BaseException as caught:
            setattr(module, name, kept)
            again = evaluate(embeddings[own], labels[own], nmi=False, process_group=dist.group.WORLD)
            raised.append((type(caught).__name__, str(caught), again.num_queries == 300))
    return raised


def raising(error: BaseException) -> Any:
    def called(*_: Any, **__: Any) -> None:
        raise error

    return called


def test_a_failure_of_any_kind_on_one_process_ends_all_of_them(tmp_path: Path) -> None:
    """At once, with its message, whatever the others are waiting for; the group of the caller can be used again."""
    first, second, third = in_processes(3, failures, tmp_path)
    assert first == third == [
        (OtherProcessError.__name__, "process 1 failed: MemoryError: no more", True),
        ("UserError", "process 1: wrong seed", True),
        (OtherProcessError.__name__, "process 1 failed: MemoryError: no more", True),
        (OtherProcessError.__name__, "process 1 failed: Interrupted: by hand", True),
        (OtherProcessError.__name__, "process 1 failed: KeyError: 'last'", True),
    ]  # fmt: skip
    assert [kind for kind, _, _ in second] == ["MemoryError", "UserError", "MemoryError", "Interrupted", "KeyError"]


def survivors() -> str:
    """What a process raises of a group of which one is killed midway."""
    embeddings, labels = np.eye(400, 8, dtype=np.float32), np.arange(400) // 4
    own = slice(dist.get_rank() * 100, (dist.get_rank() + 1) * 100)
    if dist.get_rank() == 2:
        ranking.score_by_tiles = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(OtherProcessError) as caught:
        evaluate(embeddings[own], labels[own], nmi=False, process_group=dist.group.WORLD)
    return str(caught.value)


def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    assert in_processes(4, survivors, tmp_path, killed=[2]) == ["another process has ended"] * 3

"""The loss with its classes divided over real processes: that of one process, whatever the options."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxygml import LazyAdam, ProxyGMLLoss
from proxygml.loss.sharded import classes_of
from tests.helpers.dense import dense_loss
from tests.helpers.processes import in_processes

Case = dict[str, Any]

CASES = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(0, 7), min_size=4, max_size=4),
        "D": st.integers(3, 20),
        "C": st.integers(2, 40),
        "N": st.integers(1, 7),
        "r": st.sampled_from([0.001, 0.05, 0.3, 0.6, 0.9, 1.0]),
        "weight": st.sampled_from([0.0, 0.3, 2.0]),
        "scale": st.sampled_from([1.0, 20.0]),
        "seed": st.integers(0, 10_000),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
        "switches": st.one_of(
            st.fixed_dictionaries(
                {"positive_mask": st.booleans(), "mask_softmax": st.booleans(), "degree_normalized": st.booleans()}
            ),
            st.fixed_dictionaries({"direction": st.just("proxies"), "margin": st.sampled_from([-0.2, 0.0, 0.1])}),
        ),
    }
)


MANY = [
    {"sizes": [3, 2, 0, 4], "D": 8, "weight": 0.3, "seed": 1, "switches": {}, "scale": 5.0, **case}
    for dtype in (torch.float32, torch.float64)
    for case in (
        {"C": 1500, "N": 1, "r": 0.8, "dtype": dtype},
        {"C": 300, "N": 5, "r": 0.7, "dtype": dtype},
        {"C": 700, "N": 3, "r": 0.9, "dtype": dtype, "switches": {"positive_mask": False}},
        {"C": 700, "N": 3, "r": 0.9, "dtype": dtype, "switches": {"direction": "proxies"}},
        {"C": 1500, "N": 1, "r": 0.8, "dtype": dtype, "switches": {"direction": "proxies"}},
    )
]
"""Cases of so many neighbours that radix selection exchanges less than gathering."""


def drawn_cases(count: int) -> list[Case]:
    """Cases of Hypothesis, drawn here so that the processes need to be started once for all of them."""
    cases: list[Case] = []

    @settings(max_examples=count, deadline=None, database=None)
    @given(CASES)
    def draw(case: Case) -> None:
        cases.append(case)

    draw()
    return cases


def make_loss(case: Case, **options: Any) -> ProxyGMLLoss:
    torch.manual_seed(case["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ProxyGMLLoss(
            *(case[key] for key in ("C", "D", "N", "r", "weight", "scale")),
            dtype=case["dtype"],
            **case["switches"],
            **options,
        )


def batch(case: Case, processes: int) -> tuple[Tensor, Tensor, list[int]]:
    """The samples of all processes with their labels, and how many are whose."""
    generator = torch.Generator().manual_seed(case["seed"])
    sizes = case["sizes"][:processes]
    total = sum(sizes)
    embeddings = torch.randn(total, case["D"], generator=generator, dtype=torch.float64).to(case["dtype"])
    return embeddings, torch.randint(case["C"], (total,), generator=generator), sizes


def shared_results(cases: list[Case]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each case: the loss, and this process's gradients by its samples and proxies."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    results = []
    for case in cases:
        loss = make_loss(case, process_group=dist.group.WORLD)
        assert loss.owned_classes == classes_of(case["C"], rank, processes)
        embeddings, labels, sizes = batch(case, processes)
        start = sum(sizes[:rank])
        own = embeddings[start : start + sizes[rank]].clone().requires_grad_()
        value = loss(own, labels[start : start + sizes[rank]])
        value.backward()
        assert own.grad is not None and loss.proxies.grad is not None
        results.append((value.detach(), own.grad, loss.proxies.grad))
    return results


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_it_is_the_dense_computation_whatever_the_number_of_processes(processes: int, tmp_path: Path) -> None:
    cases = drawn_cases(60) + MANY
    parts = in_processes(processes, shared_results, tmp_path, cases)
    for number, case in enumerate(cases):
        found = [part[number] for part in parts]
        values, sample_gradients, proxy_gradients = zip(*found, strict=True)
        embeddings, labels, _ = batch(case, processes)
        if len(labels) == 0:
            assert not any(map(float, values)) and not torch.cat(proxy_gradients).any()
            continue
        samples = embeddings.double().requires_grad_()
        proxies = make_loss(case).proxies.detach().double().requires_grad_()
        numbers = (case[key] for key in ("C", "N", "r", "weight", "scale"))
        expected = dense_loss(samples, proxies, labels, *numbers, **case["switches"])
        expected.backward()
        exact = case["dtype"] == torch.float64
        tolerance = (1e-10 if exact else 1e-5) * max(1, case["scale"] * case["N"] / 10)
        for value in values:
            assert_close(value, expected.detach(), tolerance)
        # Data parallelism divides by the number of processes.
        assert_close(torch.cat(sample_gradients) / processes, samples.grad, tolerance)
        assert_close(torch.cat(proxy_gradients), proxies.grad, tolerance)


def assert_close(actual: Tensor, expected: Tensor | None, tolerance: float) -> None:
    assert expected is not None
    assert (actual.double() - expected).norm() <= tolerance * max(float(expected.norm()), 1e-3)


def trained(options: dict[str, Any], make_optimizer: Callable[..., torch.optim.Optimizer]) -> tuple[Any, ...]:
    """Five steps on samples that are divided over the processes, if there are any."""
    shared = dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    torch.manual_seed(3)
    loss = ProxyGMLLoss(50, 8, 2, 0.2, scale=4.0, process_group=dist.group.WORLD if shared else None, **options)
    optimizer = make_optimizer([loss.proxies])
    samples = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(50, (5, 12), generator=torch.Generator().manual_seed(2))
    own = slice(rank * 12 // processes, (rank + 1) * 12 // processes)
    values, counts = [], torch.zeros(len(loss.proxies), dtype=torch.int64)
    for step in range(5):
        optimizer.zero_grad()
        value = loss(samples[step, own], labels[step, own].tolist())
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
        counts += loss.kept_by_others(samples[step, own], labels[step, own])
    return values, loss.proxies.detach().float(), counts, torch.rand(3)


OPTIONS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "regulariser": ({"proxy_weight": 0.3}, torch.optim.Adam),
    "regulariser in blocks": ({"proxy_weight": 0.3, "memory_limit": 1000}, torch.optim.Adam),
    "sample of the proxies": ({"proxy_weight": 0.3, "proxy_sample": 9}, torch.optim.Adam),
    "many blocks": ({"proxy_weight": 0.3, "proxy_sample": 30, "memory_limit": 1000}, torch.optim.Adam),
    "sparse": ({"proxy_weight": 0.0, "sparse": True}, LazyAdam),
    "bfloat16": ({"proxy_weight": 0.0, "dtype": torch.bfloat16}, torch.optim.SGD),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_is_that_of_one_process(name: str, tmp_path: Path) -> None:
    """The same start, the same losses, proxies and counts of kept ones, and the same random numbers afterwards."""
    options, optimizer = OPTIONS[name]
    values, proxies, counts, after = trained(options, optimizer)
    parts = in_processes(3, trained, tmp_path, options, optimizer)
    for shared_values, _, _, shared_after in parts:
        assert shared_values == pytest.approx(values, rel=1e-4)
        assert torch.equal(shared_after, after) or "proxy_sample" in options
    assert torch.equal(parts[0][3], after)  # the first process's numbers decide
    assert_close(torch.cat([part[1] for part in parts]), proxies, 1e-4 if name != "bfloat16" else 2**-7)
    assert torch.equal(torch.cat([part[2] for part in parts]), counts)


def kept_of_equals() -> tuple[Tensor, Tensor]:
    """What is kept of proxies that are all alike: by few neighbours, and by as many as radix selection is for."""
    results = []
    for classes, ratio in ((40, 0.25), (3000, 0.6)):
        loss = ProxyGMLLoss(classes, 4, 1, ratio, 0.0, process_group=dist.group.WORLD)
        torch.nn.init.ones_(loss.proxies)
        results.append(loss.select(torch.ones(2, 4), torch.tensor([3, classes - 1])))
    return tuple(results)


def test_of_equally_similar_proxies_just_as_many_are_kept_as_asked_for(tmp_path: Path) -> None:
    parts = in_processes(3, kept_of_equals, tmp_path)
    for number, (classes, expected) in enumerate(((40, 10), (3000, 1800))):
        kept = torch.cat([part[number] for part in parts], dim=1)
        for row, label in zip(kept, [3, classes - 1] * 3, strict=True):
            numbers = row[row >= 0]
            assert len(numbers) == len(numbers.unique()) == expected
            assert label in numbers


MOVED = ("all_reduce", "all_gather_into_tensor", "broadcast")


def numbers_moved(case: Case) -> int:
    """How many numbers the collectives of a step are about: of an all-reduce or a broadcast what goes in, of a gather
    what comes out."""
    loss = make_loss(case, process_group=dist.group.WORLD)
    rank, processes = dist.get_rank(), dist.get_world_size()
    embeddings, labels, _ = batch(case, processes)
    own = slice(rank * len(labels) // processes, (rank + 1) * len(labels) // processes)
    samples, moved = embeddings[own].requires_grad_(), 0
    originals = {name: getattr(dist, name) for name in MOVED}

    def counting(name: str) -> Callable[..., Any]:
        def call(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            nonlocal moved
            moved += tensor.numel()
            return originals[name](tensor, *arguments, **options)

        return call

    for name in MOVED:
        setattr(dist, name, counting(name))
    loss(samples, labels[own]).backward()
    for name in MOVED:
        setattr(dist, name, originals[name])
    return moved


@pytest.mark.parametrize("processes", [2, 4])
def test_few_numbers_are_exchanged_whatever_the_number_of_classes(processes: int, tmp_path: Path) -> None:
    cases = [
        {"sizes": [8] * 4, "D": D, "C": C, "N": N, "r": r, "weight": 0.0, "scale": 1.0, "seed": 0}
        | {"dtype": torch.float32, "switches": {}}
        for D, C, N, r in ((64, 100, 12, 0.05), (128, 20_000, 1, 0.001), (32, 20_000, 1, 0.05), (64, 3_000, 5, 0.7))
    ]
    for number, case in enumerate(cases):
        count = 8 * processes
        for moved in in_processes(processes, numbers_moved, tmp_path / str(number), case):
            assert moved <= 1.2 * (2 * count * case["D"] + 1100 * count)


def refusals() -> list[str]:
    """What loading the state of another division says."""
    loss = ProxyGMLLoss(10, 4, 3, process_group=dist.group.WORLD)
    messages, kept = [], loss.proxies.detach().clone()
    for other in (ProxyGMLLoss(10, 4, 3), ProxyGMLLoss(5, 4, 3)):
        with pytest.raises((RuntimeError, ValueError)) as error:
            loss.load_state_dict(other.state_dict())
        messages.append(str(error.value))
    assert torch.equal(loss.proxies, kept)  # nothing was copied before the state was refused
    return messages


def test_the_state_of_other_classes_is_refused(tmp_path: Path) -> None:
    for messages in in_processes(2, refusals, tmp_path):
        assert any("classes 0..4 of 5" in message for message in messages)


def one_empty_batch(networks: list[bool]) -> list[Tensor | None]:
    """This process's gradient by its samples, of which the first process has four and the second none."""
    gradients = []
    for has_network in networks:
        torch.manual_seed(0)
        loss = ProxyGMLLoss(10, 8, 2, 0.3, process_group=dist.group.WORLD)
        count = 4 if dist.get_rank() == 0 else 0
        samples = torch.randn(count, 8).requires_grad_(has_network and count > 0)
        loss(samples, torch.arange(count)).backward()
        assert loss.proxies.grad is not None
        gradients.append(samples.grad)
    return gradients


def test_an_empty_batch_of_no_network_leaves_the_others_their_gradient(tmp_path: Path) -> None:
    first, second = in_processes(2, one_empty_batch, tmp_path, [True, False])
    assert first[0] is not None and first[0].any()
    assert second == [None, None] and first[1] is None

"""LazyAdam against an optimiser that writes to every row at every step."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxygml import ProxyGMLLoss
from proxygml.loss.lazy_adam import LazyAdam, _rounded

RATES = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}


def batch(seed: int, num_classes: int = 40, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, 8, dtype=torch.float64, generator=generator)
    return embeddings, torch.randint(num_classes, (size,), generator=generator)


def sparse_loss(dtype: torch.dtype = torch.float64, num_classes: int = 40) -> ProxyGMLLoss:
    torch.manual_seed(0)
    return ProxyGMLLoss(num_classes, 8, 2, 0.06, proxy_weight=0.0, scale=5.0, sparse=True, dtype=dtype)


def eager_step(proxies: Tensor, gradient: Tensor, state: dict[str, Tensor], step: int) -> None:
    """Every row shrinks; the moments and values of the rows with a gradient move: the obvious way, row by row."""
    (first_rate, second_rate), lr = RATES["betas"], RATES["lr"]
    proxies *= 1 - lr * RATES["weight_decay"]
    for row, values in zip(gradient.indices()[0], gradient.values(), strict=True):
        state["first"][row] = first_rate * state["first"][row] + (1 - first_rate) * values
        state["second"][row] = second_rate * state["second"][row] + (1 - second_rate) * values**2
        first = state["first"][row] / (1 - first_rate**step)
        second = state["second"][row] / (1 - second_rate**step)
        proxies[row] -= lr * first / (second.sqrt() + RATES["eps"])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_result_does_not_depend_on_when_rows_are_written(seed: int) -> None:
    lazy, eager = sparse_loss(), sparse_loss()
    optimizer = LazyAdam(lazy.parameters(), **RATES)
    state = {"first": torch.zeros_like(eager.proxies), "second": torch.zeros_like(eager.proxies)}
    for step in range(1, 21):
        embeddings, labels = batch(1000 * seed + step)
        for loss in (lazy, eager):
            loss.zero_grad()
            loss(embeddings, labels).backward()
        optimizer.step()
        with torch.no_grad():
            eager_step(eager.proxies, eager.proxies.grad.coalesce(), state, step)
    optimizer.settle()
    assert torch.allclose(lazy.proxies, eager.proxies, rtol=1e-9, atol=1e-12)


def test_untouched_rows_are_not_written_to() -> None:
    loss = sparse_loss()
    before = loss.proxies.detach().clone()
    optimizer = LazyAdam(loss.parameters(), **RATES)
    loss(*batch(0)).backward()
    touched = loss.proxies.grad.coalesce().indices()[0]
    optimizer.step()
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[touched] = False
    assert untouched.any() and torch.equal(loss.proxies[untouched], before[untouched])
    assert not torch.isclose(loss.proxies[touched], before[touched]).all(dim=1).any()
    optimizer.settle()
    shrunk = (1 - RATES["lr"] * RATES["weight_decay"]) * before[untouched]
    assert torch.allclose(loss.proxies[untouched], shrunk, rtol=1e-12)


def test_gradients_of_two_batches_add_up() -> None:
    """Two backward passes before a step leave rows twice in the gradient."""
    together, apart = sparse_loss(), sparse_loss()
    first, second = batch(0), batch(1)
    for embeddings, labels in (first, second):
        (apart(embeddings, labels) / 2).backward()
    together(torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])).backward()
    for loss in (together, apart):
        LazyAdam(loss.parameters(), **RATES).step()
    assert torch.allclose(together.proxies, apart.proxies, rtol=1e-9)


def test_without_decay_it_is_sparse_adam() -> None:
    ours, theirs = sparse_loss(), sparse_loss()
    optimizers = (
        LazyAdam(ours.parameters(), lr=0.05, eps=1e-15),
        torch.optim.SparseAdam(theirs.parameters(), lr=0.05, eps=1e-15),
    )
    for step in range(10):
        embeddings, labels = batch(step)
        for loss, optimizer in zip((ours, theirs), optimizers, strict=True):
            loss.zero_grad()
            loss(embeddings, labels).backward()
            optimizer.step()
    # SparseAdam puts eps, here next to nothing, on the other side of the bias correction.
    assert torch.allclose(ours.proxies, theirs.proxies, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_as_if_never_saved(dtype: torch.dtype) -> None:
    loss = sparse_loss(dtype)
    optimizer = LazyAdam(loss.parameters(), **RATES)

    def steps(loss: ProxyGMLLoss, optimizer: LazyAdam, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            loss.zero_grad()
            embeddings, labels = batch(number)
            loss(embeddings.float(), labels).backward()
            optimizer.step()

    steps(loss, optimizer, range(5))
    file = io.BytesIO()
    torch.save([loss.state_dict(), optimizer.state_dict()], file)
    steps(loss, optimizer, range(5, 9))

    file.seek(0)
    again = sparse_loss(dtype)
    resumed = LazyAdam(again.parameters(), **RATES)
    for part, state in zip((again, resumed), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(copy.deepcopy(state))
    steps(again, resumed, range(5, 9))
    assert torch.equal(loss.proxies, again.proxies)


def test_bfloat16_keeps_updates_below_its_resolution() -> None:
    """Thousands of steps of a thousandth of a unit in the last place move a parameter by their sum."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.ones(500, 4, dtype=torch.bfloat16))
    optimizer = LazyAdam([parameter], lr=1e-5, betas=(0.0, 0.0), eps=1e-8)
    for _ in range(2000):
        parameter.grad = torch.ones(500, 4, dtype=torch.bfloat16).to_sparse(1)
        optimizer.step()
    assert float(parameter.detach().float().mean()) == pytest.approx(1 - 2000 * 1e-5, abs=2e-3)


def test_bfloat16_settles_what_it_owes() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(-torch.ones(400, 4, dtype=torch.bfloat16))
    optimizer = LazyAdam([parameter], lr=1e-3, weight_decay=1.0)
    for _ in range(1000):
        parameter.grad = torch.sparse_coo_tensor([[0]], torch.zeros(1, 4).bfloat16(), (400, 4), check_invariants=True)
        optimizer.step()
        optimizer.settle()
    assert float(parameter.detach()[1:].float().mean()) == pytest.approx(-(0.999**1000), abs=0.01)


def test_rounding_keeps_what_is_no_number() -> None:
    canonical = torch.full((4,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert _rounded(canonical, torch.bfloat16).isnan().all()


def test_a_row_that_rested_for_long_is_updated_as_ever() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = LazyAdam([parameter], lr=0.3, weight_decay=0.1)
    for row in [0] * 3500 + [1]:
        parameter.grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 3), (2, 3), check_invariants=True)
        optimizer.step()
    assert parameter.isfinite().all() and optimizer.state[parameter]["exp_avg_sq"].isfinite().all()


def test_wrong_use_is_named() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = LazyAdam([parameter], lr=1.0)
    parameter.grad = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"shape \(3, 2\) is dense or .*sparse=True"):
        optimizer.step()
    for setting, value in (("lr", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0), ("weight_decay", -0.1)):
        with pytest.raises(ValueError, match=setting):
            LazyAdam([parameter], **{setting: value})
        with pytest.raises(ValueError, match=setting):
            LazyAdam([{"params": [parameter], setting: value}])
    parameter.grad = torch.ones(3, 2).to_sparse(1)
    with pytest.raises(ValueError, match=r"lr 1\.0 times weight_decay 2\.0"):
        LazyAdam([parameter], lr=1.0, weight_decay=2.0).step()

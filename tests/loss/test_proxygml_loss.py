"""ProxyGMLLoss against the dense one-hot computation of the paper, and the properties that a user relies on."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxygml import ProxyGMLLoss
from proxygml.loss import gradients
from proxygml.loss.proxy_graph_loss import proxy_graph_loss
from tests.helpers.dense import dense_loss


def make_loss(
    C: int, D: int, N: int, r: float, weight: float = 0.3, scale: float = 1.0, **switches: bool
) -> ProxyGMLLoss:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ProxyGMLLoss(C, D, N, r, weight, scale, **switches)


def loss_and_gradients(loss: ProxyGMLLoss, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    embeddings = embeddings.detach().requires_grad_()
    loss.proxies.grad = None
    value = loss(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None and loss.proxies.grad is not None
    return value.detach(), embeddings.grad, loss.proxies.grad


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-10) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).norm() <= tolerance * max(float(other.norm()), 1e-3)


shapes = st.fixed_dictionaries(
    {
        "M": st.integers(1, 20),
        "D": st.integers(4, 40),
        "C": st.integers(2, 30),
        "N": st.integers(1, 13),
        "r": st.sampled_from([0.001, 0.01, 0.05, 0.07, 0.3, 0.9, 1.0]),
        "weight": st.sampled_from([0.0, 0.3, 2.0]),
        "scale": st.sampled_from([1.0, 20.0]),
        "seed": st.integers(0, 10_000),
    }
)
switches = st.one_of(
    st.fixed_dictionaries(
        {"positive_mask": st.booleans(), "mask_softmax": st.booleans(), "degree_normalized": st.booleans()}
    ),
    st.fixed_dictionaries({"direction": st.just("proxies"), "margin": st.sampled_from([-0.2, 0.0, 0.1])}),
)


@settings(max_examples=150, deadline=None)
@given(shapes)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_agrees_with_the_dense_computation(dtype: torch.dtype, tolerance: float, shape: dict) -> None:
    torch.manual_seed(shape["seed"])
    C, N, r, weight, scale = (shape[key] for key in ("C", "N", "r", "weight", "scale"))
    loss = make_loss(C, shape["D"], N, r, weight, scale).to(dtype)
    embeddings, labels = torch.randn(shape["M"], shape["D"], dtype=dtype), torch.randint(C, (shape["M"],))
    # The yardstick in float64 throughout: in float32 its own rounding is the larger one where the loss is small.
    X, P = embeddings.double().requires_grad_(), loss.proxies.detach().double().requires_grad_()
    expected = dense_loss(X, P, labels, C, N, r, weight, scale)
    expected.backward()
    actual = loss_and_gradients(loss, embeddings, labels)
    # exp() makes a relative error of the absolute rounding of its argument, which reaches scale * N.
    assert_same(actual, (expected.detach(), X.grad, P.grad), tolerance * max(1, scale * N / 10))


@settings(max_examples=150, deadline=None)
@given(shapes, switches)
def test_agrees_with_the_dense_computation_in_every_variant(shape: dict, switched: dict) -> None:
    torch.manual_seed(shape["seed"])
    C, N, r, weight, scale = (shape[key] for key in ("C", "N", "r", "weight", "scale"))
    loss = make_loss(C, shape["D"], N, r, weight, scale, **switched).double()
    embeddings = torch.randn(shape["M"], shape["D"], dtype=torch.float64)
    labels = torch.randint(C, (shape["M"],))
    X, P = embeddings.clone().requires_grad_(), loss.proxies.detach().clone().requires_grad_()
    expected = dense_loss(X, P, labels, C, N, r, weight, scale, **switched)
    expected.backward()
    assert_same(loss_and_gradients(loss, embeddings, labels), (expected.detach(), X.grad, P.grad), 1e-9)


@pytest.mark.parametrize("N", [1, 7])
def test_a_single_class_has_no_loss_and_no_gradient(N: int) -> None:
    torch.manual_seed(0)
    loss = make_loss(1, 16, N, 0.05, scale=20.0)
    for tensor in loss_and_gradients(loss, torch.randn(8, 16), torch.zeros(8, dtype=torch.int64)):
        assert tensor.abs().max() < 1e-6


@pytest.mark.parametrize(("C", "N", "scale", "weight"), [(100, 12, 1.0, 0.3), (2_000, 1, 20.0, 0.0)])
def test_agrees_at_the_published_sizes(C: int, N: int, scale: float, weight: float) -> None:
    torch.manual_seed(0)
    loss = make_loss(C, 512, N, 0.05, weight, scale)
    embeddings, labels = torch.randn(32, 512), torch.randint(C, (32,))
    X, P = embeddings.clone().requires_grad_(), loss.proxies.detach().clone().requires_grad_()
    expected = dense_loss(X, P, labels, C, N, 0.05, weight, scale)
    expected.backward()
    assert_same(loss_and_gradients(loss, embeddings, labels), (expected.detach(), X.grad, P.grad), 1e-5)


@pytest.mark.parametrize("N", [64, 65, 200])
def test_so_many_proxies_a_class_that_the_logits_are_large(N: int) -> None:
    """Proxies of a class that nearly agree: a logit reaches N, and exp(200) is more than float32 holds."""
    torch.manual_seed(0)
    loss = make_loss(4, 16, N, 0.5)
    loss.proxies.data = torch.randn(4, 16).repeat_interleave(N, dim=0) + 0.05 * torch.randn(4 * N, 16)
    embeddings, labels = torch.randn(6, 16), torch.randint(4, (6,))
    X, P = embeddings.double().requires_grad_(), loss.proxies.detach().double().requires_grad_()
    expected = dense_loss(X, P, labels, 4, N, 0.5, 0.3, 1.0)
    expected.backward()
    assert_same(loss_and_gradients(loss, embeddings, labels), (expected.detach(), X.grad, P.grad), 1e-5 * N)


def test_finite_embeddings_whose_sum_overflows_are_taken() -> None:
    loss, labels = make_loss(5, 4, 2, 0.5), torch.arange(3)
    embeddings = torch.tensor([[3e38, 3e38, 1e38, 0.0], [3e38, -1e38, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert loss(embeddings, labels).item() == pytest.approx(loss(embeddings / 1e30, labels).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("N", "r", "weight"), [(3, 0.5, 0.3), (3, 0.5, 0.0), (1, 0.5, 2.0), (2, 1.0, 0.3), (1, 0.02, 0.0)]
)
def test_gradcheck(N: int, r: float, weight: float) -> None:
    """By finite differences: a selection, the whole graph, and few proxies of many, each with and without the rest."""
    torch.manual_seed(0)
    C = 60 if r < 0.1 else 5
    labels = torch.randint(C, (3,))

    def value(embeddings: Tensor, proxies: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"proxies": proxies}, (embeddings, labels))

    loss = make_loss(C, 4, N, r, weight, scale=3.0).double()
    embeddings = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (embeddings, loss.proxies.detach().requires_grad_()))


def test_only_one_side_may_need_a_gradient() -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(9, 6, 2, 0.4), torch.randn(5, 6), torch.arange(5)
    _, x_grad, p_grad = loss_and_gradients(loss, embeddings, labels)
    loss.proxies.grad = None
    loss(embeddings, labels).backward()
    assert torch.equal(loss.proxies.grad, p_grad)
    loss.requires_grad_(False)
    embeddings.requires_grad_()
    loss(embeddings, labels).backward()
    assert torch.equal(embeddings.grad, x_grad)


@pytest.mark.parametrize("r", [0.4, 1.0])
def test_a_second_derivative_is_refused(r: float) -> None:
    loss, embeddings = make_loss(9, 6, 2, r), torch.randn(5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(embeddings, torch.arange(5)), embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        gradient.sum().backward()


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    torch.manual_seed(0)
    loss, embeddings = make_loss(9, 6, 2, 0.4), torch.randn(5, 6, requires_grad=True)
    value = loss(embeddings, torch.arange(5))
    first = torch.autograd.grad(value, (embeddings, loss.proxies), retain_graph=True)
    assert_same(
        torch.autograd.grad(3 * value, (embeddings, loss.proxies)), tuple(3 * gradient for gradient in first), 1e-6
    )


@pytest.mark.parametrize(("C", "N", "r", "weight"), [(40, 3, 0.1, 0.3), (400, 1, 0.01, 0.0), (20, 2, 1.0, 0.3)])
def test_compiled_it_is_the_same(C: int, N: int, r: float, weight: float) -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(C, 8, N, r, weight, scale=3.0), torch.randn(5, 8), torch.arange(5)
    expected = loss_and_gradients(loss, embeddings, labels)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager")
    embeddings = embeddings.requires_grad_()
    loss.proxies.grad = None
    value = compiled(embeddings, labels)
    value.backward()
    assert_same((value.detach(), embeddings.grad, loss.proxies.grad), expected, 1e-5)


def test_the_mathematics_compiles_in_one_piece() -> None:
    """Without a break in the graph, which the checks of values on the CPU make in the module."""
    torch.manual_seed(0)
    loss, labels = make_loss(40, 8, 3, 0.1), torch.arange(5)
    samples = F.normalize(torch.randn(5, 8), dim=1).requires_grad_()

    def compute(samples: Tensor, proxies: Tensor) -> Tensor:
        return proxy_graph_loss(samples, proxies, labels, loss._terms())

    torch._dynamo.reset()
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    results = []
    for function in (compute, compiled):
        value = function(samples, loss.proxies)
        results.append((value.detach(), *torch.autograd.grad(value, (samples, loss.proxies))))
    assert_same(results[1], results[0], 1e-5)


def test_under_autocast_the_same_proxies_are_selected() -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(2000, 8, 1, 0.05), torch.randn(8, 8), torch.arange(8)
    expected = loss.select(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.select(embeddings, labels), expected)


@pytest.mark.parametrize(("C", "N"), [(50, 3), (300, 1)])
def test_the_memory_limit_changes_nothing(C: int, N: int) -> None:
    torch.manual_seed(0)
    embeddings, labels = torch.randn(5, 8, dtype=torch.float64), torch.arange(5)
    results = []
    for memory_limit in (1, 10_000, 2**30):
        torch.manual_seed(1)
        loss = ProxyGMLLoss(C, 8, N, 0.1, memory_limit=memory_limit, dtype=torch.float64)
        results.append(loss_and_gradients(loss, embeddings, labels))
    assert_same(results[0], results[2], 1e-12)
    assert_same(results[1], results[2], 1e-12)


def test_a_sample_of_the_proxies_is_unbiased() -> None:
    """Over all subsets of one proxy in turn, value and gradient average to the whole regulariser's."""
    torch.manual_seed(0)
    C, N = 7, 2
    whole = ProxyGMLLoss(C, 6, N, 0.5, proxy_weight=2.0, dtype=torch.float64)
    labels = torch.arange(3)
    embeddings = torch.randn(3, 6, dtype=torch.float64)
    expected = loss_and_gradients(whole, embeddings, labels)
    terms = whole._terms()
    samples = F.normalize(embeddings, dim=1)
    values, gradients = [], []
    for row in range(C * N):
        proxies = whole.proxies.detach().clone().requires_grad_()
        value = proxy_graph_loss(samples, proxies, labels, terms, torch.tensor([row]))
        value.backward()
        values.append(value.detach())
        gradients.append(proxies.grad)
    mean = torch.stack(values).mean(), torch.stack(gradients).mean(dim=0)
    assert_same(mean, (expected[0], expected[2]), 1e-12)


def test_proxy_sample_draws_uniformly_and_anew() -> None:
    torch.manual_seed(0)
    loss = ProxyGMLLoss(10, 6, 2, 0.5, proxy_sample=5)
    draws = torch.stack([loss._sampled().sort().values for _ in range(2000)])
    assert all(len(row.unique()) == 5 for row in draws[:100])
    # Each of 20 proxies is in a quarter of the draws: 500 of 2,000, with a standard deviation of 19.
    assert ((torch.bincount(draws.flatten(), minlength=20) - 500).abs() < 5 * 19.4).all()
    assert ProxyGMLLoss(10, 6, 2, 0.5, proxy_sample=0.25)._sampled().shape == (5,)
    assert ProxyGMLLoss(10, 6, 2, 0.5, proxy_sample=100)._sampled() is None


@pytest.mark.parametrize(("C", "N", "r"), [(50, 3, 0.1), (300, 1, 0.02), (20, 2, 1.0)])
def test_a_sparse_gradient_is_the_same(C: int, N: int, r: float) -> None:
    torch.manual_seed(0)
    dense = make_loss(C, 8, N, r, weight=0.0, scale=3.0)
    sparse = ProxyGMLLoss(C, 8, N, r, 0.0, 3.0, sparse=True)
    sparse.load_state_dict(dense.state_dict())
    embeddings, labels = torch.randn(4, 8), torch.randint(C, (4,))
    expected = loss_and_gradients(dense, embeddings, labels)
    value, x_grad, p_grad = loss_and_gradients(sparse, embeddings, labels)
    assert p_grad.is_sparse
    kept = sparse.select(embeddings, labels).unique()
    assert torch.equal(p_grad.coalesce().indices()[0], kept)
    assert_same((value, x_grad, p_grad.to_dense()), expected, 1e-5)
    empty = sparse(torch.empty(0, 8), torch.empty(0).long())
    sparse.proxies.grad = None
    empty.backward()
    assert sparse.proxies.grad.is_sparse


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_bfloat16_proxies_are_computed_in_float32(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "CPU_BLOCK_BYTES", 1000)  # several blocks
    torch.manual_seed(0)
    low = ProxyGMLLoss(40, 16, 3, 0.1, weight, dtype=torch.bfloat16)
    high = ProxyGMLLoss(40, 16, 3, 0.1, weight)
    high.load_state_dict(low.state_dict())
    embeddings, labels = torch.randn(5, 16), torch.arange(5)
    value, x_grad, p_grad = loss_and_gradients(low, embeddings, labels)
    expected = loss_and_gradients(high, embeddings, labels)
    assert_same((value, x_grad), expected[:2], 1e-5)
    assert p_grad.dtype == torch.bfloat16
    assert_same((p_grad.float(),), expected[2:], 2**-8)


def test_a_proxy_of_length_0_has_no_direction() -> None:
    torch.manual_seed(0)
    loss = make_loss(6, 4, 2, 0.5)
    loss.proxies.data[3] = 0
    value, x_grad, p_grad = loss_and_gradients(loss, torch.randn(4, 4), torch.tensor([0, 1, 1, 2]))
    assert value.isfinite() and x_grad.isfinite().all() and p_grad.isfinite().all()
    assert not p_grad[3].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_symmetries_change_nothing(seed: int) -> None:
    """Permuting the batch, a class's proxies or the classes, or rotating the space, leaves loss and gradients."""
    torch.manual_seed(seed)
    C, N, D, M = 8, 3, 6, 10
    loss = make_loss(C, D, N, 0.4).double()
    embeddings, labels = torch.randn(M, D, dtype=torch.float64), torch.randint(C, (M,))
    value, x_grad, p_grad = loss_and_gradients(loss, embeddings, labels)

    order = torch.randperm(M)
    assert_same(loss_and_gradients(loss, embeddings[order], labels[order]), (value, x_grad[order], p_grad))

    within = torch.cat([c * N + torch.randperm(N) for c in range(C)])
    permuted = make_loss(C, D, N, 0.4).double()
    permuted.proxies.data = loss.proxies.data[within]
    assert_same(loss_and_gradients(permuted, embeddings, labels), (value, x_grad, p_grad[within]))

    new_class = torch.randperm(C)
    rows = (torch.argsort(new_class)[:, None] * N + torch.arange(N)).flatten()
    permuted.proxies.data = loss.proxies.data[rows]
    assert_same(loss_and_gradients(permuted, embeddings, new_class[labels]), (value, x_grad, p_grad[rows]))

    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    permuted.proxies.data = loss.proxies.data @ rotation
    rotated = loss_and_gradients(permuted, embeddings @ rotation, labels)
    assert_same(rotated, (value, x_grad @ rotation, p_grad @ rotation))


def test_class_with_a_score_of_zero_stays_in_the_softmax() -> None:
    loss = make_loss(3, 2, 1, 0.5, weight=0.0)
    assert loss.neighbors == 2
    loss.proxies.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    value = loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item()
    # Scores are 1 for the own class and exactly 0 for the kept negative, which still counts as exp(0).
    assert value == pytest.approx(math.log(1 + math.exp(-1.0)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("magnitude", [0.0, 1e-4, 1.0, 1e3])
def test_every_precision_is_finite(dtype: torch.dtype, scale: float, magnitude: float) -> None:
    torch.manual_seed(0)
    loss = make_loss(50, 16, 12, 0.05, scale=scale)
    for tensor in loss_and_gradients(loss, (magnitude * torch.randn(8, 16)).to(dtype), torch.arange(8)):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(20, 16, 4, 0.2), torch.randn(8, 16), torch.arange(8)
    expected = loss_and_gradients(loss, embeddings, labels)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(embeddings.requires_grad_(), labels)
    loss.proxies.grad = None
    value.backward()
    assert value.dtype == torch.float32
    assert_same((value.detach(), embeddings.grad, loss.proxies.grad), expected, 1e-6)


def test_half_precision_module() -> None:
    loss = make_loss(20, 16, 4, 0.2).to(torch.bfloat16)
    value, _, gradient = loss_and_gradients(loss, torch.randn(8, 16).bfloat16(), torch.arange(8))
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16


def test_empty_batch_is_zero_with_a_graph() -> None:
    value, x_grad, p_grad = loss_and_gradients(make_loss(5, 4, 2, 0.5), torch.empty(0, 4), torch.empty(0).long())
    assert value == 0
    assert x_grad.shape == (0, 4)
    assert not p_grad.any()


def test_proxies_reach_optimiser_checkpoint_and_device() -> None:
    loss = make_loss(5, 4, 2, 0.5)
    assert [name for name, _ in loss.named_parameters()] == ["proxies"]
    assert list(loss.state_dict()) == ["proxies", "_extra_state"]
    assert loss.to("meta").proxies.device.type == "meta"


def test_proxies_start_as_published() -> None:
    torch.manual_seed(0)
    proxies = make_loss(100, 64, 12, 0.05).proxies
    assert proxies.shape == (1200, 64)
    bound = 1 / math.sqrt(1200)  # Kaiming uniform, a = sqrt(5), fan-in C*N
    assert 0.99 * bound < proxies.detach().abs().max().item() <= bound


def test_third_argument_of_trainers_is_ignored() -> None:
    loss, embeddings, labels = make_loss(5, 4, 2, 0.5), torch.randn(3, 4), torch.arange(3)
    assert loss(embeddings, labels, None) == loss(embeddings, labels)


def test_integer_labels_of_any_width() -> None:
    loss, embeddings = make_loss(5, 4, 2, 0.5), torch.randn(3, 4)
    dtypes = (torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    values = [loss(embeddings, torch.arange(3).to(dtype)) for dtype in dtypes]
    assert all(value == values[0] for value in values)


def test_raised_neighbor_count_warns_once_with_the_numbers() -> None:
    with pytest.warns(UserWarning, match=r"0\.01 keeps 12 of 1200 .* 12 of .* raised to 13") as caught:
        loss = ProxyGMLLoss(100, 8, 12, 0.01)
        loss(torch.randn(2, 8), torch.tensor([0, 1]))
    assert len(caught) == 1
    assert loss.neighbors == 13


@pytest.mark.parametrize(
    ("C", "N", "r", "k"), [(100, 12, 0.05, 60), (11_318, 1, 0.05, 566), (3, 2, 1.0, 6), (1, 4, 1.0, 4)]
)
def test_neighbor_count(C: int, N: int, r: float, k: int) -> None:
    assert make_loss(C, 2, N, r).neighbors == k


def test_select_keeps_own_proxies_and_the_most_similar_others() -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(6, 4, 2, 0.5), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 5])
    kept = loss.select(embeddings, labels)
    assert kept.shape == (5, 6)
    similarity = F.normalize(embeddings, dim=1) @ F.normalize(loss.proxies.detach(), dim=1).T
    for row in range(5):
        own = {2 * int(labels[row]), 2 * int(labels[row]) + 1}
        others = [p for p in similarity[row].argsort(descending=True).tolist() if p not in own]
        assert set(kept[row].tolist()) == own | set(others[:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2.5}, "num_classes is 2.5"),
        ({"embedding_size": -1}, "embedding_size is -1"),
        ({"proxies_per_class": 0}, "proxies_per_class is 0"),
        ({"proxies_per_class": True}, "proxies_per_class is True"),
        ({"neighbor_ratio": 0.0}, "neighbor_ratio is 0.0"),
        ({"neighbor_ratio": 1.1}, "neighbor_ratio is 1.1"),
        ({"neighbor_ratio": "0.5"}, "neighbor_ratio is '0.5'"),
        ({"proxy_weight": -0.1}, "proxy_weight is -0.1"),
        ({"proxy_weight": math.inf}, "proxy_weight is inf"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": math.nan}, "scale is nan"),
        ({"proxy_sample": 0}, "proxy_sample is 0"),
        ({"proxy_sample": 1.5}, "proxy_sample is 1.5"),
        ({"proxy_sample": "all"}, "proxy_sample is 'all'"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"sparse": True}, "sparse is True and proxy_weight is 0.3"),
        ({"direction": "both"}, "direction is 'both'"),
        ({"direction": "proxies", "mask_softmax": False}, "mask_softmax is False and direction is 'proxies'"),
        ({"margin": 2}, "margin is 2"),
    ],
)
def test_impossible_constructor_values(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProxyGMLLoss(**({"num_classes": 10, "embedding_size": 4} | arguments))


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.randn(4, 3), torch.arange(4), r"embeddings have shape \(4, 3\).*\(M, 8\)"),
        (torch.randn(8), torch.arange(8), r"embeddings have shape \(8,\)"),
        (torch.ones(4, 8).long(), torch.arange(4), "embeddings are torch.int64"),
        (torch.randn(4, 8), torch.arange(4.0), "labels are torch.float32"),
        (torch.randn(4, 8), torch.ones(4, dtype=torch.bool), "labels are torch.bool"),
        (torch.randn(4, 8), torch.arange(3), r"labels have shape \(3,\)"),
        (torch.randn(4, 8), torch.zeros(4, 1).long(), r"labels have shape \(4, 1\)"),
        (torch.randn(4, 8), torch.tensor([0, 1, 240, 3]), r"labels\[2\] is 240.*10 classes \(0\.\.9\)"),
        (torch.randn(4, 8), torch.tensor([0, -1, 2, 3]), r"labels\[1\] is -1"),
        (torch.full((4, 8), math.nan), torch.arange(4), r"embeddings\[0\] holds NaN or infinite"),
        (torch.eye(8)[:4] / torch.eye(8)[:4].flip(0), torch.arange(4), r"embeddings\[0\] holds NaN or infinite"),
    ],
)
def test_wrong_inputs_are_named(embeddings: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss(10, 8, 2, 0.5)(embeddings, labels)


def test_counts_of_numpy_and_labels_of_any_kind_are_taken() -> None:
    torch.manual_seed(0)
    loss = ProxyGMLLoss(np.int64(10), np.int32(16), 2, 0.5)
    embeddings, labels = torch.randn(4, 16), [0, 3, 9, 3]
    expected = loss(embeddings, torch.tensor(labels))
    assert torch.equal(loss(embeddings, labels), expected)
    assert torch.equal(loss(embeddings, np.array(labels)), expected)
    with pytest.raises(ValueError, match=r"labels\[1\] is 10"):
        loss(embeddings, [0, 10, 1, 2])


@pytest.mark.parametrize(
    "convert",
    [
        lambda labels: np.array(labels[::-1])[::-1],
        lambda labels: np.array(labels, ">i4"),
        lambda labels: np.array(labels, np.uint64),
        lambda labels: pd.Series(labels, index=list("abcd")),
        lambda labels: pd.Series(labels, dtype="Int64").array,
        lambda labels: [torch.tensor(label) for label in labels],
        tuple,
    ],
)
def test_labels_in_every_form_count_the_same(convert: Callable[[list[int]], Any]) -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(20, 8, 2, 0.3), torch.randn(4, 8), [0, 3, 19, 3]
    assert torch.equal(loss(embeddings, convert(labels)), loss(embeddings, torch.tensor(labels)))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["a", "b"], "list and hold no class numbers"),
        (np.array(["a", "b"]), "ndarray and hold no class numbers"),
        ([None, 1], "list and hold no class numbers"),
        (pd.Series([None, 1], dtype="Int64"), "torch.float64"),
        (pd.Series([None, 1], dtype=object), "Series and hold no class numbers"),
        (np.ma.array([0, 1], mask=[True, False]), "some are masked"),
        ({"a": 1}, "dict and hold no class numbers"),
        ([2**64, 1], "list and hold no class numbers"),
        (np.array([2**64 - 1, 1], np.uint64), rf"labels\[0\] is {2**64 - 1}, "),
        (np.array([0.0, 1.0]), "torch.float64"),
        ([True, False], "torch.bool"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        make_loss(20, 8, 2, 0.3)(torch.randn(2, 8), labels)


@pytest.mark.parametrize("embeddings", [None, [[0.0] * 8] * 2, np.ones((2, 8)), torch.eye(2, 8).to_sparse()])
def test_embeddings_that_are_no_dense_tensor_are_refused(embeddings: Any) -> None:
    with pytest.raises(ValueError, match="the loss needs a dense tensor"):
        make_loss(20, 8, 2, 0.3)(embeddings, [0, 1])


def test_proxies_whose_squares_overflow_are_not_passed_over() -> None:
    loss = make_loss(20, 8, 2, 0.3)
    with torch.no_grad():
        loss.proxies[3] = 1e30
    assert loss(torch.randn(2, 8), [0, 1]).isnan()


@pytest.mark.parametrize("state", [None, "x", [1, 2], torch.tensor(3), torch.zeros(1, 4), torch.zeros(4)])
def test_a_state_of_another_form_is_refused(state: object) -> None:
    loss = make_loss(20, 8, 2, 0.3)
    with pytest.raises(ValueError, match="it is not the state of a ProxyGMLLoss"):
        loss.load_state_dict(loss.state_dict() | {"_extra_state": state})


@pytest.mark.parametrize("length", [1e-25, 1e-13, 1e19, 1e37])
def test_the_length_of_an_embedding_changes_nothing(length: float) -> None:
    torch.manual_seed(0)
    loss, embeddings, labels = make_loss(20, 8, 2, 0.3), torch.randn(5, 8), torch.arange(5)
    value, gradient, proxies = loss_and_gradients(loss, embeddings, labels)
    scaled = loss_and_gradients(loss, embeddings * length, labels)
    assert_same((scaled[0], scaled[1] * length, scaled[2]), (value, gradient, proxies), 1e-4)


def test_the_state_of_other_classes_is_refused_though_it_has_as_many_proxies() -> None:
    loss = make_loss(10, 4, 6, 0.5)
    before = loss.proxies.detach().clone()
    with pytest.raises(ValueError, match=r"10 proxies of each of the classes 0\.\.5 of 6"):
        loss.load_state_dict(make_loss(6, 4, 10, 0.5).state_dict())
    assert torch.equal(loss.proxies, before)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_taken_as_what_they_show(kind: type[np.floating]) -> None:
    """0.05 of 6,000 proxies are 300, in any precision."""
    plain = ProxyGMLLoss(500, 4, 12, neighbor_ratio=0.05, proxy_weight=0.3, scale=2.0, proxy_sample=0.5)
    other = ProxyGMLLoss(
        500, 4, 12, neighbor_ratio=kind(0.05), proxy_weight=kind(0.3), scale=kind(2), proxy_sample=kind(0.5)
    )
    assert (other.neighbors, other._sample_size) == (plain.neighbors, plain._sample_size) == (300, 3000)
    assert ProxyGMLLoss(500, 4, proxy_sample=np.int64(7))._sample_size == 7


@pytest.mark.parametrize("name", ["neighbor_ratio", "scale", "proxy_weight", "proxy_sample"])
@pytest.mark.parametrize("value", [True, np.bool_(True), np.float32("nan"), np.float64("inf"), "0.5", -1, np.int64(-1)])
def test_what_is_no_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        ProxyGMLLoss(10, 4, **{name: value})

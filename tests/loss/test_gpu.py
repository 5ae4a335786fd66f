"""The loss on a GPU: as exact as on a CPU, without a wait for the host, through NCCL, and as a CUDA graph."""

import socket
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from proxygml import LazyAdam, ProxyGMLLoss
from tests.helpers.dense import dense_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

CASES = [
    (100, 64, 12, 0.05, 0.3, 1.0, {}),
    (2_000, 32, 1, 0.05, 0.0, 20.0, {}),
    (50, 16, 3, 1.0, 0.3, 4.0, {}),
    (60, 16, 4, 0.2, 2.0, 4.0, {"degree_normalized": True}),
    (60, 16, 4, 0.2, 0.3, 4.0, {"positive_mask": False}),
    (60, 16, 4, 0.2, 0.3, 4.0, {"mask_softmax": False}),
]


def made(case: tuple[Any, ...], dtype: torch.dtype, **options: Any) -> tuple[ProxyGMLLoss, Tensor, Tensor]:
    classes, size, *numbers, switches = case
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = ProxyGMLLoss(classes, size, *numbers, dtype=dtype, **switches, **options).cuda()
    embeddings = torch.randn(24, size, dtype=dtype, device="cuda").requires_grad_()
    return loss, embeddings, torch.randint(classes, (24,), device="cuda")


def assert_close(actual: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert actual is not None and expected is not None
    assert (actual.double() - expected).norm() <= tolerance * max(float(expected.norm()), 1e-3)


@pytest.fixture
def one_process_group():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sharded", [False, True])
def test_it_is_the_dense_computation(
    case: tuple[Any, ...], dtype: torch.dtype, tolerance: float, sharded: bool, one_process_group: dist.ProcessGroup
) -> None:
    loss, embeddings, labels = made(case, dtype, **({"process_group": one_process_group} if sharded else {}))
    value = loss(embeddings, labels)
    value.backward()
    samples = embeddings.detach().double().requires_grad_()
    proxies = loss.proxies.detach().double().requires_grad_()
    classes, _, *numbers, switches = case
    expected = dense_loss(samples, proxies, labels, classes, *numbers, **switches)
    expected.backward()
    assert_close(value.detach(), expected.detach(), tolerance)
    assert_close(embeddings.grad, samples.grad, tolerance)
    assert_close(loss.proxies.grad, proxies.grad, tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_step_does_not_wait_for_the_gpu(
    case: tuple[Any, ...], sharded: bool, one_process_group: dist.ProcessGroup
) -> None:
    loss, embeddings, labels = made(case, torch.float32, **({"process_group": one_process_group} if sharded else {}))
    loss(embeddings, labels).backward()  # what is set up on first use may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(embeddings, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_a_cuda_graph_gives_the_same(case: tuple[Any, ...]) -> None:
    loss, embeddings, labels = made(case, torch.float32)

    def step() -> Tensor:
        embeddings.grad = loss.proxies.grad = None
        value = loss(embeddings, labels)
        value.backward()
        return value.detach()

    expected = step(), embeddings.grad, loss.proxies.grad
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    graph.replay()
    for actual, reference in zip((value, embeddings.grad, loss.proxies.grad), expected, strict=True):
        assert_close(actual, reference, 1e-5)


def test_sparse_gradients_train_on_a_gpu() -> None:
    loss, embeddings, labels = made((2_000, 32, 1, 0.01, 0.0, 20.0, {}), torch.float32, sparse=True)
    optimizer = LazyAdam(loss.parameters(), lr=0.1)
    before = float(loss(embeddings, labels))
    for _ in range(5):
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
    assert float(loss(embeddings, labels)) < before


def test_half_precision_embeddings_have_finite_gradients() -> None:
    loss, embeddings, labels = made(CASES[0], torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        low = embeddings.detach().to(dtype).requires_grad_()
        loss(low, labels).backward()
        assert low.grad is not None and low.grad.isfinite().all()

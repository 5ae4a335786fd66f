"""`python -m benchmarks.loss`: a step of the loss, forward and backward, beside the dense computation and the floor.

The floor is the matrix products of the exact loss and its dense gradients, alone, into memory that is there already;
where few proxies are kept we need less than these. The dense computation is that of the tests, its one-hot matrix made
beforehand. SoftTriple and Proxy-Anchor, of pytorch-metric-learning, are other losses of as many proxies, or of one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, SoftTripleLoss
from torch import Tensor, nn

from benchmarks.cases import CUB, SOP, SOP_REGULARISED, Case, batch
from benchmarks.measure import (
    Work,
    console,
    default_device,
    machine,
    mebibytes,
    milliseconds,
    peak_memory,
    side_by_side,
    table,
)
from proxygml import ProxyGMLLoss
from tests.helpers.dense import dense_loss_of, one_hot_proxies

MEMORY_LIMIT = 32 * 2**20


NUMBERS = (1, 2, 4, 6, 12, 20, 30)  # of proxies a class, those of the paper's study


def ours(case: Case, device: torch.device) -> Work:
    """Our loss, forward and backward."""
    torch.manual_seed(0)
    loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale, memory_limit=MEMORY_LIMIT)
    return step_of(loss.to(device), case, device)


def dense(case: Case, device: torch.device) -> Work:
    """The paper's formulas with one-hot matrices, forward and backward."""
    torch.manual_seed(0)
    loss = ProxyGMLLoss(case.C, case.D, case.N, case.r, case.weight, case.scale).to(device)
    one_hot = one_hot_proxies(case.C, case.N).to(device)

    def compute(embeddings: Tensor, labels: Tensor) -> Tensor:
        return dense_loss_of(embeddings, loss.proxies, labels, one_hot, case.r, case.weight, case.scale)

    return backward_of(compute, loss, case, device)


def soft_triple(case: Case, device: torch.device) -> Work:
    """SoftTriple with as many centres a class."""
    torch.manual_seed(0)
    return step_of(SoftTripleLoss(case.C, case.D, centers_per_class=case.N).to(device), case, device)


def proxy_anchor(case: Case, device: torch.device) -> Work:
    """Proxy-Anchor, which has one proxy a class."""
    torch.manual_seed(0)
    return step_of(ProxyAnchorLoss(case.C, case.D).to(device), case, device)


def step_of(loss: nn.Module, case: Case, device: torch.device) -> Work:
    """Forward and backward of a loss as a training loop runs it."""
    return backward_of(loss, loss, case, device)


def backward_of(compute: Callable[[Tensor, Tensor], Tensor], loss: nn.Module, case: Case, device: torch.device) -> Work:
    """Forward and backward of a function of a batch, the gradients of `loss` cleared first."""
    embeddings, labels = batch(case, device)

    def work() -> None:
        loss.zero_grad()
        embeddings.grad = None
        compute(embeddings, labels).backward()  # type: ignore[no-untyped-call]

    return work


def floor(case: Case, device: torch.device) -> Work:
    """The products alone: three with the proxies, and three with the class sums where there is a regulariser."""
    total = case.C * case.N
    samples, proxies = torch.randn(case.M, case.D).to(device), torch.randn(total, case.D).to(device)
    similarity = torch.empty(case.M, total, device=device)
    grad_samples, grad_proxies = torch.empty_like(samples), torch.empty_like(proxies)
    sums = torch.randn(case.C, case.D).to(device)
    grad_sums = torch.empty_like(sums)
    rows = min(total, max(1, MEMORY_LIMIT // (4 * case.C)))
    logits = torch.empty(rows, case.C, device=device)

    def work() -> None:
        torch.mm(samples, proxies.T, out=similarity)
        torch.mm(similarity, proxies, out=grad_samples)
        torch.mm(similarity.T, samples, out=grad_proxies)
        for start in range(0, total, rows) if case.weight else ():
            part = proxies[start : start + rows]
            block = torch.mm(part, sums.T, out=logits[: len(part)])
            torch.mm(block, sums, out=grad_proxies[start : start + rows])
            torch.addmm(grad_sums, block.T, part, out=grad_sums)

    return work


CONTENDERS = {
    "ours": ours,
    "floor": floor,
    "dense": dense,
    "SoftTriple": soft_triple,
    "Proxy-Anchor": proxy_anchor,
}


def peak(contender: str, case: Case) -> int:
    """Bytes that a step of a contender takes beyond its inputs, in a process of its own."""
    return peak_memory(_prepare, contender, case)


def _prepare(contender: str, case: Case) -> Work:
    return CONTENDERS[contender](case, default_device())


def measure(cases: list[Case], seconds: float, skipped: dict[str, set[str]]) -> None:
    """Print a table of the cases; `skipped` names the contenders that are left out of a case."""
    device = default_device()
    columns = ["", "ours", "floor", "ours / floor", "dense", "dense / ours", "SoftTriple", "Proxy-Anchor"]
    times = table("Forward and backward of the loss", columns)
    memory = table("Peak memory of a step beyond embeddings and proxies", ["", "ours", "dense", "of it the gradient"])
    for case in cases:
        left_out = skipped.get(case.name, set())
        works = {name: make(case, device) for name, make in CONTENDERS.items() if name not in left_out}
        taken = side_by_side(works, seconds)
        shown = {name: milliseconds(taken[name]) if name in taken else "-" for name in CONTENDERS}
        dense_ratio = f"{taken['dense'] / taken['ours']:.1f}" if "dense" in taken else "-"
        times.add_row(
            f"{case.name}: {case.symbols}",
            shown["ours"],
            shown["floor"],
            f"{taken['ours'] / taken['floor']:.2f}",
            shown["dense"],
            dense_ratio,
            shown["SoftTriple"],
            shown["Proxy-Anchor"],
        )
        del works
        dense_peak = "-" if "dense" in left_out else mebibytes(peak("dense", case))
        gradient = mebibytes(4 * case.C * case.N * case.D)
        memory.add_row(f"{case.name}: {case.symbols}", mebibytes(peak("ours", case)), dense_peak, gradient)
    console.print(machine(device))
    console.print(times)
    console.print(memory)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two short cases, a few seconds each")
    parser.add_argument("--proxies", action="store_true", help="the first case with 1 to 30 proxies a class instead")
    arguments = parser.parse_args()
    if arguments.proxies:
        measure([replace(CUB, name=f"N {number}", N=number) for number in NUMBERS], seconds=4, skipped={})
        return
    if arguments.quick:
        measure([CUB, SOP], seconds=3, skipped={})
        return
    # Dense with the regulariser, SOP would multiply (11,318, 11,318) by (11,318, 11,318): half a minute and gigabytes.
    measure(
        [CUB, SOP, SOP_REGULARISED], seconds=15, skipped={SOP_REGULARISED.name: {"dense", "SoftTriple", "Proxy-Anchor"}}
    )


if __name__ == "__main__":
    main()

"""The losses and batches that the benchmarks measure. It needs torch alone: each process of a group loads it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A loss and a batch, in the paper's symbols."""

    name: str
    M: int
    D: int
    C: int
    N: int
    r: float
    weight: float
    scale: float

    @property
    def symbols(self) -> str:
        return f"M {self.M}, D {self.D}, C {self.C:,}, N {self.N}, r {self.r:g}, lambda {self.weight:g}"


CUB = Case("CUB-200-2011", 32, 512, 100, 12, 0.05, 0.3, 1.0)
SOP = Case("SOP", 32, 512, 11_318, 1, 0.05, 0.0, 20.0)
SOP_REGULARISED = Case("SOP, regularised", 32, 512, 11_318, 1, 0.05, 0.3, 20.0)
MILLION = Case("", 64, 128, 1_000_000, 1, 0.001, 0.0, 20.0)


def batch(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (M, D) that need a gradient, and their labels, always the same."""
    torch.manual_seed(0)
    embeddings = torch.randn(case.M, case.D).to(device).requires_grad_()
    return embeddings, torch.randint(case.C, (case.M,)).to(device)

"""The largest numbers of each row, such as similarities: torch.topk, or NumPy where that is faster.

On processors with AVX2 or AVX-512, NumPy partitions a row several times as fast as PyTorch, though on one thread. It is
used through the arrays that PyTorch gives out, so that whoever needs torch alone need not import it.
"""

import torch
from torch import Tensor

MOST_THREADS = 3
"""With more of them, PyTorch is faster, which shares the rows among them."""

LEAST_SHARE = 64
"""PyTorch partitions a row where more than one in so many are kept, and has a quicker way where fewer are."""

AT_A_TIME = 2**16
"""Numbers whose indices stay in a processor's cache."""


def largest(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest numbers of each row (M, P) and their int64 columns, both (M, count), in no order.

    Which of several equal numbers is the last is not defined. NaN is larger than all others.
    """
    if not _numpy_is_faster(numbers, count):
        found = numbers.topk(count, dim=1, sorted=False)
        return found.values, found.indices
    rows, width = numbers.shape
    array = numbers.detach().numpy()
    columns = torch.empty(rows, count, dtype=torch.int64)
    step = max(1, AT_A_TIME // width)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        columns.numpy()[block] = array[block].argpartition(width - count, axis=1)[:, width - count :]
    return numbers.gather(1, columns), columns


def _numpy_is_faster(numbers: Tensor, count: int) -> bool:
    return (
        not torch.compiler.is_compiling()
        and numbers.device.type == "cpu"
        and numbers.dtype in (torch.float32, torch.float64)
        and count * LEAST_SHARE > numbers.shape[1]
        and torch.get_num_threads() <= MOST_THREADS
    )

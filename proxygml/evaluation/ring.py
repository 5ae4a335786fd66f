"""The processes of a sharded evaluation: who holds what, shares passed around a ring, counts sent to their owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from proxygml.evaluation.failing import working_group

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")


class Ring:
    """The processes of a group in a circle; alone without a group, when nothing is exchanged.

    Args:
        group: of torch.distributed; None for this process alone.
        device: where the tensors that are exchanged are.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._given, self.device = group, device
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def share(self, array: Array) -> Array:
        """The arrays of all processes, (m_w, ...) each, put together in their order, on every process."""
        return np.concatenate(self.gather(array))

    def gather(self, value: Result) -> list[Result]:
        """A picklable value of each process, in their order, on every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def broadcast(self, value: Result | None) -> Result:
        """The first process's value, on every process."""
        found = [value]
        if self.size > 1:
            source = dist.get_global_rank(self._group, 0)
            dist.broadcast_object_list(found, source, group=self._group)
        assert found[0] is not None
        return found[0]

    def exchange(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Send the next `counts[w]` rows to each process w; what comes from all, in their order."""
        if self.size == 1:
            return rows
        incoming = [found[self.rank] for found in self.gather(list(counts))]
        received = rows.new_empty((sum(incoming), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), incoming, list(counts), group=self._group)
        return received

    def pass_around(
        self, own: list[Tensor], empty_of: Callable[[int], list[Tensor]], steps: int
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Own tensors, then those of the following processes: (owner, tensors), the next on its way meanwhile.

        Args:
            own: this process's tensors.
            empty_of: tensors to receive those of a process into.
            steps: how many processes' tensors to see, its own included; the same on all.
        """
        held = own
        for step in range(steps):
            owner = (self.rank + step) % self.size
            following = empty_of((owner + 1) % self.size) if step + 1 < steps else []
            moving = self._shift(held, following) if following else []
            yield owner, held
            for work in moving:
                work.wait()
            held = following

    def _shift(self, outgoing: list[Tensor], incoming: list[Tensor]) -> list[dist.Work]:
        before, after = (self._neighbour(-1), self._neighbour(1))
        return self._start([(tensor, before) for tensor in outgoing], [(tensor, after) for tensor in incoming])

    def deliver(self, counts: list[Tensor], step: int, empty: list[Tensor]) -> list[Tensor]:
        """Send counts for the process that is `step` further, and receive those of the one that is as far back."""
        sent = [(tensor, self._neighbour(step)) for tensor in counts]
        for work in self._start(sent, [(tensor, self._neighbour(-step)) for tensor in empty]):
            work.wait()
        return empty

    def _start(self, sent: list[tuple[Tensor, int]], received: list[tuple[Tensor, int]]) -> list[dist.Work]:
        operations = [dist.P2POp(dist.isend, tensor, peer, self._group) for tensor, peer in sent if tensor.numel()]
        operations += [dist.P2POp(dist.irecv, tensor, peer, self._group) for tensor, peer in received if tensor.numel()]
        return dist.batch_isend_irecv(operations) if operations else []

    def _neighbour(self, step: int) -> int:
        return dist.get_global_rank(self._group, (self.rank + step) % self.size)

    @property
    def _group(self) -> Any:
        assert self._given is not None
        return working_group(self._given)


def share_bounds(count: int, block: int, size: int) -> Array:
    """(size + 1,) int64: where each process's share of `count` rows begins; shares are of whole blocks of rows."""
    blocks = -(-count // block)
    return np.minimum(np.arange(size + 1) * blocks // size * block, count)

"""Classes divided over processes: which of them a process owns, and what the processes exchange in a step.

With W processes, process w owns whole classes, `classes_of(C, w, W)`, and their proxies. Similarities, class scores and
the proxies' gradients are then local; the processes only exchange a few numbers for each sample. Which exchanges take
place depends on shapes, never on values, so a GPU does not have to wait for its host. Source: ours; Partial FC
(An et al. 2021) shards a plain softmax in this way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

DIGIT_BITS = 8  # radix selection looks at so many bits of a similarity in a round
DIGITS = 2**DIGIT_BITS
_DRAWN_AT_A_TIME = 2**22  # numbers: bounds what drawing the proxies of other processes takes
_KEY_TYPES = {torch.float32: torch.int32, torch.float64: torch.int64}


def classes_of(num_classes: int, process: int, processes: int) -> range:
    """The classes that a process owns: consecutive, whole, and as evenly divided as can be."""
    return range(num_classes * process // processes, num_classes * (process + 1) // processes)


@torch.no_grad()
def draw_owned_(proxies: Tensor, owned: range, num_classes: int, proxies_per_class: int) -> None:
    """Fill this process's proxies (len(owned) * N, D) with what one process would draw for them on a CPU.

    Each process draws the proxies of all processes, a block at a time, and keeps its own: Kaiming uniform with
    a = sqrt(5) and a fan-in of C*N, as ProxyGMLLoss draws them.
    """
    total, size = num_classes * proxies_per_class, proxies.shape[1]
    first, last = owned.start * proxies_per_class, owned.stop * proxies_per_class
    bound = math.sqrt(3) * (torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(total))
    step = max(1, _DRAWN_AT_A_TIME // size)
    # One buffer: the C library would keep some of the memory of many.
    buffer = torch.empty(min(step, total), size, dtype=proxies.dtype)
    for start in range(0, total, step):
        stop = min(start + step, total)
        drawn = buffer[: stop - start].uniform_(-bound, bound)
        low, high = max(start, first), min(stop, last)
        if low < high:
            proxies[low - first : high - first] = drawn[low - start : high - start].to(proxies.device)


class Shard:
    """The part of the loss that is this process's, and its exchanges with the others.

    Args:
        num_classes: C, of all processes together.
        proxies_per_class: N.
        group: the processes that share the loss. Every process must call each of the methods below.

    Attributes:
        classes: the classes that this process owns.
        processes: W, how many processes there are.
    """

    def __init__(self, num_classes: int, proxies_per_class: int, group: dist.ProcessGroup) -> None:
        self.group = group
        self.processes: int = dist.get_world_size(group)
        self.process: int = dist.get_rank(group)
        self.proxies_per_class = proxies_per_class
        self.classes = classes_of(num_classes, self.process, self.processes)
        self.class_counts = [len(classes_of(num_classes, process, self.processes)) for process in range(self.processes)]
        self._host_group = group if _speaks_cpu(group) else _host_group(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shard:
        return self  # a process group cannot be copied, and a copy of the loss is shared by the same processes

    # What every process learns ----------------------------------------------------------------------------------------

    def agree_on_(self, samples: Tensor) -> list[int]:
        """How many samples each process brings. They need a gradient on all processes if they do so on one.

        All take part in exchanging it: also a process whose batch, being empty, no network has computed. The hosts
        exchange this: a GPU goes on computing.
        """
        found = torch.zeros(2 * self.processes, dtype=torch.int64)
        own = torch.tensor([len(samples), int(samples.requires_grad)])
        dist.all_gather_into_tensor(found, own, group=self._host_group)
        counts, needed = found.view(self.processes, 2).T.tolist()
        if any(needed) and not samples.requires_grad:
            samples.requires_grad_()
        return [int(count) for count in counts]

    def gathered(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The rows of all processes, in their order: (sum of sizes, ...) of this process's (sizes[process], ...)."""
        if len(set(sizes)) == 1:
            return self._stacked(rows).flatten(0, 1)
        everything = rows.new_zeros(sum(sizes), *rows.shape[1:])
        everything[self.own_rows(sizes)] = rows
        return self.sum_(everything)

    def _stacked(self, values: Tensor) -> Tensor:
        """The values (m, ...) of all processes, (W, m, ...): the same shape on each."""
        everything = values.new_empty(self.processes * len(values), *values.shape[1:])
        dist.all_gather_into_tensor(everything, values.contiguous(), group=self.group)
        return everything.view(self.processes, *values.shape)

    def own_rows(self, sizes: list[int]) -> slice:
        """Where this process's rows lie among those of all."""
        start = sum(sizes[: self.process])
        return slice(start, start + sizes[self.process])

    def maximum_(self, values: Tensor) -> Tensor:
        """The elementwise maximum over the processes, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def sum_(self, values: Tensor) -> Tensor:
        """The elementwise sum over the processes, in place."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def first_(self, values: Tensor) -> Tensor:
        """The first process's values, in place."""
        dist.broadcast(values, dist.get_global_rank(self.group, 0), group=self.group)
        return values

    # The most similar other proxies -----------------------------------------------------------------------------------

    def most_similar(self, similarity: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's part of the `count` largest similarities of each sample over all processes.

        Args:
            similarity: (M, C_w * N), of all samples to this process's proxies.
            count: how many are kept of all processes' together.

        Returns:
            Similarities (M, q), falling, their int64 columns, and which of them are kept, bool: the others are smaller.
            Of equals at the last place, those of lower processes are kept first.
        """
        values, columns = similarity.topk(min(count, similarity.shape[1]), dim=1)
        kept = self._among_largest(values, count)
        if kept.device.type == "cpu" and kept.numel():  # a GPU would have to wait for the number
            width = int(kept.sum(dim=1).max())
            values, columns, kept = values[:, :width], columns[:, :width], kept[:, :width]
        return values, columns, kept

    def _among_largest(self, values: Tensor, count: int) -> Tensor:
        """Which of falling values (M, q) are among the `count` largest of all processes, bool (M, q)."""
        widest = min(count, max(self.class_counts) * self.proxies_per_class)
        # Both ways give the same. Which one moves fewer numbers depends on shapes alone.
        gathers = widest * self.processes <= torch.finfo(values.dtype).bits // DIGIT_BITS * DIGITS
        last, own_equals = (
            self._last_by_gathering(values, count, widest) if gathers else self._last_by_radix(values, count)
        )
        equal = values == last
        return (values > last) | (equal & (equal.cumsum(dim=1) <= own_equals))

    def _last_by_gathering(self, values: Tensor, count: int, widest: int) -> tuple[Tensor, Tensor]:
        """The smallest value kept, (M, 1), and how many equals of it this process keeps, (M, 1): from all values."""
        padded = torch.nn.functional.pad(values, (0, widest - values.shape[1]), value=-torch.inf)
        everything = self._stacked(padded)
        last = everything.transpose(0, 1).flatten(1).topk(count, dim=1).values[:, -1:]
        missing = count - (everything > last).sum(dim=(0, 2))
        return last, self._kept_equals(missing, (everything == last).sum(dim=2))

    def _last_by_radix(self, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The same by radix selection: the processes add up histograms of the values' bits, 8 bits a round.

        The number of exchanged numbers does not depend on `count`.
        """
        keys = _ordered_keys(values)
        bits = torch.iinfo(keys.dtype).bits
        prefix = keys.new_zeros(len(keys), 1)
        missing = keys.new_full((len(keys), 1), count, dtype=torch.int64)
        for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
            first_round = shift == bits - DIGIT_BITS
            if first_round:
                digits, alike = (keys >> shift) + DIGITS // 2, torch.ones_like(keys, dtype=torch.int32)
            else:
                digits, alike = (keys >> shift) & (DIGITS - 1), (keys >> (shift + DIGIT_BITS) == prefix).int()
            histogram = torch.zeros(len(keys), DIGITS, dtype=torch.int32, device=keys.device)
            self.sum_(histogram.scatter_add_(1, digits.long(), alike))
            # How many values have this digit or a larger one. The digit of the last value kept is the largest for which
            # there are enough.
            reached = histogram.flip(1).cumsum(1).flip(1)
            digit = (reached >= missing).sum(dim=1, keepdim=True) - 1
            missing = missing - (reached.gather(1, digit) - histogram.gather(1, digit))
            prefix = ((prefix << DIGIT_BITS) + digit - (DIGITS // 2 if first_round else 0)).to(keys.dtype)
        equals = self._stacked((keys == prefix).sum(dim=1))
        return _values_of(prefix, values.dtype), self._kept_equals(missing.squeeze(1), equals)

    def _kept_equals(self, missing: Tensor, equals: Tensor) -> Tensor:
        """How many of its own equals this process keeps, (M, 1), of those that are missing (M,); equals (W, M)."""
        before = equals[: self.process].sum(dim=0)
        return (missing - before).clamp(min=0)[:, None]


class Own(NamedTuple):
    """Where each sample's own class, or each of its own proxies, lies among those of this process."""

    places: Tensor  # (M, n) int64: n is 1 for classes and N for proxies
    owned: Tensor | None  # (M, 1) bool: False where another process owns them, and the place is any; None: all are

    def taken(self, values: Tensor) -> Tensor:
        """The own ones of values (M, columns), (M, n); 0 where another process owns them."""
        if self.owned is None:
            return values.gather(1, self.places)
        if values.shape[1] == 0:
            return values.new_zeros(self.places.shape)
        return torch.where(self.owned, values.gather(1, self.places), 0)

    def put_(self, values: Tensor, new: Tensor | float) -> Tensor:
        """Write to the own ones of values (M, columns), in place."""
        if self.owned is not None:
            if values.shape[1] == 0:
                return values
            new = torch.where(self.owned, new, values.gather(1, self.places))
        return values.scatter_(1, self.places, new)


def own_classes(labels: Tensor, shard: Shard | None) -> Own:
    """Each sample's own class among this process's, (M, 1)."""
    if shard is None:
        return Own(labels[:, None], None)
    index = labels[:, None] - shard.classes.start
    owned = (index >= 0) & (index < len(shard.classes))
    return Own(index.clamp(0, max(0, len(shard.classes) - 1)), owned)


def own_proxies(labels: Tensor, proxies_per_class: int, shard: Shard | None) -> Own:
    """Each sample's own proxies among this process's, (M, N)."""
    classes = own_classes(labels, shard)
    offsets = torch.arange(proxies_per_class, device=labels.device)
    return Own(classes.places * proxies_per_class + offsets, classes.owned)


def _ordered_keys(values: Tensor) -> Tensor:
    """Floats as signed integers of the same order; both zeros are one."""
    bits = (values + 0.0).contiguous().view(_KEY_TYPES[values.dtype])
    largest = torch.iinfo(bits.dtype).max
    return torch.where(bits < 0, bits ^ largest, bits)


def _values_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats whose keys these are."""
    largest = torch.iinfo(keys.dtype).max
    return torch.where(keys < 0, keys ^ largest, keys).view(dtype)


def _speaks_cpu(group: dist.ProcessGroup) -> bool:
    return "cpu:" in dist.get_backend_config(group) or dist.get_backend(group) in ("gloo", "mpi")


def _host_group(group: dist.ProcessGroup) -> Any:
    """A group of the same processes whose hosts talk to each other."""
    return dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)

"""Embeddings that several processes hold a part of each: checked, numbered and put together, but for the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from proxygml.errors import UserError
from proxygml.evaluation.failing import failing_together
from proxygml.evaluation.inputs import Labels, as_array, checked_groups, checked_mask, label_values, normalised
from proxygml.evaluation.retrieval import Array, Precision, Retrieval
from proxygml.evaluation.ring import Ring
from proxygml.evaluation.rules import RuleColumns, make_rules

if TYPE_CHECKING:
    from proxygml.evaluation.rules import Rules

NMI_LIMIT = 16 * 2**30
"""Bytes of embeddings that the first process gathers for NMI, at most."""


def sharded_retrieval(
    embeddings: Tensor | Array,
    labels: Labels | None,
    columns: RuleColumns,
    precision: Precision,
    group: dist.ProcessGroup,
) -> Retrieval:
    """The task of all processes, of which each gives its part; without labels all images are of one class."""
    ring = Ring(group, device_of(group))
    unit = _unit(embeddings, ring.device)
    kinds = {kind for part in ring.gather([(unit.shape[1], str(unit.dtype))] if len(unit) else []) for kind in part}
    if len(kinds) > 1:
        raise UserError(f"the processes give embeddings of different widths or types: {sorted(map(str, kinds))}")
    if not kinds:
        raise UserError("no process has an embedding: give at least one")
    if not len(unit):
        ((width, name),) = kinds
        unit = unit.new_empty((0, width), dtype=torch.float64 if name == "torch.float64" else torch.float32)
    counts = ring.gather(len(unit))
    values, local = _local_labels(np.zeros(len(unit), np.int64) if labels is None else labels, len(unit))
    rules = _rules(ring, _numbers(ring, values, local), columns, len(unit))
    return Retrieval(unit, rules, precision, ring, sum(counts[: ring.rank]))


def device_of(group: dist.ProcessGroup) -> torch.device:
    """Where the tensors are that a group exchanges."""
    return torch.device("cuda" if "nccl" in dist.get_backend_config(group) else "cpu")


@failing_together
def vectors_of(embeddings: Tensor | Array, images: Array, process_group: dist.ProcessGroup | None = None) -> Array:
    """The vectors of some images, of length 1, (m, D), on the first process; none of them, (0, D), on the others.

    Args:
        embeddings: (n, D), or this process's part of them.
        images: (m,) int64, the same on all processes: rows of all parts put together.
        process_group: the processes that hold the parts.
    """
    if process_group is None:
        return normalised(embeddings).cpu().numpy()[images]
    task = sharded_retrieval(embeddings, None, {}, "float32", process_group)
    chosen, back = np.unique(images, return_inverse=True)
    found = gathered(task, chosen)
    return np.zeros((0, task.unit.shape[1]), np.float32) if found is None else found[back]


def check_gatherable(task: Retrieval, images: Array) -> None:
    """Raise UserError where the vectors of these images take more than `NMI_LIMIT`, which `gathered` would need."""
    needed = len(images) * task.unit.shape[1] * task.unit.itemsize
    if task.ring.size > 1 and needed > NMI_LIMIT:
        raise UserError(
            f"NMI clusters all embeddings in one process: these take {needed / 2**30:,.0f} GiB, but at most "
            f"{NMI_LIMIT / 2**30:.0f} are gathered: give nmi=False"
        )


def gathered(task: Retrieval, images: Array) -> Array | None:
    """The vectors of these images, rising, on the first process; None on the others."""
    bounds = np.array([0, *[len(images)] * task.ring.size])
    vectors = task.unit_of(images, bounds)
    return vectors.cpu().numpy() if task.ring.rank == 0 else None


def _unit(embeddings: Tensor | Array, device: torch.device) -> Tensor:
    """Unit vectors on the device on which processes exchange; none at all is no error here."""
    if len(embeddings) == 0:
        given = embeddings if isinstance(embeddings, Tensor) else torch.from_numpy(np.asarray(embeddings, np.float32))
        return torch.empty(
            (0, 0), dtype=torch.float64 if given.dtype == torch.float64 else torch.float32, device=device
        )
    unit = normalised(embeddings)
    return unit if unit.device.type == device.type else unit.to(device)


def _local_labels(labels: Labels, count: int) -> tuple[list[int] | list[str], Array]:
    """The labels that occur in this part, sorted, and the place of each image's among them."""
    if count == 0 and len(as_array(labels)) == 0:
        return [], np.zeros(0, np.int64)
    values, codes = np.unique(label_values(labels, count), return_inverse=True)
    return values.tolist(), codes.astype(np.int64)


def _numbers(ring: Ring, values: list[Any], codes: Array) -> Array:
    """The class of each image of all parts, 0.., in the sorted order of the labels."""
    everywhere = ring.gather(values)
    kinds = {"text" if isinstance(value, str) else "numbers" for part in everywhere for value in part[:1]}
    if len(kinds) > 1:
        raise UserError("labels are numbers on some processes and text on others: give one kind")
    union = sorted({value for part in everywhere for value in part})
    number = {value: place for place, value in enumerate(union)}
    mapping = np.array([number[value] for value in values], dtype=np.int64)
    return ring.share(mapping[codes])


def _rules(ring: Ring, codes: Array, columns: RuleColumns, count: int) -> Rules:
    masks = {
        name: _mask(ring, columns.get(name), name, count)
        for name in ("is_query", "is_gallery", "is_junk", "is_distractor")
    }
    groups = {name: _group(ring, columns.get(name), name, count) for name in ("sequence", "camera")}
    rules = make_rules(codes, **masks, **groups)
    if not rules.is_query.any() or not rules.is_gallery.any():
        raise UserError("there is no query or no gallery image on any process: mark at least one of each")
    return rules


def _mask(ring: Ring, mask: Any, name: str, count: int) -> Array | None:
    if not _given(ring, mask, name):
        return None
    part = np.zeros(0, dtype=bool) if count == 0 else checked_mask(mask, name, count, all_false=True)
    return ring.share(np.asarray(part, dtype=bool))


def _group(ring: Ring, values: Any, name: str, count: int) -> Array | None:
    """Numbers that hold over all parts; -1 for none."""
    if not _given(ring, values, name):
        return None
    names, codes = checked_groups(values, name, count)
    number: dict[int | str, int] = {}
    for part in ring.gather(names):
        for value in part:
            number.setdefault(value, len(number))
    mapping = np.array([*(number[value] for value in names), -1], dtype=np.int64)
    return ring.share(mapping[codes])


def _given(ring: Ring, values: object, name: str) -> bool:
    """Whether the argument is given; on all processes, or on none."""
    given: Sequence[bool] = ring.gather(values is not None)
    if any(given) and not all(given):
        raise UserError(f"{name} is given on some processes and not on others: give it on all, or on none")
    return all(given)

"""Which images may answer for which query: roles, sequences, cameras, junk and distractors, and the matches that count.

It needs NumPy alone, so that a catalog can be checked by the same rules without loading PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from proxygml.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]


class RuleColumns(TypedDict, total=False):
    """The rules of an evaluation, as `evaluate` takes them; each (n,), or None for no such rule."""

    is_query: Tensor | Array | Sequence[bool] | None
    is_gallery: Tensor | Array | Sequence[bool] | None
    sequence: Tensor | Array | Sequence[int | str | None] | None
    camera: Tensor | Array | Sequence[int | str | None] | None
    is_junk: Tensor | Array | Sequence[bool] | None
    is_distractor: Tensor | Array | Sequence[bool] | None


def part_of(columns: RuleColumns, part: slice) -> RuleColumns:
    """The rules of some of the images."""
    found = RuleColumns()
    for name, values in columns.items():
        found[name] = None if values is None else values[part]  # type: ignore[literal-required, index]
    return found


@dataclass(frozen=True)
class Rules:
    """The rules of an evaluation of n images; all arrays are (n,).

    Junk is neither query nor gallery. A distractor is no query and of no class, so it is always a wrong answer. Two
    images exclude each other where they have the same number in `sequence`, or in `camera`, whose numbers belong to one
    class each. An image without a sequence or camera has a number of its own.
    """

    codes: Array  # int64, the class of each image
    is_query: Array  # booleans
    is_gallery: Array
    is_junk: Array
    is_distractor: Array
    sequence: Array | None = None  # int64
    camera: Array | None = None

    @property
    def groups(self) -> list[Array]:
        """The numbers by which images exclude each other."""
        return [group for group in (self.sequence, self.camera) if group is not None]

    @cached_property
    def num_matches(self) -> Array:
        """(n,) int64: how many gallery images of its class count for each image."""
        return self._matches(self.groups)

    @cached_property
    def scored(self) -> Array:
        """(n,) booleans: the queries that are scored.

        One without a match in the gallery is left out, and so is one whose matches are all from its own camera, as in
        the protocol of Market-1501. One whose matches are all from its own sequence counts as not found, as in
        open-metric-learning.
        """
        without_sequence = self._matches([] if self.camera is None else [self.camera])
        scored: Array = self.is_query & (without_sequence > 0)
        return scored

    @cached_property
    def in_a_class(self) -> Array:
        """(n,) booleans: the query and gallery images but for distractors."""
        found: Array = (self.is_query | self.is_gallery) & ~self.is_distractor
        return found

    def summary(self) -> dict[str, int]:
        """What the rules beyond queries and gallery did; empty without such rules."""
        found: dict[str, int] = {}
        everything = self._matches([])
        for name, group in (("sequence", self.sequence), ("camera", self.camera)):
            if group is not None:
                excluded = (everything - self._matches([group]))[self.is_query]
                found[f"excluded_matches_of_same_{name}"] = int(excluded.sum())
        if self.sequence is not None:
            found["queries_with_matches_in_own_sequence_only"] = int((self.scored & (self.num_matches == 0)).sum())
        if self.is_junk.any():
            found["junk_images"] = int(self.is_junk.sum())
        if self.is_distractor.any():
            found["distractor_images"] = int((self.is_distractor & self.is_gallery).sum())
        return found

    def _matches(self, groups: Sequence[Array]) -> Array:
        """Gallery images of each image's class, without itself and those that share a group with it."""

        def alike(*keys: Array) -> Array:
            group = joined(self.codes, *keys)
            return np.bincount(group[self.is_gallery], minlength=group.max() + 1)[group]

        if not groups:
            return alike() - self.is_gallery
        counts = alike() - sum(alike(group) for group in groups)
        return counts if len(groups) == 1 else counts + alike(*groups)


def make_rules(
    codes: Array,
    *,
    is_query: Array | None = None,
    is_gallery: Array | None = None,
    sequence: Array | None = None,
    camera: Array | None = None,
    is_junk: Array | None = None,
    is_distractor: Array | None = None,
) -> Rules:
    """The rules of images of these classes; `sequence` and `camera` are numbers as `group_codes` gives them."""
    everything, nothing = np.ones(len(codes), dtype=bool), np.zeros(len(codes), dtype=bool)
    junk = nothing if is_junk is None else is_junk
    distractor = (nothing if is_distractor is None else is_distractor) & ~junk
    # A class of their own, so that a distractor is no match whatever its label says.
    codes = np.where(distractor, codes.max() + 1, codes)
    return Rules(
        codes=codes,
        is_query=(everything if is_query is None else is_query) & ~junk & ~distractor,
        is_gallery=(everything if is_gallery is None else is_gallery) & ~junk,
        is_junk=junk,
        is_distractor=distractor,
        sequence=None if sequence is None else _with_own_numbers(sequence),
        camera=None if camera is None else _with_own_numbers(np.where(camera < 0, -1, joined(codes, camera))),
    )


def group_codes(values: Array | Sequence[int | str | None], name: str) -> Array:
    """(n,) int64: 0.. for equal integers or strings; -1 for None, NaN and empty text.

    Raises:
        UserError: values of another kind.
    """
    return named_groups(values, name)[1]


def named_groups(values: Array | Sequence[int | str | None], name: str) -> tuple[list[int | str], Array]:
    """The values that occur, and for each of n which it is, (n,) int64; errors and -1 as in `group_codes`."""
    numbers: dict[Any, int] = {}
    codes = [-1 if _is_missing(value) else numbers.setdefault(value, len(numbers)) for value in _listed(values)]
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError(f"{name} holds {value!r}, but integers, strings or None (for none) were expected")
    return list(numbers), np.array(codes, dtype=np.int64)


def _listed(values: Array | Sequence[int | str | None]) -> list[object]:
    """Python's own values; whole numbers that a missing one has made floats are integers again."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    plain = [value.item() if isinstance(value, np.generic) else value for value in listed]
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in plain]


def _is_missing(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _with_own_numbers(group: Array) -> Array:
    """The group's numbers, with numbers of their own for images without a group (-1)."""
    own = group.max(initial=0) + 1 + np.arange(len(group))
    return np.where(group < 0, own, group)


def joined(*keys: Array) -> Array:
    """Numbers 0.. that two images share where they share all of the keys, each (n,) int64 and not negative."""
    number = keys[0]
    for key in keys[1:]:
        number = np.unique(number * (key.max(initial=0) + 1) + key, return_inverse=True)[1]
    return number

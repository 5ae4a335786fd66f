"""What callers give to an evaluation, checked and brought to one form: unit vectors, class numbers, masks."""

from __future__ import annotations

import operator
from collections.abc import Sequence, Sized

import numpy as np
import torch
from torch import Tensor

from proxygml.errors import UserError, check_whole, counted
from proxygml.evaluation.retrieval import Array
from proxygml.evaluation.rules import RuleColumns, Rules, make_rules, named_groups

MOST_RESAMPLES = 10**6
"""Of a bootstrap; 1,000 give a steady interval."""

Labels = Tensor | Array | Sequence[int] | Sequence[str]
Mask = Tensor | Array | Sequence[bool]
Groups = Tensor | Array | Sequence[int | str | None]


def normalised(embeddings: Tensor | Array) -> Tensor:
    """A copy (n, D) of length 1 in float32 (or float64), rows of zeros left as they are."""
    given = embeddings.detach() if isinstance(embeddings, Tensor) else np.asarray(embeddings)
    if given.ndim != 2 or 0 in given.shape:
        raise UserError(f"embeddings has the shape {tuple(given.shape)}, but (n, D) was expected, both at least 1")
    vectors = given if isinstance(given, Tensor) else _float_tensor(given)
    if not vectors.is_floating_point():
        raise UserError(f"embeddings is of {vectors.dtype}, but a floating-point type was expected: convert it")
    if vectors.dtype != torch.float64:
        vectors = vectors.float()
    # By the largest entry first: the square of 1e20 is not a float32.
    largest = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=1, keepdim=True)
    if not (finite := torch.isfinite(largest)).all():
        row = int(finite.flatten().int().argmin())
        raise UserError(f"embeddings[{row}] holds a NaN or an infinity: look at the network or image it comes from")
    tiny = torch.finfo(vectors.dtype).tiny
    unit: Tensor = vectors / largest.clamp(min=tiny)
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp(min=tiny))


def _float_tensor(array: Array) -> Tensor:
    if array.dtype.kind != "f":
        raise UserError(f"embeddings is of {array.dtype}, but a floating-point type was expected: convert it")
    precision = np.float64 if array.dtype.itemsize >= 8 else np.float32
    array = np.ascontiguousarray(array, dtype=precision)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def label_codes(labels: Labels, count: int) -> Array:
    """(n,) int64: which class each image is of, 0..C-1."""
    codes: Array = np.unique(label_values(labels, count), return_inverse=True)[1].astype(np.int64)
    return codes


def label_values(labels: Labels, count: int) -> Array:
    """(n,) integers or strings."""
    array = as_array(labels)
    if array.shape != (count,):
        raise UserError(
            f"labels has the shape {array.shape} for {counted(count, 'embedding')}: give one label for each"
        )
    if array.dtype == object:
        wrong = [label for label in array if not isinstance(label, str | int | np.integer)]
        if wrong:
            raise UserError(f"labels holds {wrong[0]!r}, but integers or strings were expected")
        array = array.astype(str)
    if array.dtype.kind not in "iubUS":
        raise UserError(f"labels is of {array.dtype}, but integers or strings were expected")
    return array


def rules_of(codes: Array, columns: RuleColumns) -> Rules:
    """The checked rules of images of these classes, (n,) int64."""
    count = len(codes)
    rules = make_rules(
        codes,
        is_query=checked_mask(columns.get("is_query"), "is_query", count),
        is_gallery=checked_mask(columns.get("is_gallery"), "is_gallery", count),
        sequence=_group_numbers(columns.get("sequence"), "sequence", count),
        camera=_group_numbers(columns.get("camera"), "camera", count),
        is_junk=checked_mask(columns.get("is_junk"), "is_junk", count, all_false=True),
        is_distractor=checked_mask(columns.get("is_distractor"), "is_distractor", count, all_false=True),
    )
    for name, mask in (("queries", rules.is_query), ("gallery images", rules.is_gallery)):
        if not mask.any():
            raise UserError(f"all {name} are junk or distractors: mark at least one image that is neither")
    return rules


def _group_numbers(groups: Groups | None, name: str, count: int) -> Array | None:
    return None if groups is None else checked_groups(groups, name, count)[1]


def checked_groups(groups: Groups, name: str, count: int) -> tuple[list[int | str], Array]:
    """The sequences or cameras that occur, and which each of n images is of, as `named_groups` gives them."""
    values = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else groups
    if not isinstance(values, Sized):
        raise UserError(f"{name} is {values!r}, but must have one value for each embedding")
    if len(values) != count:
        raise UserError(
            f"{name} has {counted(len(values), 'value')} for {counted(count, 'embedding')}: give one for each"
        )
    return named_groups(values, name)


def checked_mask(mask: Mask | None, name: str, count: int, all_false: bool = False) -> Array | None:
    """(n,) booleans, at least one of them True but for `all_false`; None for None."""
    if mask is None:
        return None
    array = as_array(mask)
    if array.shape != (count,):
        raise UserError(
            f"{name} has the shape {array.shape} for {counted(count, 'embedding')}: give one boolean for each"
        )
    if array.dtype != bool:
        raise UserError(f"{name} is of {array.dtype}, but booleans were expected: convert it with .astype(bool)")
    if not all_false and not array.any():
        raise UserError(f"{name} is False for every image: mark at least one")
    return array


def checked_images(queries: Tensor | Array | Sequence[int], count: int) -> Array:
    images = as_array(queries)
    if images.ndim != 1 or not len(images):
        raise UserError(f"queries has the shape {images.shape}, but one index or more was expected, as (q,)")
    if images.dtype.kind not in "iu":
        raise UserError(f"queries is of {images.dtype}, but indices of images were expected: integers in 0..n-1")
    outside = images[(images < 0) | (images >= count)]
    if len(outside):
        raise UserError(f"queries holds {outside[0]}, which is no row of embeddings: give 0..{count - 1}")
    return images.astype(np.int64)


def check_resampling(bootstrap: int, seed: int) -> None:
    check_whole("bootstrap", bootstrap, 1, MOST_RESAMPLES)
    check_whole("seed", seed, 0, 2**32 - 1)


def checked_ks(recall_at: Sequence[int]) -> list[int]:
    try:
        ks = [operator.index(k) for k in recall_at]
    except TypeError:
        ks = []
    if not ks or min(ks) < 1:
        raise UserError(f"recall_at is {recall_at}, but one or more integers were expected, each at least 1")
    return sorted(set(ks))


def as_array(values: Tensor | Array | Sequence[int] | Sequence[str] | Sequence[bool]) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)

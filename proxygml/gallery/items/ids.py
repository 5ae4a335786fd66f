"""Which items a caller names: their ids, or a mask of truth values over the item table."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from proxygml.arrays import Rows
from proxygml.errors import GalleryError, counted

Ids: TypeAlias = Sequence[int] | Rows | pd.Series | pd.Index
"""Ids of items; or where a mask makes sense, one truth value for each item."""


def chosen_ids(given: Ids, all_ids: Callable[[], Rows]) -> Rows:
    """The ids, int64 (n,), of the items that are named.

    Args:
        given: whole numbers; or a mask with one truth value for each item of the gallery, in the order of its table. A
            mask that is a pandas Series is matched by its index, which must hold ids.
        all_ids: gives the ids of the gallery's items, rising; called for masks only.

    Raises:
        GalleryError: neither whole numbers nor a mask that fits.
    """
    if isinstance(given, pd.Series) and pd.api.types.is_bool_dtype(given.dtype):
        if not np.isin(given.index, all_ids()).all():
            raise GalleryError("the mask's index holds values that are no ids of items: derive it from gallery.items")
        named: Rows = given.index[given.fillna(False).to_numpy(dtype=bool)].to_numpy(dtype=np.int64)
        return named
    array: npt.NDArray[Any] = np.asarray(given)
    if array.dtype != bool:
        return whole_ids(given, "ids")
    ids = all_ids()
    if array.shape != ids.shape:
        raise GalleryError(f"the mask has the shape {array.shape}, but the gallery has {counted(len(ids), 'item')}")
    masked: Rows = ids[array]
    return masked


def whole_ids(given: Any, name: str) -> Rows:
    """Whole numbers as int64 (n,); `name` is what messages call them.

    Raises:
        GalleryError: there is anything but whole numbers of 64 bits in one dimension.
    """
    array: npt.NDArray[Any] = np.asarray(given)
    if array.ndim != 1:
        raise GalleryError(f"{name} has the shape {array.shape}: expected whole numbers (n,)")
    if array.dtype.kind == "i":
        if isinstance(given, list | tuple) and any(isinstance(one, bool | np.bool_) for one in given):
            raise GalleryError(f"{name} mixes truth values and numbers: expected whole numbers")
        return array.astype(np.int64)
    numbers = array.tolist()  # of other types: whole numbers beyond int64, or of pandas with its own missing value
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise GalleryError(f"{name} holds {number!r}: expected whole numbers")
        if not -(2**63) <= number < 2**63:
            raise GalleryError(f"the gallery has no item {number}: it was removed, or never was")
    return np.array(numbers, np.int64)

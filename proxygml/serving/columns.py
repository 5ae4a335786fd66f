"""What clients see of the item table: no column that says where the server keeps its files, and cells as JSON."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proxygml.data.images.packed import file_behind
from proxygml.errors import GalleryError, GalleryServerError
from proxygml.gallery.base import Gallery

_SAMPLE = 32  # items


def hidden_columns(gallery: Gallery) -> set[str]:
    """`path`, and every column that holds paths of this machine: most of a few items' values are files that exist."""
    probe = np.ones((1, gallery.manifest.dimension), np.float32)
    try:
        sample = gallery.search(probe, _SAMPLE).rows(0)
    except GalleryServerError:
        raise
    except GalleryError:  # the last items were removed by several processes at the same time
        return {"path"}
    return {"path", *(name for name in gallery.columns if _holds_paths(sample[name]))}


def json_cell(value: Any) -> Any:
    """A cell of the item table as JSON has it: text, number, truth value, list, object, or None for a missing one.

    Numbers that JSON lacks, such as infinity, dates and decimals are text, as in filters; so are bytes, with escapes
    for what is not UTF-8.
    """
    if isinstance(value, (np.ndarray, list, tuple, set, frozenset)):
        return [json_cell(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): json_cell(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if value is None or pd.isna(value):
        return None
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _holds_paths(cells: pd.Series) -> bool:
    texts = [text.removeprefix("file://") for cell in cells for text in _texts(json_cell(cell))]
    existing = [text for text in texts if "\0" not in text and Path(text).is_absolute() and _exists(text)]
    return 2 * len(existing) > len(texts) > 0


def _texts(cell: Any) -> Iterator[str]:
    """The texts in a cell, those in lists and objects too."""
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, list):
        for part in cell:
            yield from _texts(part)
    elif isinstance(cell, dict):
        for part in cell.values():
            yield from _texts(part)


def _exists(path: str) -> bool:
    try:
        return file_behind(Path(path)).exists()
    except OSError:  # a text that is too long to be a path
        return False

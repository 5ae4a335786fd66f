"""Which columns of the item table clients see: none that says where the server keeps its files."""

from pathlib import Path

import numpy as np
import pandas as pd

from proxygml.gallery.base import Gallery

_SAMPLE = 32  # items


def hidden_columns(gallery: Gallery) -> set[str]:
    """`path`, and every column that holds paths of this machine: most of a few items' values are files that exist."""
    probe = np.ones((1, gallery.manifest.dimension), np.float32)
    sample = gallery.search(probe, _SAMPLE).rows(0)
    return {"path", *(name for name in gallery.columns if _holds_paths(sample[name]))}


def _holds_paths(cells: pd.Series) -> bool:
    texts = [cell.removeprefix("file://") for cell in cells.dropna() if isinstance(cell, str)]
    existing = [text for text in texts if "\0" not in text and Path(text).is_absolute() and _exists(text)]
    return 2 * len(existing) > len(texts) > 0


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a text that is too long to be a path
        return False

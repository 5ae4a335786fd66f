"""The kinds of array that the whole package hands around, each named once."""

import numpy as np
import numpy.typing as npt
import pandas as pd

Vectors = npt.NDArray[np.float32]
"""float32, usually (n, D): one vector a row."""

Rows = npt.NDArray[np.int64]
"""int64 (n,): positions in a table or an array, or the ids of items."""

Block = tuple[Vectors, pd.DataFrame]
"""A part of many items: vectors (m, D), and a table with one row for each of them."""

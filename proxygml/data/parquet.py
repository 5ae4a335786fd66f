"""Opening Parquet files on this machine and at URLs, to be read a row group at a time."""

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from proxygml.errors import UserError
from proxygml.files import check_size
from proxygml.remote import opened
from proxygml.urls import Place


def open_parquet(place: Place, kind: type[UserError] = UserError) -> Any:
    """A Parquet file whose row groups are read one at a time; of a URL, by one request for each column of a group.

    Raises:
        UserError: of that kind; it is not there, is no ordinary file, or its store does not answer.
        OSError, ValueError: it is no Parquet file.
    """
    if isinstance(place, Path):
        check_size(place, sys.maxsize, kind)  # reading a pipe would wait for ever
    # By default, Arrow keeps all that it has read of a file until that is closed.
    return pq.ParquetFile(place if isinstance(place, Path) else opened(place, kind), pre_buffer=False)

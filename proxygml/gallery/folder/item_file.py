"""The file of a gallery's items: Parquet, one row for each vector, removed items included."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from proxygml.data.arrow import to_pandas
from proxygml.errors import GalleryError, counted
from proxygml.files import naming
from proxygml.gallery.folder.manifest import Manifest
from proxygml.gallery.items.cells import arrow_table, converted
from proxygml.gallery.items.table import ItemTable


def write_items(path: Path, table: ItemTable) -> None:
    """Write the items as Parquet: `id`, `removed`, and the columns of the schema.

    Raises:
        GalleryError: a column that Parquet cannot hold.
    """
    own = {"id": pa.array(table.ids), "removed": pa.array(~table.alive)}
    columns = arrow_table(table.stored, table.schema)
    with naming(path):
        pq.write_table(pa.table(own | dict(zip(columns.column_names, columns.columns, strict=True))), path)


def read_items(path: Path, manifest: Manifest) -> pd.DataFrame:
    """Read what `write_items` wrote: by id, with the column `removed`.

    Raises:
        GalleryError: it does not fit the manifest.
        OSError, ValueError: it is no Parquet file.
    """
    found = pq.read_metadata(path)
    columns, expected = set(pq.read_schema(path).names), {"id", "removed", *manifest.columns}
    if found.num_rows != manifest.rows or columns != expected:
        raise GalleryError(
            f"{path} has {counted(found.num_rows, 'row')} of {', '.join(sorted(columns))}, but its gallery "
            f"{manifest.rows:,} of {', '.join(sorted(expected))}: build it again"
        )
    table = to_pandas(pq.read_table(path))
    ids = table["id"].to_numpy(dtype=np.int64)
    if len(ids) and (ids[0] < 0 or ids[-1] >= manifest.next_id or (np.diff(ids) <= 0).any()):
        raise GalleryError(f"{path} has ids that do not rise, or beyond {manifest.next_id:,}: build the gallery again")
    try:
        cells = {name: converted(name, table[name], kind) for name, kind in manifest.schema.items()}
    except GalleryError as error:
        raise GalleryError(f"{path} does not fit its gallery.json ({error}): build the gallery again") from error
    removed = table["removed"].to_numpy(dtype=bool)
    return pd.DataFrame(cells).set_axis(pd.Index(ids, name="id")).assign(removed=removed)

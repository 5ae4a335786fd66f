"""From Arrow's tables to pandas' without a change of any value, and back."""

import re

import pandas as pd
import pyarrow as pa

from proxygml.errors import CatalogError

NULLABLE: dict[pa.DataType, pd.api.extensions.ExtensionDtype] = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}


_ROW_NUMBERS = re.compile(r"__index_level_\d+__")
"""What pandas calls an index without a name in a file."""


def to_pandas(table: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """The table in pandas, with nullable types for whole numbers and truth values of which some are missing.

    Arrow's own conversion turns such whole numbers into floats, which are exact only up to 2**53; so it does within
    lists and structs, which become lists and dictionaries of Python's values. What pandas has written as its index is a
    column like any other, but for row numbers, which are left out.
    """
    if b"pandas" in (table.schema.metadata or {}):
        table = table.drop_columns([name for name in table.schema.names if _ROW_NUMBERS.fullmatch(name)])
    kinds = {
        column.type: NULLABLE[column.type] for column in table.columns if column.null_count and column.type in NULLABLE
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get, ignore_metadata=True)
    for place, column in enumerate(table.columns):
        if pa.types.is_nested(column.type):
            frame.isetitem(place, pd.Series(column.to_pylist(), frame.index, dtype=object))
    return frame


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """The table in Arrow, for a Parquet file.

    Raises:
        CatalogError: a column holds values that Arrow does not know, such as a mapping beside a list; it is named.
    """
    try:
        written = pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        for name in table:
            try:
                pa.Table.from_pandas(table[[name]], preserve_index=False)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                reason = str(error.args[0] if error.args else error).splitlines()[0]
                raise CatalogError(f"the column {name!r} cannot be stored ({reason}): convert it to text") from error
        raise
    # pandas notes types of Arrow's own, such as a struct, by names that its read_parquet then cannot read.
    own = any(isinstance(kind, pd.ArrowDtype) for kind in table.dtypes)
    return written.replace_schema_metadata(None) if own else written

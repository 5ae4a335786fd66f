"""From Arrow's tables to pandas' without a change of any value."""

import pandas as pd
import pyarrow as pa

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


def to_pandas(table: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """The table in pandas, with nullable types for whole numbers and truth values of which some are missing.

    Arrow's own conversion turns such whole numbers into floats, which are exact only up to 2**53; so it does within
    lists, which become lists of Python's values.
    """
    kinds = {
        column.type: NULLABLE[column.type] for column in table.columns if column.null_count and column.type in NULLABLE
    }
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    for place, column in enumerate(table.columns):
        if pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
            frame.isetitem(place, pd.Series(column.to_pylist(), frame.index, dtype=object))
    return frame

"""Tables for spreadsheet programs, which would run some text as formulas."""

import re

import pandas as pd

_FORMULA = re.compile(r"[=+@\t\r]|-(?!\d+(\.\d+)?$)")
"""How text begins that is run; a negative number is none, and columns of a CSV catalog hold numbers as text."""


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a single quote in front of text that a spreadsheet program would run as a formula.

    Only text is changed, never a number; taking one quote away gives the text back. (OWASP, "CSV injection".) Catalogs
    are not written with it: our own commands read them again and need them exactly.
    """
    table = table.copy()
    for place, kind in enumerate(table.dtypes):
        if pd.api.types.is_object_dtype(kind) or pd.api.types.is_string_dtype(kind):
            table.isetitem(place, table.iloc[:, place].map(_quoted))
    return table


def _quoted(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

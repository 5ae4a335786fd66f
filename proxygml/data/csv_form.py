"""How a CSV file is written: in which characters, and what separates its columns.

Spreadsheets write `;` or tabs in many countries, and UTF-16 as "Unicode text". catalog/table.py reads the file.
"""

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from proxygml.data.columns import TEXT_COLUMNS
from proxygml.errors import CatalogError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may separate columns, and what messages call it. Where a header does not tell, the first is taken."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class CsvForm:
    """How a file is written.

    Attributes:
        encoding: as Python names it.
        separator: one of SEPARATORS.
        skipped_lines: 1 where a first line states the separator, as a spreadsheet does; it belongs to no table.
        padded: whether a blank follows every separator.
    """

    encoding: str
    separator: str
    skipped_lines: int
    padded: bool

    @classmethod
    def of(cls, path: Path) -> "CsvForm":
        """The form of a file, by its first bytes and its header.

        Raises:
            CatalogError: its header is not in the characters that it seems to be written in.
        """
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        encoding = _encoding(start)
        lines = _decoded(start, encoding).splitlines() or [""]
        stated = lines[0].lstrip().lower()
        skipped = int(stated.startswith("sep=") and stated[4:] in SEPARATORS)
        header = lines[skipped] if len(lines) > skipped else ""
        separator = stated[4:] if skipped else max(SEPARATORS, key=lambda given: _fit(header, given))
        columns = _columns(header, separator)
        return cls(encoding, separator, skipped, len(columns) > 1 and all(name[:1] == " " for name in columns[1:]))

    def __str__(self) -> str:
        """What is unusual about it, for a person; empty for commas and UTF-8."""
        words = [] if self.separator == "," else [f"columns separated by {SEPARATORS[self.separator]}"]
        words += [] if self.encoding == "utf-8-sig" else [self.encoding.upper()]
        return ", ".join(words)


def _encoding(start: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\0" in start[:64]:  # which no text in UTF-8 holds
        return "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    return "utf-8-sig"  # which reads files without a mark too


def _decoded(start: bytes, encoding: str) -> str:
    """The text of the first bytes; the last character may be cut off."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError as error:
        raise CatalogError(not_text(error)) from error


def not_text(error: UnicodeDecodeError) -> str:
    """The message about a table in other characters."""
    found = error.object[error.start : error.start + 1]
    return (
        f"cannot be read as csv: it is not in {error.encoding.upper()} (it holds the byte {found!r}): save it as "
        "UTF-8, which spreadsheets call `CSV UTF-8`"
    )


def _columns(header: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(header), delimiter=separator), [])


def _fit(header: str, separator: str) -> tuple[int, int]:
    """How well a separator fits: how many of the columns of a catalog it gives, then how many columns at all."""
    columns = [name.strip() for name in _columns(header, separator)]
    return sum(name in columns for name in TEXT_COLUMNS), len(columns)

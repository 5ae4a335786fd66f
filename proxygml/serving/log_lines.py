"""A log that hostile requests can neither fill nor write lines of their own into."""

import logging
import re
import time

from proxygml.console import printable
from proxygml.errors import counted

LINES, SECONDS = 5, 60.0
"""So many lines of one kind are written in so many seconds."""

_KINDS = 256  # that are told apart; all further ones count as one kind
_NUMBER = re.compile(r"\d+")


class RepeatedLines(logging.Filter):
    """Leaves out log lines of a kind that comes too often; the next one that is written says how many were left out.

    Lines are of one kind if they have the same level and text, apart from numbers and from what is filled in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, record.levelno, _NUMBER.sub("0", str(record.msg).partition("\n")[0]))
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = ("", 0, "")
        now = time.monotonic()
        start, count = self._kinds.get(kind, (now, 0))
        left_out = 0
        if now - start > SECONDS:
            left_out, start, count = max(0, count - LINES), now, 0
        self._kinds[kind] = (start, count + 1)
        if left_out:
            record.msg = f"{record.msg} (left out: {counted(left_out, 'more line')} like this one)"
        return count < LINES


class PrintableLines(logging.Formatter):
    """Formats records as another formatter does, with control characters written out and further lines indented."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """The record's text; a line that begins at the margin is a record's first."""
        return printable(self._formatter.format(record)).replace("\n", "\n  ")


def protect_log() -> None:
    """Use both for what is logged from now on."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of forms that are refused anyway
    repeated = RepeatedLines()
    for handler in (logging.lastResort, *logging.getLogger().handlers, *logging.getLogger("uvicorn").handlers):
        if handler is not None:
            handler.addFilter(repeated)
            handler.setFormatter(PrintableLines(handler.formatter or logging.Formatter()))

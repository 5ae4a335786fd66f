"""Numbers and points in time, read from text and from objects of Python, NumPy and pandas, exactly.

What a value means for a column is cells.py's (items) and grammar.py's (filters).
"""

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pandas as pd

MOST_DIGITS = 400
"""Digits before the decimal point from which on a number counts as infinite: no column holds such numbers."""

UNITS = {"D": 86_400 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds in the units that columns of dates and times are kept in."""

_TIME = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d{1,9}))?)?"
    r"(?: ?(?P<zone>Z|z|[+-]\d\d(?::?\d\d)?))?)?)?)?"
)


def decimal_of(value: object) -> Decimal | float | None:
    """A number, exact: a Decimal; infinities as floats; None for what is no number, truth values too."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip().replace("_", "?"))
    except InvalidOperation:
        return None
    if number.is_nan():
        return None
    if not number.is_finite() or (number and number.adjusted() >= MOST_DIGITS):
        return float("-inf") if number.is_signed() else float("inf")
    return number


def truth_of(value: object) -> bool | None:
    """A truth value, also as text or as a number; None for anything else."""
    spelt = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return spelt.get(str(value).strip().lower().removesuffix(".0"))


@dataclass(frozen=True)
class Span:
    """What a date or time names, in nanoseconds since 1970: `2021-01` a month, `2021-01-31T12:30` a minute.

    Attributes:
        start: its first nanosecond; without a zone, as if in UTC.
        end: the first one after it.
        zoned: whether it names a time zone; then it is a point in UTC.
        timed: whether it names a time of day.
        exact: whether it names one point in time, as objects do; then `end` is `start` + 1.
    """

    start: int
    end: int
    zoned: bool = False
    timed: bool = False
    exact: bool = False


def span_of(value: object, zone: str = "") -> Span | None:
    """A date or time of ISO 8601, or such an object; None for anything else.

    Args:
        value: text, or a datetime, date, Timestamp or np.datetime64.
        zone: where the days and hours of a value without a zone of its own are; "" for UTC.
    """
    if isinstance(value, np.datetime64):
        unit = np.datetime_data(value.dtype)[0]
        if np.isnat(value):
            return None
        if unit in ("Y", "M", "D", "h", "m"):
            return span_of(str(value) + (":00" if unit == "h" else ""), zone)
        value = pd.Timestamp(value)
    if isinstance(value, datetime):  # a Timestamp is one
        return None if value is pd.NaT else _exact(value, zone)
    text = value.isoformat() if isinstance(value, date) else str(value).strip()
    return _span_of_text(text, zone)


def _span_of_text(text: str, zone: str) -> Span | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    parts = [name for name in ("year", "month", "day", "minute", "second") if found[name]]
    numbers = [int(found[name] or 1) for name in ("year", "month", "day")]
    numbers += [int(found[name] or 0) for name in ("hour", "minute", "second")]
    try:
        start = datetime(*numbers)  # type: ignore[arg-type]  # year to second
    except ValueError:
        return None
    last = parts[-1]
    if last == "year":
        end = np.datetime64(str(start.year), "Y") + 1
    elif last == "month":
        end = np.datetime64(f"{start:%Y-%m}" if start.year > 999 else f"{start.year:04}-{start.month:02}", "M") + 1
    else:
        end = np.datetime64(start, "s") + {"day": 86_400, "minute": 60, "second": 1}[last]
    own = _offset(found["zone"])
    part = found["part"]
    first = _instant(np.datetime64(start, "s"), own, zone)
    if part:
        first += int(part.ljust(9, "0"))
    after = first + 1 if part else _instant(end.astype("datetime64[s]"), own, zone)
    return Span(first, after, own is not None, bool(found["hour"]), bool(part))


def point_in_time(count: int, unit: str, zone: str = "") -> Any:
    """The Timestamp so many units after the beginning of 1970 in UTC, in a zone or without one."""
    moment: Any = np.dtype(f"datetime64[{unit}]").type(count, unit)
    return pd.Timestamp(moment).tz_localize("UTC").tz_convert(zone) if zone else pd.Timestamp(moment)


def _offset(text: str | None) -> int | None:
    """Seconds east of UTC; None where no zone is named."""
    if not text:
        return None
    digits = text.strip().lstrip("+-").replace(":", "").upper().replace("Z", "0").ljust(4, "0")
    return (-1 if text.startswith("-") else 1) * (int(digits[:2]) * 3600 + int(digits[2:4]) * 60)


def _instant(local: np.datetime64, offset: int | None, zone: str) -> int:
    """Nanoseconds since 1970 of a time in whole seconds: east of UTC, else in a zone, else as if in UTC."""
    seconds = int(local.astype(np.int64))
    if offset is not None or not zone:
        return (seconds - (offset or 0)) * 10**9
    try:
        time = pd.Timestamp(local).tz_localize(zone, ambiguous=True, nonexistent="shift_forward").tz_convert(None)
    except (ValueError, OverflowError):  # the first and last days that pandas knows
        return seconds * 10**9
    return int(np.datetime64(time.to_datetime64(), "s").astype(np.int64)) * 10**9


def _exact(value: datetime, zone: str) -> Span:
    time: Any = pd.Timestamp(value)
    zoned = time.tzinfo is not None
    if not zoned and zone:
        time = time.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    if time.tzinfo is not None:
        time = time.tz_convert(None)
    unit = time.unit
    start = int(time.to_datetime64().astype(f"datetime64[{unit}]").astype(np.int64)) * UNITS[unit]
    return Span(start, start + 1, zoned, bool(start % UNITS["D"]) or zoned, True)

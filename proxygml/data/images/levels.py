"""From pixels of other numbers than 0..255 to 8-bit levels. Files seldom say which range they use: one rule decides.

The smallest of these ranges that holds all numbers of the image is taken: 0..255, 0..1,023 (10 bits), 0..4,095
(12 bits) and 0..65,535 for whole numbers, 0..1 first for floating-point ones, which may exceed a range by a tenth of it
and are then cut to it. Where none holds them, the smallest number of the image is black and the largest is white. The
rule is ours.
"""

import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]

OWN = 0
"""Stands for the range from the smallest number of an image to its largest."""

_RANGES = (1, 255, 1023, 4095, 65535)
_SLACK = 0.1
# Which ranges were told of, one byte each: memory that the processes which load images share with this one.
_told = mmap.mmap(-1, 1 + len(_RANGES))


class Assumption(NamedTuple):
    """What was assumed about the numbers of an image."""

    white: int
    """The number that became white: one of 1, 255, 1023, 4095 and 65535, or OWN."""
    text: str
    """The same as a sentence that names the image."""


def as_levels(values: npt.NDArray[Any], name: str, expected: int | None) -> tuple[Levels, Assumption | None]:
    """Scale the numbers of an image to 0..255 by the rule above.

    Args:
        values: of any shape, whole or floating-point numbers.
        name: what the image is called.
        expected: white in the range that its format promises, so that nothing is assumed where the rule finds it;
            None where it promises none.

    Returns:
        uint8 of the same shape, and what was assumed, if anything.

    Raises:
        ValueError: there is a NaN or an infinite number.
    """
    floating = values.dtype.kind == "f"
    if floating and not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite numbers, which have no colour")
    low, high = values.min(), values.max()
    if low == high == 0:  # black in any range
        return np.zeros(values.shape, np.uint8), None
    white = _white(low, high, floating)
    assumption = None if white == expected else Assumption(white, _sentence(name, low, high, white))
    if white == OWN:
        span = float(high) - float(low) or 1.0
        return ((values.astype(np.float64) - float(low)) / span * 255).round().astype(np.uint8), assumption
    if floating:
        return (values.clip(0, white) * (255 / white)).round().astype(np.uint8), assumption
    return (values >> ((white + 1).bit_length() - 9)).astype(np.uint8), assumption


def _white(low: Any, high: Any, floating: bool) -> int:
    slack = _SLACK if floating else 0.0
    for top in _RANGES if floating else _RANGES[1:]:
        if low >= -slack * top and high <= top + slack * top:
            return top
    return OWN


def _sentence(name: str, low: Any, high: Any, white: int) -> str:
    whole = isinstance(low, np.integer)
    found = f"{int(low):,} to {int(high):,}" if whole else f"{low:.4g} to {high:.4g}"
    kind = "whole" if whole else "floating-point"
    taken = f"{found} as black to white" if white == OWN else f"0 as black and {white:,} as white"
    return (
        f"{name} has pixels of {kind} numbers from {found}: {taken} was assumed (as for all such images, which are "
        "not named); convert it to 8 bits to choose yourself"
    )


def tell_once(assumption: Assumption | None) -> None:
    """Print an assumption where it is the first of its range, in this process and those that it has forked."""
    if assumption is None:
        return
    at = (OWN, *_RANGES).index(assumption.white)
    if not _told[at]:
        _told[at] = 1
        from proxygml.console import warn  # noqa: PLC0415  # the processes that decode do without it

        warn(assumption.text)

"""The kinds of galleries, by the index that finds their nearest items; quick to import, for the command line."""

from collections.abc import Mapping
from typing import Literal, get_args

from proxygml.errors import GalleryError, check_whole, counted

Kind = Literal["exact", "hnsw", "ivfpq", "int8", "binary", "ivfbinary"]

CODED: frozenset[Kind] = frozenset({"ivfpq", "int8", "binary", "ivfbinary"})
"""The kinds whose index holds codes of the vectors, so that its similarities are approximate."""

IN_LISTS: frozenset[Kind] = frozenset({"ivfpq", "ivfbinary"})
"""Those that look at the lists nearest to the query alone (IVF)."""

SMALLEST: Mapping[Kind, int] = {"ivfpq": 1000, "int8": 100, "binary": 100, "ivfbinary": 1000}
"""Items below which there is too little to learn the codes from."""

SMALLEST_SIZE: Mapping[Kind, int] = {"binary": 8, "ivfbinary": 8}
"""Numbers of a vector below which a bit for each says nothing."""


def check_kind(kind: str) -> None:
    """Raise GalleryError where there is no such kind of gallery."""
    if kind not in get_args(Kind):
        raise GalleryError(f"kind is {kind!r}, but must be one of {', '.join(get_args(Kind))}")


def check_refine(kind: Kind, refine: int | None) -> None:
    """Raise GalleryError where a gallery of that kind cannot look again at so many candidates for each result."""
    if refine is None:
        return
    check_whole("refine", refine, 0, 10_000, GalleryError)
    if kind not in CODED:
        raise GalleryError(
            f"refine is {refine}, but a gallery of kind {kind} compares the exact vectors anyway: leave refine out, or "
            f"choose one of {', '.join(sorted(CODED))}"
        )


def check_enough(kind: Kind, count: int, size: int | None = None) -> None:
    """Raise GalleryError where an index of that kind cannot be made of so few items, or of vectors of that size."""
    if count < (least := SMALLEST.get(kind, 1)):
        raise GalleryError(
            f"an index of kind {kind} needs at least {counted(least, 'item')}, but there are {count:,}: choose the "
            "kind exact"
        )
    if size is not None and size < (least := SMALLEST_SIZE.get(kind, 1)):
        raise GalleryError(
            f"an index of kind {kind} needs vectors of at least {least} numbers, but these have {size}: choose the "
            "kind exact or int8"
        )

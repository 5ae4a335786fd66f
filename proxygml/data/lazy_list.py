"""Lists that are made of a column of text, an entry at a time: there may be a hundred million rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

_MADE_AT_A_TIME = 2**14


class LazyList(Sequence[T], Generic[T]):
    """What a function makes of each text of a column; made anew whenever it is needed, and never kept.

    Beside the column it takes no memory, and processes that are forked share it: reading it changes no count of
    references, as reading a list does.

    Args:
        texts: a column of text without missing cells.
        make: the function.
    """

    def __init__(self, texts: "pd.Series", make: Callable[[str], T]) -> None:
        self._texts = texts.array
        self._make = make

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(text) for text in self._texts[index].tolist()]
        return self._make(self._texts[int(index)])

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), _MADE_AT_A_TIME):
            yield from self[start : start + _MADE_AT_A_TIME]

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds the same."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as that of a list

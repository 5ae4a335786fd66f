"""Checking the arguments of public functions against their annotations: one message for every value of a wrong type.

Only what a user types is checked: numbers, text, truth values, paths, words of a choice, our own classes, and lists of
these. Arrays and tensors are checked where they are used. Ranges are checked there too, except that NaN is no number.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from inspect import signature
from numbers import Real
from operator import index
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from proxygml.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_SHOWN = 80
"""Characters of a wrong value that a message shows."""

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", NoneType: "None"}


def check_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function raise UserError for an argument that is not of its annotated type."""
    parameters = signature(function)

    @wraps(function)
    def checked(*arguments: P.args, **named: P.kwargs) -> T:
        check_types(_hints(function), parameters.bind(*arguments, **named).arguments)
        return function(*arguments, **named)

    return checked


def check_fields(settings: object, kind: type[UserError], section: str = "") -> None:
    """Raise an error of that kind where a field of a dataclass is not of its annotated type.

    Args:
        settings: the dataclass.
        kind: the error to raise.
        section: what stands before a field's name in the message, such as `images.`.
    """
    annotated: Any = type(settings)
    values = {f"{section}{name}": value for name, value in vars(settings).items()}
    check_types({f"{section}{name}": hint for name, hint in _hints(annotated).items()}, values, kind)


def check_types(hints: Mapping[str, Any], values: Mapping[str, object], kind: type[UserError] = UserError) -> None:
    """Raise an error of that kind for the first value that is not of its type; those without a type may be anything."""
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            shown = repr(value)
            shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}..."
            raise kind(f"{name} is {shown}, but must be {_in_words(hints[name])}")


@cache
def _hints(annotated: Any) -> dict[str, Any]:
    return get_type_hints(annotated)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type; True for types that are not checked here."""
    kinds = _checked_kinds(hint)
    if not kinds:
        return True
    if isinstance(value, str) and (not value or "\0" in value) and os.PathLike in map(_origin, kinds):
        return False  # no path is empty or holds a NUL
    return any(_is_of(value, kind) for kind in kinds)


@cache
def _checked_kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type; none where one of them is not checked here."""
    kinds = tuple(_kinds(hint))
    return kinds if all(map(_is_checked, kinds)) else ()


def _is_of(value: object, kind: Any) -> bool:
    origin = _origin(kind)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in get_args(kind))
    if origin in (Sequence, tuple, list):
        return _is_list(value, get_args(kind))
    checks = {bool: _is_bool, int: _is_whole, float: _is_number}
    return checks[origin](value) if origin in checks else isinstance(value, origin)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # those of NumPy, which is not loaded


def _is_whole(value: object) -> bool:
    try:
        index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not _is_bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not _is_bool(value) and not math.isnan(value)


def _is_list(value: object, parts: Sequence[Any]) -> bool:
    """Text is no list of its characters; what can be read once only is not looked into."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return False
    return not isinstance(value, Sequence) or all(_fits(part, parts[0]) for part in value)


def _is_checked(kind: Any) -> bool:
    origin = _origin(kind)
    known = (bool, int, float, str, NoneType, os.PathLike, Literal, Sequence, tuple, list, Mapping)
    return origin in known or (isinstance(origin, type) and origin.__module__.startswith("proxygml."))


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    return [hint]


def _origin(kind: Any) -> Any:
    return os.PathLike if kind is Path else get_origin(kind) or kind


def _in_words(hint: Any) -> str:
    kinds = _kinds(hint)
    words = ["a path" if any(_origin(kind) is os.PathLike for kind in kinds) else ""]
    for kind in kinds:
        origin = _origin(kind)
        if origin is Literal:
            words.append(f"one of {', '.join(map(str, get_args(kind)))}")
        elif origin in (Sequence, tuple, list):
            words.append(f"a list of values, each {_in_words(get_args(kind)[0])}")
        elif origin is Mapping or origin is dict:
            words.append("keys and values")
        elif origin is not os.PathLike and not (origin is str and words[0]):
            words.append(_WORDS.get(origin) or f"a {origin.__name__}")
    return " or ".join(filter(None, words))

"""JSON files whose content is checked against a type before anything uses it."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from proxygml.errors import UserError
from proxygml.files import check_size

T = TypeVar("T")

LONGEST_VALUE = 100
"""Characters of a wrong value that a message shows."""


def read_typed_json(path: Path, kind: type[T], *, most: int, error: type[UserError], advice: str) -> T:
    """The content of a JSON file as a value of a type, such as a dataclass; numbers stay what the file says.

    Args:
        path: the file.
        kind: the type; keys and values are checked against its fields.
        most: bytes that such a file can have.
        error: the error to raise.
        advice: how to fix a wrong file, as the end of the message.

    Raises:
        UserError: of the kind `error`; the file is missing, no JSON, too large, or its content is of another type.
    """
    check_size(path, most, error)
    try:
        value: T = TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}): {advice}") from problem
    except ValidationError as problem:
        raise error(f"{path}: {first_problem(problem)}: {advice}") from problem
    return value


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong: where it is, what was found, and what was expected."""
    problem = error.errors()[0]
    where, shown = ".".join(map(str, problem["loc"])), repr(problem["input"])
    if problem["type"] == "json_invalid":
        return str(problem["msg"])
    if len(shown) > LONGEST_VALUE:
        shown = f"{shown[:LONGEST_VALUE]}..."
    return f"{where or 'the content'} is {shown}: {problem['msg']}"

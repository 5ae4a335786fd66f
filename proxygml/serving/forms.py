"""Forms and query parameters within limits: no unknown, misplaced or repeated fields, and texts of bounded length."""

import unicodedata
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from proxygml.data.vectors.checks import LARGEST_VECTOR
from proxygml.errors import UserError, counted, did_you_mean
from proxygml.gallery.filters.grammar import column_values
from proxygml.serving.limits import RequestError

MAX_FIELDS = 64
"""Text fields of a form."""

MAX_FIELD_BYTES = 65_536
"""Size of a text field, beyond which the answer is 413 and not 422."""

MAX_VALUE = 200
"""Characters of a value, such as a label, and of a column's name; each is at most 1 KiB of UTF-8 besides."""

WHERE = "a condition: column=value, also !=, <, <=, > and >=; several values of a column are alternatives"
"""What a route says of its field `where`."""

_LONG = {"vector": 32 * LARGEST_VECTOR}
"""Fields that may be longer: a vector of many numbers."""

_MAX_VALUE_BYTES = 1024
_REPEATED = ("where", "column")  # fields that may come several times
_FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, half characters, line separators
_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class FormRoute(APIRoute):
    """A route that refuses query parameters and form fields that it does not have."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()
        query = [field.alias for field in self.dependant.query_params]
        fields = [field.alias for field in self.dependant.body_params]

        takes_none = not (query or fields or self.dependant.path_params)  # /health: some probes add parameters

        async def checked(request: Request) -> Response:
            if not takes_none:
                _check_names([name for name, _ in request.query_params.multi_items()], query, "query parameter")
            if not fields:
                return await handle(request)
            request = _FormRequest(request.scope, request.receive)
            try:
                form = await request.form()
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            names = [name for name, _ in form.multi_items()]
            try:
                _check_names(names, fields, "form field")
                return await handle(request)
            finally:
                await form.close()

        return checked


class _FormRequest(Request):
    """A request whose form is read within our limits, once."""

    _read: FormData | None = None

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]  # FastAPI only awaits it
        if self._read is None:
            self._read = await self._read_form()
        return self._read

    async def _read_form(self) -> FormData:
        kind, options = parse_options_header(self.headers.get("content-type"))
        if kind != b"multipart/form-data":
            return FormData()
        if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
            raise RequestError(422, "the form is in another character set than UTF-8")
        parser = MultiPartParser(
            self.headers, self.stream(), max_files=2, max_fields=MAX_FIELDS, max_part_size=2**40
        )  # the whole body is limited already; a text field is checked below
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise RequestError(422, f"the form cannot be read: {error.message}") from None
        for name, value in form.multi_items():
            most = _LONG.get(name, MAX_FIELD_BYTES)
            if not isinstance(value, UploadFile) and len(value) > most:
                await form.close()
                raise RequestError(413, f"the field {name[:MAX_VALUE]!r} is longer than {counted(most, 'byte')}")
        return form


def _check_names(names: Sequence[str], known: Sequence[str], kind: str) -> None:
    """Raise RequestError, 422, for an unknown name, or one that comes twice and may not."""
    for number, name in enumerate(names):
        if name not in known:
            shown = name[:MAX_VALUE]
            raise RequestError(422, f"there is no {kind} {shown!r}: {did_you_mean(shown, known)}")
        if name in names[:number] and name not in _REPEATED:
            raise RequestError(422, f"the {kind} {name!r} is given twice")


def read_conditions(texts: Sequence[str]) -> list[str]:
    """Conditions of a filter, such as `price>=10`, checked to be short and printable; gallery/filters reads them.

    Raises:
        RequestError: 422 for a text that is not.
    """
    for text in texts:
        _check_text(text, "condition", 2 * MAX_VALUE)
    return list(texts)


def read_pairs(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each column, of texts such as `label=sparrow`.

    Raises:
        RequestError: 422 for a text that is no such pair, or a name or a value that is too long or not printable.
    """
    for text in texts:
        name, _, value = text.partition("=")
        _check_text(name, "name of a column", MAX_VALUE)
        _check_text(value, "value", MAX_VALUE)
    try:
        return column_values(texts)
    except UserError as error:
        raise RequestError(422, str(error)) from None


def read_item(texts: Sequence[str]) -> dict[str, str]:
    """The cells of a new item, of texts such as `label=sparrow`.

    Raises:
        RequestError: 422 for a column that is given twice; see `read_pairs`.
    """
    columns = read_pairs(texts)
    for name, values in columns.items():
        if len(values) > 1:
            raise RequestError(422, f"the column {name!r} is given twice")
    return {name: values[0] for name, values in columns.items()}


def _check_text(text: str, what: str, most: int) -> None:
    """Raise RequestError, 422, for a text that is too long or has control characters."""
    if len(text) > most or len(text.encode(errors="replace")) > most * _MAX_VALUE_BYTES // MAX_VALUE:
        found = f"{text[:20]!r}... has {counted(len(text), 'character')}"
        raise RequestError(
            422, f"a {what} is too long: {found}, but may have {most}, of {most // MAX_VALUE} KiB in all"
        )
    if any(unicodedata.category(character) in _FORBIDDEN or character in _DIRECTIONS for character in text):
        raise RequestError(422, f"a {what} has control characters: {text!r}; leave them out")

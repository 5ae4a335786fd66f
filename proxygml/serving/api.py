"""The HTTP interface of a gallery: FastAPI in front of serving.py, with limits on what a request may cost.

Every refusal is JSON, {"error": "..."}, and its status says which limit it was: 413 too large, 415 no image, 422 not as
asked for, 429 too many at once, 503 too slow. Nothing tells where the server keeps its files.
"""

import asyncio
import hmac
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from threadpoolctl import threadpool_limits

from proxygml import __version__
from proxygml.errors import UserError
from proxygml.gallery.filters import column_values
from proxygml.serving.service import KINDS, Answer, Limits, RequestError, Service, too_many

log = logging.getLogger("proxygml")


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str


class Found(BaseModel, extra="allow"):
    """An item that was found; the columns of the gallery's table come as further keys."""

    rank: int
    score: float = Field(description="cosine similarity, -1..1")
    id: int


class Guess(BaseModel):
    """The class that the neighbours vote for."""

    label: str | None = Field(description="null for none of the gallery's classes")
    share: float = Field(description="of all votes, 0..1")


class SearchAnswer(BaseModel):
    """The nearest items, best first."""

    items: list[Found]
    prediction: Guess | None


class Embedding(BaseModel):
    """A vector of length 1, and the fingerprint of the model that it is of."""

    embedding: list[float]
    model: str


class Added(BaseModel):
    """The id of an item that is now on disk."""

    id: int


class Description(BaseModel):
    """What a client has to know before it asks: the items, their columns, the limits."""

    items: int
    columns: list[str] = Field(description="of an item, to filter by and to give to a new one")
    kinds: list[str] = Field(description="media types of the images that are taken")
    max_k: int = Field(description="most neighbors of a search")
    max_upload_mb: float = Field(description="largest request, in 10**6 bytes")
    max_pixels: int = Field(description="largest image, width times height")
    changes: bool = Field(description="whether items can be added and removed, with the token")


class Health(BaseModel):
    """What is being served."""

    status: str
    items: int
    model: str
    version: str


REFUSALS = {
    401: "the token is missing or wrong",
    403: "the server takes no changes",
    404: "there is no such item",
    409: "the gallery cannot be changed so now",
    413: "the request or the image is too large",
    415: "this is no image of a kind that is taken",
    422: "the request is not as described, or the image is damaged",
    429: "too many requests are under way",
    503: "there was no answer in time",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refusal, "description": REFUSALS[status]} for status in statuses}


_IMAGE = _refusals(413, 415, 422, 429, 503)
_CHANGE = _refusals(401, 403, 409)

Id = Annotated[int, Path(ge=0, le=2**63 - 1)]
Upload = Annotated[UploadFile, File(description="an image file: JPEG, PNG, WebP, GIF or BMP")]


class Metrics:
    """What Prometheus is told."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "status")
        self.requests = Counter("proxygml_requests", "requests answered", labels, registry=self.registry)
        self.seconds = Histogram("proxygml_request_seconds", "time to answer", ("route",), registry=self.registry)
        Gauge("proxygml_items", "items in the gallery", registry=self.registry).set_function(
            lambda: len(service.gallery)
        )
        Gauge("proxygml_requests_under_way", "requests under way", registry=self.registry).set_function(
            lambda: service.active
        )


def make_app(service: Service, token: str = "") -> FastAPI:
    """The application that serves a gallery.

    Args:
        service: the gallery and its model.
        token: what those who change the gallery must show; empty lets nobody.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="proxygml", version=__version__, lifespan=lifespan, description=__doc__ or "")
    metrics = Metrics(service)
    _answer_errors(app)
    _add_questions(app, service)
    _add_changes(app, service, token)
    _add_state(app, service, metrics, bool(token))

    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(Measured, metrics=metrics)  # the outer one, which sees what the other refuses
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post("/search", responses=_IMAGE)
    async def search(
        image: Upload,
        k: Annotated[int, Form(ge=1, le=service.limits.max_k)] = min(10, service.limits.max_k),
        where: Annotated[list[str], Form(description="column=value; several of a column are alternatives")] = [],  # noqa: B006
    ) -> SearchAnswer:
        """The items most similar to an image."""
        async with service.admitted():
            vector = await service.embed(await image.read())
            return _search_answer(await service.search(vector, k, _pairs(where)))

    @app.get("/items/{id}/neighbors", responses=_refusals(404, 422, 429, 503))
    async def neighbors(
        id: Id,
        k: Annotated[int, Query(ge=1, le=service.limits.max_k)] = min(10, service.limits.max_k),
        where: Annotated[list[str], Query(description="column=value; several of a column are alternatives")] = [],  # noqa: B006
    ) -> SearchAnswer:
        """The items most similar to one of the gallery, which is not among them."""
        async with service.admitted():
            return _search_answer(await service.neighbors(id, k, _pairs(where)))

    @app.post("/embed", responses=_IMAGE)
    async def embed(image: Upload) -> Embedding:
        """The vector of an image."""
        async with service.admitted():
            vector = await service.embed(await image.read())
        return Embedding(embedding=vector.tolist(), model=service.gallery.facts.model)

    @app.get(
        "/items/{id}/image",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **_refusals(404, 422, 429, 503)},
    )
    async def picture(id: Id) -> Response:
        """A small JPEG of an item."""
        async with service.admitted():
            return Response(await service.picture(id), media_type="image/jpeg")


def _search_answer(answer: Answer) -> SearchAnswer:
    voted = answer.prediction
    guess = None if voted is None else Guess(label=voted.label, share=voted.share)
    return SearchAnswer(items=[Found(**item) for item in answer.items], prediction=guess)


def _add_changes(app: FastAPI, service: Service, token: str) -> None:
    bearer = HTTPBearer(auto_error=False, description="the token that the operator has set")

    def authorised(shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if not token:
            raise RequestError(403, "this server takes no changes: its operator has set no PROXYGML_TOKEN")
        given = shown.credentials if shown is not None else ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise RequestError(401, "show the operator's token: Authorization: Bearer TOKEN")

    @app.post("/items", status_code=201, responses=_IMAGE | _CHANGE, dependencies=[Depends(authorised)])
    async def add(
        image: Upload,
        column: Annotated[list[str], Form(description="column=value, such as label=sparrow")] = [],  # noqa: B006
    ) -> Added:
        """Add an image; it is on disk when this answers."""
        columns = _pairs(column)
        for name, values in columns.items():
            if len(values) > 1:
                raise RequestError(422, f"the column {name!r} is given twice")
        async with service.admitted():
            values_of = {name: values[0] for name, values in columns.items()}
            return Added(id=await service.add(await image.read(), values_of))

    @app.delete(
        "/items/{id}",
        status_code=204,
        responses=_refusals(404, 422, 429, 503) | _CHANGE,
        dependencies=[Depends(authorised)],
    )
    async def remove(id: Id) -> Response:
        """Remove an item; no search finds it once this has answered."""
        async with service.admitted():
            await service.remove(id)
        return Response(status_code=204)


def _add_state(app: FastAPI, service: Service, metrics: Metrics, has_token: bool) -> None:
    @app.get("/gallery")
    async def gallery() -> Description:
        """The columns of an item, and what a request may ask for."""
        limits = service.limits
        return Description(
            items=len(service.gallery),
            columns=service.columns,
            kinds=[f"image/{kind.lower()}" for kind in KINDS],
            max_k=limits.max_k,
            max_upload_mb=limits.max_upload_mb,
            max_pixels=limits.max_pixels,
            changes=has_token and service.keeps_images,
        )

    @app.get("/health")
    async def health() -> Health:
        """What is being served."""
        gallery = service.gallery
        return Health(status="ok", items=len(gallery), model=gallery.facts.model, version=__version__)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measurements() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _pairs(texts: list[str]) -> dict[str, list[str]]:
    """column=value pairs, by column."""
    try:
        return column_values(texts)
    except UserError as error:
        raise RequestError(422, str(error)) from None


def _answer_errors(app: FastAPI) -> None:
    """Every refusal in one shape, and nothing of the inside of a failure."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return refusal(error)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

    for kind, handler in (
        (RequestError, refused),
        (StarletteHTTPException, http),
        (RequestValidationError, invalid),
        (Exception, failed),
    ):
        app.add_exception_handler(kind, handler)


def refusal(error: RequestError) -> JSONResponse:
    """The answer to a request that is refused."""
    headers = {429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}
    return JSONResponse({"error": error.message}, error.status, headers=headers.get(error.status))


class Measured:
    """Counts requests and the time to their answers, refusals and failures too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, end, status = time.perf_counter(), 0.0, 500

        async def noting(message: Message) -> None:
            nonlocal end, status
            if message["type"] == "http.response.start":
                end, status = time.perf_counter(), message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe((end or time.perf_counter()) - start)


class BodyLimit:
    """Stops reading requests that are too large, too slow or too many, whatever their headers say of their length."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.arriving = 0  # bodies: a request is under way, see Service.admitted, only when it has come whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        if scope["type"] != "http" or (length == b"0" and b"transfer-encoding" not in headers):  # there is no body
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, self.limits)
        if length.isdigit() and body.is_too_large(int(length)):
            await refusal(body.too_large())(scope, receive, send)
        elif self.arriving >= self.limits.queue:
            await refusal(too_many(self.limits))(scope, receive, send)
        else:
            await self._pass_on(scope, body)

    async def _pass_on(self, scope: Scope, body: "_Body") -> None:
        self.arriving += 1
        body.when_read = self._has_arrived
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:  # frameworks wrap what receive raises in errors of their own
            if body.refused is None or body.answered:
                raise  # else it comes of the body's breaking off, and is answered below
        finally:
            body.has_been_read()
        if body.refused is not None and not body.answered:
            await refusal(body.refused)(scope, body.receive_rest, body.send_rest)

    def _has_arrived(self) -> None:
        self.arriving -= 1


class _Body:
    """The body of one request as it arrives, and what is answered to it."""

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        self.receive_rest, self.send_rest = receive, send
        self.limits = limits
        self.end = asyncio.get_running_loop().time() + limits.timeout
        self.bytes = 0
        self.answered = False
        self.refused: RequestError | None = None
        self.when_read: Callable[[], None] | None = None

    async def receive(self) -> Message:
        if self.when_read is None:  # read already: what comes now is only that the client has gone
            return await self.receive_rest()
        try:
            async with asyncio.timeout_at(self.end):
                message = await self.receive_rest()
        except TimeoutError:
            self.refused = RequestError(503, f"the request did not arrive within {self.limits.timeout:g} seconds")
            raise self.refused from None
        self.bytes += len(message.get("body", b""))
        if self.is_too_large(self.bytes):
            self.refused = self.too_large()
            raise self.refused
        if not message.get("more_body", False):
            self.has_been_read()
        return message

    async def send(self, message: Message) -> None:
        # What the application makes of a body that breaks off is not the reason.
        if self.refused is None or self.answered:
            self.answered = True
            await self.send_rest(message)

    def has_been_read(self) -> None:
        """Tell whom it concerns, once."""
        if self.when_read is not None:
            self.when_read()
        self.when_read = None

    def is_too_large(self, length: int) -> bool:
        return length > self.limits.max_upload_mb * 10**6

    def too_large(self) -> RequestError:
        return RequestError(413, f"the request is larger than the {self.limits.max_upload_mb:g} MB that are taken")


@contextmanager
def listen(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, bound before anything is said, and the address that a browser takes.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port} cannot be listened on: {reason}") from None
    with listening:
        # Connections inherit it. asyncio sets it for sockets of its own making alone, and without it the second part of
        # an answer waits 40 ms for the client to acknowledge the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"[{host}]" if ":" in host else host
        yield listening, f"http://{name}:{listening.getsockname()[1]}"


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or a termination signal; those under way are finished."""
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
    # Searches run side by side, and the threads of one wait busily for its next product: on two cores, two of them took
    # twice the processor time for the same answer.
    with threadpool_limits(max(1, (os.cpu_count() or 1) // 4), user_api="blas"):
        uvicorn.Server(config).run(sockets=[listening])

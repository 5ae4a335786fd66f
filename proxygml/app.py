"""The HTTP interface of a gallery: FastAPI in front of serving.py, with limits on what a request may cost.

Every refusal is JSON, {"error": "..."}, and its status says which limit it was: 413 too large, 415 no image, 422 not as
asked for, 429 too many at once, 503 too slow. Nothing tells where the server keeps its files.
"""

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, File, Form, Path, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxygml import __version__
from proxygml.errors import UserError
from proxygml.filters import column_values
from proxygml.serving import Limits, RequestError, Service, too_many

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
    _add_state(app, service, metrics)

    @app.middleware("http")
    async def measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, response.status_code).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - start)
        return response

    app.add_middleware(BodyLimit, limits=service.limits)
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
            answer = await service.search(vector, k, _pairs(where))
        voted = answer.prediction
        guess = None if voted is None else Guess(label=voted.label, share=voted.share)
        return SearchAnswer(items=[Found(**item) for item in answer.items], prediction=guess)

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
            return Response(await asyncio.to_thread(service.picture, id), media_type="image/jpeg")


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


def _add_state(app: FastAPI, service: Service, metrics: Metrics) -> None:
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


class BodyLimit:
    """Stops reading a request that is too large or too slow, whatever its headers say of its length."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.most = round(limits.max_upload_mb * 10**6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.most:
            await refusal(self._too_large())(scope, receive, send)
            return
        end = asyncio.get_running_loop().time() + self.limits.timeout
        seen, read, started = 0, False, False
        refused: RequestError | None = None

        async def limited() -> Message:
            nonlocal seen, read, refused
            if read:  # what comes now is only that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                refused = RequestError(503, f"the request did not arrive within {self.limits.timeout:g} seconds")
                raise refused from None
            seen += len(message.get("body", b""))
            read = not message.get("more_body", False)
            if seen > self.most:
                refused = self._too_large()
                raise refused
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            # What the application makes of a body that breaks off is not the reason.
            if refused is None or started:
                started = True
                await send(message)

        try:
            await self.app(scope, limited, guarded)
        except Exception:
            if refused is None or started:
                raise
        if refused is not None and not started:
            await refusal(refused)(scope, receive, send)

    def _too_large(self) -> RequestError:
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
        name = f"[{host}]" if ":" in host else host
        yield listening, f"http://{name}:{listening.getsockname()[1]}"


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or a termination signal; those under way are finished."""
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
    uvicorn.Server(config).run(sockets=[listening])

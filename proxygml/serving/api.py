"""The HTTP interface of a gallery: its routes, and the shapes of what they take and answer.

Every refusal is JSON, {"error": "..."}, and its status says why: see refusals.py.
"""

import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, File, Form, Path, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware

from proxygml import __version__
from proxygml.data.images.formats import FORMATS, readable_formats
from proxygml.serving.answers import Added, Embedding, SearchAnswer, search_answer
from proxygml.serving.body_limit import BodyLimit
from proxygml.serving.docs import add_docs
from proxygml.serving.failures import Failures
from proxygml.serving.forms import WHERE, FormRoute, read_conditions, read_item
from proxygml.serving.head import HeadRequests
from proxygml.serving.headers import SecurityHeaders
from proxygml.serving.hosts import HostCheck, host_name, local_names, web_origin
from proxygml.serving.limits import RequestError
from proxygml.serving.metrics import Measured, Metrics
from proxygml.serving.refusals import describe_refusals, refuse
from proxygml.serving.root_path import RootPath, checked_root_path
from proxygml.serving.service import Service
from proxygml.serving.vector_api import add_vector_additions, add_vector_questions


class Description(BaseModel):
    """What a client has to know before it asks: the items, their columns, the limits."""

    items: int
    columns: list[str] = Field(description="of an item, to filter by and to give to a new one")
    takes: Literal["image", "vector"] = Field(description="what a search is made with")
    kinds: list[str] = Field(description="media types of the images that are taken")
    vector_size: int | None = Field(description="how many numbers a vector has, where vectors are taken")
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


_IMAGE = describe_refusals(413, 415, 422, 429, 503)
_CHANGE = describe_refusals(401, 403, 409)

Id = Annotated[int, Path(ge=0, le=2**63 - 1)]
Upload = Annotated[UploadFile, File(description="an image file, of one of the `kinds` of GET /gallery")]


DESCRIPTION = """Search a gallery of images by image, add images to it and remove them.

Every refusal is JSON, `{"error": "..."}`; its status says why. Images are sent as the part `image` of a form
(`multipart/form-data`). Changes need the operator's token: `Authorization: Bearer TOKEN`."""


def make_app(
    service: Service,
    token: str = "",
    allowed_hosts: Sequence[str] | None = None,
    *,
    root_path: str = "",
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application that serves a gallery.

    Args:
        service: the gallery and its model.
        token: what those who change the gallery must show; empty lets nobody.
        allowed_hosts: names that the Host header of a request may have; by default this machine's, see `local_names`.
        root_path: where a proxy shows the server, such as /birds; empty for the root of its own address.
        cors_origins: of web sites whose pages may use the interface from a browser, such as https://shop.example.org.

    Raises:
        UserError: an allowed host that is no host name, an origin that is none, a root path that is none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    hosts = local_names() if allowed_hosts is None else [host_name(name) for name in allowed_hosts]
    origins, root = [web_origin(origin) for origin in cors_origins], checked_root_path(root_path)
    app = FastAPI(
        title="proxygml",
        servers=[{"url": root}] if root else None,
        version=__version__,
        lifespan=lifespan,
        description=DESCRIPTION,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = FormRoute
    metrics = Metrics(service)
    _answer_errors(app)
    if service.embedder.takes_images:
        _add_image_questions(app, service)
    else:
        add_vector_questions(app, service)
    _add_item_questions(app, service)
    _add_changes(app, service, token)
    _add_state(app, service, metrics, bool(token))

    add_docs(app)
    _add_middleware(app, service, metrics, hosts, origins, root)
    return app


def _add_middleware(
    app: FastAPI, service: Service, metrics: Metrics, hosts: Sequence[str], origins: Sequence[str], root: str
) -> None:
    """What every request passes, the last one first."""
    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(Failures)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization"], expose_headers=["Retry-After"],
        )  # fmt: skip
    app.add_middleware(HostCheck, allowed=hosts, origins=origins)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(HeadRequests)
    app.add_middleware(RootPath, path=root)
    app.add_middleware(Measured, metrics=metrics)  # the outermost, which counts what the others refuse


def _add_image_questions(app: FastAPI, service: Service) -> None:
    @app.post("/search", responses=_IMAGE)
    async def search(
        image: Upload,
        k: Annotated[int, Form(ge=1, le=service.limits.max_k)] = min(10, service.limits.max_k),
        where: Annotated[list[str], Form(description=WHERE)] = [],  # noqa: B006
    ) -> SearchAnswer:
        """The items most similar to an image."""
        async with service.admitted():
            vector = await service.model.embed_file(await _content(image))
            return search_answer(await service.search(vector, k, read_conditions(where)))

    @app.post("/embed", responses=_IMAGE)
    async def embed(image: Upload) -> Embedding:
        """The vector of an image."""
        async with service.admitted():
            vector = await service.model.embed_file(await _content(image))
        return Embedding(embedding=vector.tolist(), model=service.gallery.manifest.model)


def _add_item_questions(app: FastAPI, service: Service) -> None:
    @app.get("/items/{id}/neighbors", responses=describe_refusals(404, 422, 429, 503))
    async def neighbors(
        id: Id,
        k: Annotated[int, Query(ge=1, le=service.limits.max_k)] = min(10, service.limits.max_k),
        where: Annotated[list[str], Query(description=WHERE)] = [],  # noqa: B006
    ) -> SearchAnswer:
        """The items most similar to one of the gallery, which is not among them."""
        async with service.admitted():
            return search_answer(await service.neighbors(id, k, read_conditions(where)))

    @app.get(
        "/items/{id}/image",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **describe_refusals(404, 422, 429, 503)},
    )
    async def picture(id: Id) -> Response:
        """A small JPEG of an item."""
        async with service.admitted():
            return Response(await service.pictures.of(id), media_type="image/jpeg")


async def _content(image: UploadFile) -> bytes:
    """The image file that was sent; where it was kept until now is free again."""
    data = await image.read()
    await image.close()
    return data


def _add_changes(app: FastAPI, service: Service, token: str) -> None:
    bearer = HTTPBearer(auto_error=False, description="the token that the operator has set")

    def authorised(shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if not token:
            raise RequestError(403, "this server takes no changes: its operator has set no PROXYGML_TOKEN")
        given = shown.credentials if shown is not None else ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            wrong = "this is not the operator's token" if given else "changes need the operator's token"
            raise RequestError(401, f"{wrong}: send the header `Authorization: Bearer TOKEN`")

    if service.embedder.takes_images:
        _add_image_additions(app, service, Depends(authorised))
    else:
        add_vector_additions(app, service, Depends(authorised))

    @app.delete(
        "/items/{id}",
        status_code=204,
        responses=describe_refusals(404, 422, 429, 503) | _CHANGE,
        dependencies=[Depends(authorised)],
    )
    async def remove(id: Id) -> Response:
        """Remove an item; no search finds it once this has answered."""
        async with service.admitted():
            await service.remove(id)
        return Response(status_code=204)


def _add_image_additions(app: FastAPI, service: Service, authorised: Dependency) -> None:
    @app.post("/items", status_code=201, responses=_IMAGE | _CHANGE, dependencies=[authorised])
    async def add(
        image: Upload,
        column: Annotated[list[str], Form(description="column=value, such as label=sparrow")] = [],  # noqa: B006
    ) -> Added:
        """Add an image; it is on disk when this answers."""
        cells = read_item(column)
        async with service.admitted():
            return Added(id=await service.add(await _content(image), cells))


def _add_state(app: FastAPI, service: Service, metrics: Metrics, has_token: bool) -> None:
    @app.get("/gallery")
    async def gallery() -> Description:
        """The columns of an item, and what a request may ask for."""
        limits, takes_images = service.limits, service.embedder.takes_images
        return Description(
            items=service.current.items,
            columns=service.columns,
            takes="image" if takes_images else "vector",
            kinds=[FORMATS[kind].media_type for kind in readable_formats()] if takes_images else [],
            vector_size=None if takes_images else service.embedder.num_features,
            max_k=limits.max_k,
            max_upload_mb=limits.max_upload_mb,
            max_pixels=limits.max_pixels,
            changes=has_token and service.keeps_images,
        )

    @app.get("/health", responses=describe_refusals(503))
    async def health() -> Health:
        """What is being served; 503 while the gallery cannot be read."""
        current = service.current
        if current.failure:
            raise RequestError(503, current.failure)
        model = current.gallery.manifest.model
        return Health(status="ok", items=current.items, model=model, version=__version__)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measurements() -> Response:
        """Counts and times for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _explained(error: StarletteHTTPException) -> str:
    """What to do instead where an address or its method is not served."""
    if error.status_code == 404:
        return "there is nothing at this address: /docs lists what there is"
    if error.status_code == 405:
        return f"this method is not possible here: send {(error.headers or {}).get('Allow', 'another')}"
    return str(error.detail)


_HOW = {
    "image": "send the file itself, as `curl -F image=@query.jpg` does",
    "vector": "send it as text in a form (multipart/form-data), as `curl -F vector=0.1,0.2,...` does",
}


def _wrong_value(name: str, kind: str, message: str) -> str:
    """What is wrong with a field, and how one is sent that is missing or of the wrong kind."""
    if kind == "missing":
        return f"{name}: is missing; {_HOW.get(name, 'send it in a form (multipart/form-data)')}"
    if name in _HOW:
        return f"{name}: is {'text, not a file' if name == 'image' else 'a file, not text'}; {_HOW[name]}"
    return f"{name}: {message}"


def _answer_errors(app: FastAPI) -> None:
    """Every refusal in one shape, and nothing of the inside of a failure."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return refuse(error)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        return JSONResponse({"error": _explained(error)}, error.status_code, headers=error.headers)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": _wrong_value(str(first["loc"][-1]), first["type"], first["msg"])}, 422)

    for kind, handler in (
        (RequestError, refused),
        (StarletteHTTPException, http),
        (RequestValidationError, invalid),
    ):
        app.add_exception_handler(kind, handler)

"""How a refused request is answered: JSON, {"error": "..."}, with a status that says which limit it was."""

from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from proxygml.serving.limits import RequestError


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str


DESCRIPTIONS = {
    401: "the token is missing or wrong",
    403: "the server takes no changes, or none from another web site",
    404: "there is no such item",
    409: "the gallery cannot be changed now",
    413: "the request, a field of it or the image is too large",
    415: "this is not an image of a kind that is accepted",
    421: "the Host header names another server",
    422: "the request is not as described, or the image is damaged",
    429: "too many requests are under way",
    503: "there was no answer in time, or the server is stopping",
    507: "the server's disk is full",
}

_HEADERS = {429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}, 401: {"WWW-Authenticate": "Bearer"}}


def describe_refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, and those that every route has, as FastAPI's `responses` takes them."""
    every = (421,)
    return {status: {"model": Refusal, "description": DESCRIPTIONS[status]} for status in (*statuses, *every)}


def refuse(error: RequestError) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse({"error": error.message}, error.status, headers=_HEADERS.get(error.status))

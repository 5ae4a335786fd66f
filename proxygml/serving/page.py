"""The page of a gallery: a static page, in static/, that uses the HTTP interface as any other client does."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from proxygml.serving.headers import PAGE_HEADERS

FOLDER = Path(__file__).with_name("static")


class PageFiles(StaticFiles):
    """The page's files, which a browser may keep but not use in another way than ours."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def add_page(app: FastAPI) -> FastAPI:
    """The application with the page at / and its files under /static."""
    files = PageFiles(directory=FOLDER)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("page.html", request.scope)

    app.mount("/static", files)
    return app

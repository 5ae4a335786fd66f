"""The description of the interface as a page at /docs: Swagger UI, whose files a package brings, not a network."""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

from proxygml.serving.headers import DOCS_HEADERS

_OURS = Path(__file__).with_name("static")
_SWAGGER = Path(str(files("fastapi_offline"))) / "static"


def add_docs(app: FastAPI) -> None:
    """Serve /docs and its files."""

    def serve(address: str, file: Path) -> None:
        async def answer() -> FileResponse:
            return FileResponse(file, headers=DOCS_HEADERS)

        app.add_api_route(address, answer, include_in_schema=False)

    serve("/docs", _OURS / "docs.html")
    serve("/docs/start.js", _OURS / "docs.js")
    serve("/docs/swagger-ui.css", _SWAGGER / "swagger-ui.css")
    serve("/docs/swagger-ui-bundle.js", _SWAGGER / "swagger-ui-bundle.js")

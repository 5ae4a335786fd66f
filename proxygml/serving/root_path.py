"""A server behind a proxy that gives it a part of another one's addresses, such as https://example.org/birds/."""

import re

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from proxygml.errors import UserError

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def checked_root_path(path: str) -> str:
    """The path without a slash at its end; empty for the root itself.

    Raises:
        UserError: it is no path from the root.
    """
    stripped = path.rstrip("/")
    if stripped and (not _PATH.fullmatch(stripped) or {"..", "."} & set(stripped.split("/"))):
        raise UserError(f"--root_path is {path!r}, but must be a path from the root without queries, such as /birds")
    return stripped


class RootPath:
    """ASGI middleware that takes the path of the proxy's server away, if the proxy has left it there.

    The page and its files name each other relative to their own address, so that an address without the slash at its
    end is sent on to the one with it.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.path and scope["path"] == self.path:
            if scope["method"] in ("GET", "HEAD"):
                await RedirectResponse(f"{self.path}/", 308)(scope, receive, send)
                return
            scope = {**scope, "path": "/"}
        elif scope["type"] == "http" and self.path and scope["path"].startswith(f"{self.path}/"):
            scope = {**scope, "path": scope["path"][len(self.path) :], "raw_path": None}
        await self.app(scope, receive, send)

"""What is answered when a request fails, or cannot be finished: never anything of the server's inside."""

import asyncio
import errno
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxygml.serving.limits import RequestError
from proxygml.serving.refusals import refuse

log = logging.getLogger("proxygml")

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Failures:
    """ASGI middleware that answers for failures: 500, 503 where the server stops first, 507 where its disk is full, 409
    where it may not write to its gallery.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not started:
                answer = RequestError(503, "the server is stopping; a change that was sent may have been made or not")
            elif isinstance(error, OSError) and error.errno in (*_DISK_FULL, *_NOT_WRITABLE):
                log.error("%s %r: %s", scope["method"], scope["path"], error)
                full = error.errno in _DISK_FULL
                what = (507, "the server's disk is full") if full else (409, "the server may not write to its gallery")
                answer = RequestError(what[0], f"{what[1]}: nothing was changed")
            else:
                log.error("%s %r failed", scope["method"], scope["path"], exc_info=error)
                answer = RequestError(500, "the server failed; its log says why")
            if started:
                raise  # the connection is closed in the middle of the answer
            await refuse(answer)(scope, receive, send)

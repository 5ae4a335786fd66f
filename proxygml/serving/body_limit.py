"""Limits on the bodies of requests: their size, the time in which they arrive, how many arrive at a time."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxygml.serving.limits import Limits, RequestError, too_many
from proxygml.serving.refusals import refuse


class BodyLimit:
    """Stops reading bodies that are too large, too slow or too many, whatever their headers say about their length.

    `arriving` counts the bodies that have not come whole; the requests that have are counted by Service.admitted.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        if scope["type"] != "http" or (length == b"0" and b"transfer-encoding" not in headers):  # there is no body
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, self.limits, self._has_arrived)
        if length.isdigit() and body.is_too_large(int(length)):
            await refuse(body.too_large())(scope, receive, send)
        elif self.arriving >= self.limits.queue:
            await refuse(too_many(self.limits))(scope, receive, send)
        else:
            await self._pass_on(scope, body)

    async def _pass_on(self, scope: Scope, body: "_Body") -> None:
        self.arriving += 1
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:  # frameworks wrap what receive raises in errors of their own
            if body.error is None or body.answered:
                raise  # else the error comes from the refused body, and is answered below
        finally:
            body.finish()
        if body.error is not None and not body.answered:
            await refuse(body.error)(scope, body.receive_rest, body.send_rest)

    def _has_arrived(self) -> None:
        self.arriving -= 1


class _State(Enum):
    ARRIVING = auto()
    ARRIVED = auto()  # or nobody reads it any more
    REFUSED = auto()


class _Body:
    """The body of one request as it arrives, and the answer to the request."""

    def __init__(self, receive: Receive, send: Send, limits: Limits, has_arrived: Callable[[], None]) -> None:
        self.receive_rest, self.send_rest = receive, send
        self.limits = limits
        self.end = asyncio.get_running_loop().time() + limits.timeout
        self.bytes = 0
        self.answered = False
        self.error: RequestError | None = None
        self._state = _State.ARRIVING
        self._has_arrived = has_arrived

    async def receive(self) -> Message:
        if self._state is not _State.ARRIVING:  # what comes now is only that the client has gone
            return await self.receive_rest()
        try:
            async with asyncio.timeout_at(self.end):
                message = await self.receive_rest()
        except TimeoutError:
            error = RequestError(503, f"the request did not arrive within {self.limits.timeout:g} seconds")
            raise self._refuse(error) from None
        self.bytes += len(message.get("body", b""))
        if self.is_too_large(self.bytes):
            raise self._refuse(self.too_large())
        if not message.get("more_body", False):
            self.finish()
        return message

    async def send(self, message: Message) -> None:
        # What the application makes of a refused body is not sent: the reason is, see BodyLimit.
        if self.error is None or self.answered:
            self.answered = True
            await self.send_rest(message)

    def finish(self) -> None:
        """Count the body as arrived, if it is not counted yet."""
        self._leave(_State.ARRIVED)

    def _refuse(self, error: RequestError) -> RequestError:
        self.error = error
        self._leave(_State.REFUSED)
        return error

    def _leave(self, state: _State) -> None:
        if self._state is _State.ARRIVING:
            self._state = state
            self._has_arrived()

    def is_too_large(self, length: int) -> bool:
        return length > self.limits.max_upload_mb * 10**6

    def too_large(self) -> RequestError:
        return RequestError(413, f"the request is larger than the {self.limits.max_upload_mb:g} MB that are accepted")

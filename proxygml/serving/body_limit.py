"""Limits on the bodies of requests: their size, alone and together, the time in which they arrive, how many arrive."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxygml.serving.limits import Limits, RequestError, too_many
from proxygml.serving.refusals import refuse

TOGETHER = 16
"""All bodies that are arriving, or of requests under way, have at most so many times `max_upload_mb`."""

_FREE_BYTES = 65_536  # that a body is taken to have sent when it begins


class BodyLimit:
    """Stops reading bodies that are too large, too slow or too many, whatever their headers say about their length.

    Where there are too many, the one that arrives most slowly is refused, so that clients that send theirs in trickles
    keep nobody out.

    All bodies together have at most TOGETHER times as many bytes as one may have. Half of that is shared out among as
    many bodies as there may be, so that small requests are always taken. What larger bodies have beyond their share
    comes from the other half; when it is used up, the largest that still arrives is refused.

    Attributes:
        arriving: the bodies that have not come whole; the requests that have are counted by Service.admitted too.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.arriving: set[_Body] = set()
        self.beyond = 0
        self.most_beyond = int(TOGETHER * limits.max_upload_mb * 10**6) // 2
        self.share = self.most_beyond // (2 * limits.queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        if scope["type"] != "http" or (length == b"0" and b"transfer-encoding" not in headers):  # there is no body
            await self.app(scope, receive, send)
            return
        if length.isdigit() and int(length) > self.limits.max_upload_mb * 10**6:
            await refuse(_too_large(self.limits))(scope, receive, send)
        else:
            if len(self.arriving) >= self.limits.queue:
                self._refuse(min(self.arriving, key=_Body.speed), too_many(self.limits))
            await self._pass_on(scope, _Body(receive, send, self))

    async def _pass_on(self, scope: Scope, body: "_Body") -> None:
        self.arriving.add(body)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:  # frameworks wrap what receive raises in errors of their own
            if body.error is None or body.answered:
                raise  # else the error comes from the refused body, and is answered below
        finally:
            self.arriving.discard(body)
            self._count(body, -body.bytes)
        if body.error is not None and not body.answered:
            await refuse(body.error)(scope, body.receive_rest, body.send_rest)

    def add(self, body: "_Body", size: int) -> None:
        """Count bytes of a body that have arrived; refuse it, or the largest of all, where there are too many."""
        self._count(body, size)
        if body.bytes > self.limits.max_upload_mb * 10**6:
            self._refuse(body, _too_large(self.limits))
        elif self.beyond > self.most_beyond:
            message = "the requests that are under way or arriving are too large together: try again in a second"
            self._refuse(max(self.arriving, key=lambda arriving: arriving.bytes), RequestError(429, message))

    def _refuse(self, body: "_Body", error: RequestError) -> None:
        self.arriving.discard(body)
        self._count(body, -body.bytes)
        body.refuse(error)

    def _count(self, body: "_Body", size: int) -> None:
        before = max(0, body.bytes - self.share)
        body.bytes += size
        self.beyond += max(0, body.bytes - self.share) - before


class _Body:
    """The body of one request as it arrives, and the answer to the request."""

    def __init__(self, receive: Receive, send: Send, owner: BodyLimit) -> None:
        self.receive_rest, self.send_rest = receive, send
        self.bytes = 0
        self.answered = False
        self.error: RequestError | None = None
        self._owner = owner
        self._start = asyncio.get_running_loop().time()
        self._end = self._start + owner.limits.timeout
        self._waiting: asyncio.Timeout | None = None

    async def receive(self) -> Message:
        if self.error is not None:
            raise self.error
        if self not in self._owner.arriving:  # what comes now is only that the client has gone
            return await self.receive_rest()
        message = await self._next_part()
        self._owner.add(self, len(message.get("body", b"")))
        if self.error is not None:
            raise self.error
        if not message.get("more_body", False):
            self._owner.arriving.discard(self)
        return message

    async def _next_part(self) -> Message:
        try:
            async with asyncio.timeout_at(self._end) as self._waiting:
                return await self.receive_rest()
        except TimeoutError:
            seconds = self._owner.limits.timeout
            self.error = self.error or RequestError(503, f"the request did not arrive within {seconds:g} s")
            raise self.error from None
        finally:
            self._waiting = None

    async def send(self, message: Message) -> None:
        # What the application makes of a refused body is not sent: the reason is, see BodyLimit.
        if self.error is None or self.answered:
            self.answered = True
            await self.send_rest(message)

    def speed(self) -> float:
        """Bytes a second, in favor of bodies that have just begun to arrive."""
        return (self.bytes + _FREE_BYTES) / max(0.001, asyncio.get_running_loop().time() - self._start)

    def refuse(self, error: RequestError) -> None:
        """Give the body up, and wake what waits for more of it."""
        self.error = error
        if self._waiting is not None:
            self._waiting.reschedule(0)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the request is larger than the {limits.max_upload_mb:g} MB that are accepted")

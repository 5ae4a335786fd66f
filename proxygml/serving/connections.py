"""Limits on connections: how many, how many from one address, and how long a client may keep one without progress.

Uvicorn has no limit of its own on the time for a request's head, on the time that a client takes to read an answer, or
on the connections of one address. So its protocol class is extended here, through its documented `http` setting.
"""

import asyncio
import ipaddress
import json
import logging
import resource
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from proxygml.serving.headers import SECURITY_HEADERS
from proxygml.serving.limits import Limits

log = logging.getLogger("proxygml")

HEAD_TIMEOUT = 10.0
"""Seconds for the head of a request: from when the connection was opened, or the last answer on it was complete."""

REST_TIMEOUT = 5.0
"""Seconds for which the rest of a body is read after its request was answered, so that the answer gets through."""

READ_SIZE = 16_384
"""Bytes that are read from a connection at a time, before the others have their turn."""

_HELD = 65_536  # bytes of an answer that are held back until the next turn of the event loop

_FREE_CHUNKS, _CHUNK_BYTES = 1000, 100  # so many chunks may be of any size; beyond them, the mean size must be this

_WATCH_EVERY = 1.0  # seconds
_SPARE_FILES = 512  # for bodies, the gallery, and connections that are accepted before others are closed for them


class Phase(IntEnum):
    """What a connection is doing, in the order in which connections are closed to make room for a new one."""

    WAITING = 0  # for the head of a request
    RESTING = 1  # the request is answered, but the rest of its body still arrives
    ANSWERING = 2  # the client has not read the whole answer
    RUNNING = 3  # a request is under way; its own limits end it


class Connections:
    """The open connections of a server.

    Args:
        limits: of which `max_connections`, `max_connections_per_address` and `timeout` are used.
    """

    def __init__(self, limits: Limits) -> None:
        self.most = min(limits.max_connections, _room_for_connections())
        self.most_per_address = limits.max_connections_per_address
        self.allowance = {
            Phase.WAITING: HEAD_TIMEOUT,
            Phase.RESTING: REST_TIMEOUT,
            Phase.ANSWERING: limits.timeout,
            Phase.RUNNING: float("inf"),
        }
        self._open: dict[str, dict[Connection, None]] = {}  # by address, the one without a request for longest first

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def __iter__(self) -> Iterator["Connection"]:
        return iter([connection for group in self._open.values() for connection in group])

    def admit(self, connection: "Connection") -> bool:
        """Count a new connection; where there are too many, close another one, or return False."""
        group = self._open.get(connection.address, {})
        if len(group) >= self.most_per_address:
            admitted = _close_one(group)
        elif len(self) >= self.most:
            admitted = _close_one(max(self._open.values(), key=len, default={}))
        else:
            admitted = True
        if admitted:
            self._open.setdefault(connection.address, {})[connection] = None
        return admitted

    def remove(self, connection: "Connection") -> None:
        """Count a connection no longer."""
        group = self._open.get(connection.address, {})
        group.pop(connection, None)
        if not group:
            self._open.pop(connection.address, None)

    def set_last(self, connection: "Connection") -> None:
        """Make a connection that had a request just now the last of its address to be closed."""
        group = self._open.get(connection.address, {})
        if connection in group:
            del group[connection]
            group[connection] = None

    async def watch(self) -> None:
        """Close connections that make no progress, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_EVERY)
            now = asyncio.get_running_loop().time()
            for connection in self:
                if connection.seconds_in_phase(now) > self.allowance[connection.phase]:
                    connection.transport.abort()


def _close_one(group: dict["Connection", None]) -> bool:
    """Close the connection that is missed least; False where all have requests under way."""
    closable = (connection for connection in group if connection.phase is not Phase.RUNNING)
    connection = min(closable, key=lambda connection: connection.phase, default=None)
    if connection is None:
        return False
    connection.transport.abort()
    connection.connections_of_server.remove(connection)
    return True


def _room_for_connections() -> int:
    """How many connections the limit on open files (`ulimit -n`) leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31
    open_now = sum(1 for _ in Path("/dev/fd").iterdir())
    return max(8, soft - open_now - min(_SPARE_FILES, soft // 2))


class JoinedWrites(asyncio.Transport):
    """A transport that sends together what is written in one turn of the event loop: an answer's head with its body.

    Sent alone, the head wakes the client, which can only wait for the body.

    Args:
        transport: what is written to.
        loop: the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._held = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held += data
        if len(self._held) > _HELD:
            self._send()

    def _send(self) -> None:
        held, self._held = self._held, bytearray()
        if held:
            self._transport.write(held)

    def get_write_buffer_size(self) -> int:
        """See asyncio.WriteTransport."""
        return len(self._held) + self._transport.get_write_buffer_size()

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """See asyncio.WriteTransport."""
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio.BaseTransport."""
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        """See asyncio.ReadTransport."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """See asyncio.ReadTransport."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See asyncio.ReadTransport."""
        self._transport.resume_reading()


class Connection(H11Protocol):
    """One connection, as Uvicorn's h11 protocol serves it, within the limits of `connections_of_server`."""

    connections_of_server: Connections
    admitted = False
    address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = JoinedWrites(transport, self.loop)
        self.conn = _CountingConnection(h11.SERVER, READ_SIZE)
        self.address = _network(transport.get_extra_info("peername"))
        self._seen: tuple[Phase, RequestResponseCycle | None] = (Phase.WAITING, None)
        self._since = self.loop.time()
        if not self.connections_of_server.admit(self):
            log.warning("a connection is refused: %d from its address, or %d in all", *self._counts())
            self.transport.write(_raw_answer(503, "too many connections are open: try again later"))
            self.transport.close()
            return
        self.admitted = True
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]  # asyncio's own would let one client keep the loop
        super().connection_made(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections_of_server.remove(self)
        if self.admitted:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.admitted and not self.transport.is_closing():
            super().data_received(data)

    def on_response_complete(self) -> None:
        self.connections_of_server.set_last(self)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request; where an answer has begun, that one ends here."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            message = "this is not an HTTP/1.1 request that can be read, or its head is too long"
            self.transport.write(_raw_answer(400, message))
        self.transport.close()

    @property
    def phase(self) -> Phase:
        """What the connection is doing now."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None:
            return Phase.WAITING
        if not cycle.response_started:  # it may wait for the client to read the answer before it
            return Phase.ANSWERING if self.flow.write_paused else Phase.RUNNING
        if not cycle.response_complete or self.transport.get_write_buffer_size():
            return Phase.ANSWERING
        return Phase.RESTING if self.conn.their_state is h11.SEND_BODY else Phase.WAITING

    def seconds_in_phase(self, now: float) -> float:
        """For how long the connection has been in its phase, of the same request, when it is looked at regularly."""
        seen = (self.phase, self.cycle)  # kept, so that no later request can be taken for this one
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since

    def _counts(self) -> tuple[int, int]:
        connections = self.connections_of_server
        return connections.most_per_address, connections.most


def protocol_class(connections: Connections) -> type[Connection]:
    """The class of the connections that are to be counted there, for Uvicorn's `http` setting."""
    return type("BoundConnection", (Connection,), {"connections_of_server": connections})


class _CountingConnection(h11.Connection):
    """h11's state machine, which refuses bodies in chunks so small that reading them would keep the server busy."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._chunks, self._bytes = 0, 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks, self._bytes = 0, 0
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._bytes / _CHUNK_BYTES:
                raise h11.RemoteProtocolError("the chunks of the body are too small", 400)
        return event


def _network(peer: Any) -> str:
    """A client's address as connections are counted by it; an IPv6 network of 64 bits is taken for one client."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _raw_answer(status: int, error: str) -> bytes:
    """An answer outside of the application, after which the connection is closed."""
    body = json.dumps({"error": error}).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": len(body),
        "Connection": "close",
        **SECURITY_HEADERS,
    }
    reason = {400: "Bad Request", 503: "Service Unavailable"}[status]
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body

"""The process that listens and answers: its socket, its connections, its end."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import uvicorn
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits

from proxygml.errors import UserError
from proxygml.serving.connections import Connections, protocol_class
from proxygml.serving.limits import Limits
from proxygml.serving.log_lines import protect_log

GRACE = 8
"""Seconds in which requests under way are finished when the server is stopped: container managers kill after ten."""

BACKLOG = 128
"""Connections that the system accepts before the server has seen them; all may be taken over at a time."""


@contextmanager
def listen(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, bound before anything is said, and the address that a browser takes.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"--host {host} --port {port} cannot be listened on: {reason}; choose others") from None
    with listening:
        # Connections inherit it. asyncio sets it for sockets of its own making alone, and without it the second part of
        # an answer waits 40 ms for the client to acknowledge the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"[{host}]" if ":" in host else host
        yield listening, f"http://{name}:{listening.getsockname()[1]}"


class Server(uvicorn.Server):
    """Uvicorn within limits on connections, which ends at once on a second signal.

    Args:
        app: what answers the requests.
        limits: see there.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.connections = Connections(limits)
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=protocol_class(self.connections),
            ws="none",
            log_level="warning",
            use_colors=False,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # connections are counted by the address that they come from
            backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE,
        )
        super().__init__(config)
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._watching = asyncio.create_task(self.connections.watch())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish the requests under way on the first signal, and end at once on the second.

        Additions and removals are saved in one step, so that ending at once loses none that was answered.
        """
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True


def limit_network_threads() -> None:
    """Let PyTorch use at most half of the cores, and leave the others to decoding and searching.

    It is called before the model is loaded, since the threads of that would be counted too.
    On two cores a second thread made the network slower: threads of which not all can run wait for each other by
    sleeping, after each layer. An image took 12 to 17 ms; with one thread it takes 7 to 9.
    """
    torch.set_num_threads(min(torch.get_num_threads(), max(1, (os.cpu_count() or 1) // 2)))


def run_server(app: ASGIApp, listening: socket.socket, limits: Limits) -> None:
    """Answer requests until Ctrl-C or a termination signal.

    Those under way are then finished; what takes longer than GRACE seconds gets status 503.
    """
    server = Server(app, limits)
    protect_log()
    # Searches run side by side, and the threads of one wait busily for its next product: on two cores, two of them took
    # twice the processor time for the same answer.
    with threadpool_limits(max(1, (os.cpu_count() or 1) // 4), user_api="blas"):
        server.run(sockets=[listening])

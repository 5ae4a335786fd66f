"""The process that listens and answers: its socket, its connections, its end."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from threadpoolctl import threadpool_limits

from proxygml.errors import UserError


@contextmanager
def listen(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket, bound before anything is said, and the address that a browser takes.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port} cannot be listened on: {reason}") from None
    with listening:
        # Connections inherit it. asyncio sets it for sockets of its own making alone, and without it the second part of
        # an answer waits 40 ms for the client to acknowledge the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = f"[{host}]" if ":" in host else host
        yield listening, f"http://{name}:{listening.getsockname()[1]}"


def run_server(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or a termination signal; those under way are finished."""
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=10)
    # Searches run side by side, and the threads of one wait busily for its next product: on two cores, two of them took
    # twice the processor time for the same answer.
    with threadpool_limits(max(1, (os.cpu_count() or 1) // 4), user_api="blas"):
        uvicorn.Server(config).run(sockets=[listening])

"""A process that decodes images for a DecoderPool, and does nothing else. It loads no PyTorch, so that it is small.

It reads a request from the socket that it inherited, answers, and reads the next one. It ends at once when the other
end of the socket is closed, which the operating system does when its parent dies, however that happens.
"""

import json
import mmap
import os
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from proxygml.data.images.decode import decode_silently, read_file
from proxygml.errors import ImageError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

_LENGTHS = struct.Struct("!IQ")
_LARGE = 2**20


def send(connection: socket.socket, header: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Send a message: a header as JSON, then bytes."""
    text = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(payload)) + text)
    if len(payload):
        connection.sendall(payload)


def receive(connection: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """Receive what `send` sent.

    Raises:
        EOFError: the other end is closed.
        TimeoutError: the socket's time limit has passed.
    """
    lengths = _LENGTHS.unpack(_receive(connection, _LENGTHS.size))
    header: dict[str, Any] = json.loads(bytes(_receive(connection, lengths[0])))
    return header, _receive(connection, lengths[1])


def _receive(connection: socket.socket, length: int) -> memoryview:
    # A large block of its own, which goes back to the system as soon as nobody uses it.
    view = memoryview(mmap.mmap(-1, length) if length > _LARGE else bytearray(length))
    at = 0
    while at < length:
        count = connection.recv_into(view[at:])
        if count == 0:
            raise EOFError("the other end is closed")
        at += count
    return view


def main() -> None:
    """Answer requests until the other end is closed. Arguments: the socket's number, bytes of memory."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    _limit_memory(int(sys.argv[2]))
    with suppress(EOFError, OSError, KeyboardInterrupt):
        send(connection, {})
        _silence()
        while True:
            request, data = receive(connection)
            _limit_processor_time(int(request["seconds"]))
            _answer(connection, request, data)
            del data


def _answer(connection: socket.socket, request: dict[str, Any], data: memoryview) -> None:
    name = request["name"]
    try:
        content = read_file(request["path"]) if "path" in request else bytes(data)
        pixels, assumption = decode_silently(content, name, max_pixels=request["max_pixels"])
    except ImageError as error:
        send(connection, {"error": str(error)})
    except MemoryError:
        send(connection, {"error": f"{name} takes too much memory to be decoded: scale it down, or leave it out"})
    else:
        size = {"height": pixels.shape[0], "width": pixels.shape[1], "assumption": assumption}
        if request["pixels"]:
            send(connection, size, pixels.reshape(-1).data)
        else:
            send(connection, size | {"digest": blake2b(content, digest_size=16).hexdigest()})


def _end_with_parent(connection: socket.socket) -> None:
    """End this process as soon as the other end is closed, also in the middle of an image (not on Windows)."""
    if hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(connection, getattr(select, "POLLRDHUP", select.POLLHUP))
        waiting.poll()
        os._exit(0)


def _silence() -> None:
    """Write no more to standard error: libraries complain there of each hostile image, which would fill the log."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _limit_memory(most: int) -> None:
    """Let allocations fail beyond so many bytes more than now (Linux)."""
    statistics = Path("/proc/self/statm")
    if resource is not None and statistics.is_file():
        limit = int(statistics.read_text().split()[0]) * resource.getpagesize() + most
        _set_limit(resource.RLIMIT_AS, limit)


def _limit_processor_time(seconds: int) -> None:
    """End this process (SIGXCPU) when it has worked for so many seconds more."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        _set_limit(resource.RLIMIT_CPU, limit)


def _set_limit(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()

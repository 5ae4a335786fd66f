"""Decoding in processes of their own, so that a hostile image can stop one of them at most, and only for seconds.

Why not a library: a process is shared with nobody, talks through its own socket without pickle, and starts without
PyTorch. concurrent.futures breaks as a whole when one process dies, and cannot stop one that takes too long; Pebble,
which can, sends all tasks through one pipe and one lock.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from proxygml.data.images.bounds import MAX_PIXELS
from proxygml.data.images.decoder_worker import receive, send
from proxygml.data.images.levels import Assumption, tell_once
from proxygml.data.images.orientation import Pixels
from proxygml.errors import ImageError
from proxygml.urls import Place

MEMORY_PER_PIXEL, FREE_MEMORY = 40, 2**26
"""Bytes that decoding may take: an animated WebP with transparency takes 31 a pixel, a photo 6 to 12."""

_START_SECONDS = 120
# Nothing of the parent's environment but what Python and its libraries need to start: it may hold secrets.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "LANG", "LC_ALL", "TMPDIR")
_SETTINGS = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}


class DecoderStoppedError(Exception):
    """A process ended, or had no time to finish, through no fault of the image: try again later."""


class ImageFacts(NamedTuple):
    """What decoding a file says about it."""

    digest: bytes
    """BLAKE2b of the file, 16 bytes."""
    height: int
    """Of the upright image, in pixels."""
    width: int


class DecoderPool:
    """Processes that decode images; any number of threads may call it. A context manager: leaving it ends them.

    Args:
        size: how many processes, and so how many images at a time.
        processor_seconds: a process that works longer on one image is stopped, and the image is at fault.
        seconds: a process that takes longer by the clock is stopped, and nobody is at fault.
        max_pixels: height times width may be at most this.
    """

    def __init__(
        self, size: int, processor_seconds: int = 60, seconds: float = 300.0, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.max_pixels = max_pixels
        self._processor_seconds = processor_seconds
        self._seconds = seconds
        self._free = threading.Semaphore(size)
        self._closed = False
        self._idle = deque(self._started() for _ in range(size))
        self._all = set(self._idle)
        self._lock = threading.Lock()

    def decode(self, data: bytes, name: str, max_pixels: int | None = None) -> Pixels:
        """Decode the bytes of an image file; see `decode.decode`.

        Raises:
            ImageError: also where the image takes too much time or memory, or a process crashes on it.
            DecoderStoppedError: the process was stopped through no fault of the image.
        """
        request = {"name": name, "pixels": True, "max_pixels": max_pixels or self.max_pixels}
        answer, pixels = self._run(request, data)
        return np.frombuffer(pixels, np.uint8).reshape(answer["height"], answer["width"], 3)

    def inspect(self, path: Place, data: bytes | None = None) -> ImageFacts:
        """Decode an image file only to see whether that works; raises as `decode`.

        Args:
            path: the file, which the process reads.
            data: its content, where the process cannot read it.
        """
        request = {"name": str(path), "pixels": False, "max_pixels": self.max_pixels}
        if data is None:
            request["path"] = str(path)
        answer, _ = self._run(request, data or b"")
        return ImageFacts(bytes.fromhex(answer["digest"]), answer["height"], answer["width"])

    def close(self) -> None:
        """End all processes, also those at work: their callers get DecoderStoppedError."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> "_Process":
        return _Process(FREE_MEMORY + MEMORY_PER_PIXEL * self.max_pixels)

    def _run(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], memoryview]:
        with self._free:
            process = self._idle.popleft()
            answered = False
            try:
                if not process.is_alive:  # somebody ended it between two images
                    process = self._replaced(process)
                request["seconds"] = self._processor_seconds
                answer = process.answer(request, data, self._seconds)
                answered = True
            finally:
                if answered:
                    self._idle.appendleft(process)
                else:  # behind the others: it needs a while to start
                    self._idle.append(self._replaced(process))
        if "error" in answer[0]:
            raise ImageError(answer[0]["error"])
        if answer[0]["assumption"] is not None:
            tell_once(Assumption(*answer[0]["assumption"]))
        return answer

    def _replaced(self, process: "_Process") -> "_Process":
        process.kill()
        with self._lock:
            if self._closed:
                return process
            try:
                started = self._started()
            except OSError:  # no process or file may be opened now: the next image tries again
                return process
            self._all.discard(process)
            self._all.add(started)
        return started


class _Process:
    """One process and the socket to it."""

    def __init__(self, memory: int) -> None:
        self._connection, other = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SETTINGS
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        arguments = ["-m", "proxygml.data.images.decoder_worker", str(other.fileno()), str(memory)]
        with other:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's, which then closes the socket
            )
        self._ready = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, request: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], memoryview]:
        """The answer to a request; after an exception the process is of no more use."""
        try:
            if not self._ready:
                self._connection.settimeout(_START_SECONDS)
                receive(self._connection)
                self._ready = True
            self._connection.settimeout(seconds)
            stop = time.monotonic() + seconds
            send(self._connection, request, data)
            self._connection.settimeout(max(0.001, stop - time.monotonic()))
            return receive(self._connection)
        except TimeoutError:
            raise DecoderStoppedError(f"{request['name']} could not be decoded within {seconds:g} s") from None
        except (EOFError, OSError):
            raise self._reason(request) from None

    def _reason(self, request: dict[str, Any]) -> Exception:
        """Why the process ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        name, status = request["name"], self._process.returncode
        if status == -signal.SIGXCPU:
            seconds = request["seconds"]
            return ImageError(
                f"{name} takes more than {seconds} seconds of processor time to decode: save it anew with an ordinary "
                "program, or leave it out"
            )
        if status is not None and status not in (0, -signal.SIGKILL, -signal.SIGTERM):
            return ImageError(f"{name} makes the decoder crash: save it anew with an ordinary program, or leave it out")
        return DecoderStoppedError(f"the process that decoded {name} was stopped")

    def kill(self) -> None:
        """End the process at once."""
        with suppress(OSError):  # which also wakes a thread that waits for an answer
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._process.kill()
        self._process.wait()

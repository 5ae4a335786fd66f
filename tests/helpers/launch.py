"""Commands in processes of their own, forked from one that has loaded PyTorch, which saves loading it anew."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from proxygml.cli.main import main
from tests.helpers.processes import forking


class Command:
    """`proxygml ARGUMENTS` in a process of one thread.

    Args:
        arguments: of the command.
        environment: beside that of this process.
    """

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self._folder = TemporaryDirectory()
        words = [str(argument) for argument in arguments]
        given = os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {})
        self._process = forking().Process(target=_run, args=(words, given, Path(self._folder.name)))
        self._process.start()

    @property
    def status(self) -> int | None:
        """With which it ended: -9 where it was killed; None while it runs."""
        return self._process.exitcode

    def finish(self, seconds: float = 300) -> tuple[str, str]:
        """Wait for its end: what it has printed, and what to standard error."""
        self._process.join(seconds)
        assert self.status is not None, f"it still runs after {seconds} seconds: {self._printed('stderr')}"
        return self._printed("stdout"), self._printed("stderr")

    def kill(self) -> None:
        """End it, as `kill -9` does, if it still runs."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def _printed(self, stream: str) -> str:
        return (Path(self._folder.name) / stream).read_text()


def _run(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)  # that of the process it is forked from is of the time when that was started
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)
    sys.argv = ["proxygml", *arguments]
    main(arguments)


@contextmanager
def launched(processes: int, *arguments: object) -> Iterator[list[Command]]:
    """A command in several processes that work together, as `torchrun` starts them; at the end, all are killed.

    Args:
        processes: how many.
        arguments: of the command.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = [Command(*arguments, environment=shared | rank) for rank in ranks]
    try:
        yield started
    finally:
        for command in started:
            command.kill()


def finish(processes: int, *arguments: object, seconds: float = 300) -> tuple[str, str]:
    """What the first of several processes prints, and what to standard error; all must end well."""
    with launched(processes, *arguments) as started:
        printed = [command.finish(seconds) for command in started]
        for command, (_, errors) in zip(started, printed, strict=True):
            assert command.status == 0, errors
    return printed[0]


def kill_once(happened: Callable[[], bool], processes: int, *arguments: object, seconds: float = 240) -> None:
    """Kill all of several processes, as by `kill -9`, as soon as something has happened."""
    with launched(processes, *arguments) as started:
        deadline = time.monotonic() + seconds
        while not happened():
            running = all(command.status is None for command in started)
            assert time.monotonic() < deadline and running, f"it ended before: {started[0].finish(0)[1]}"
            time.sleep(0.005)

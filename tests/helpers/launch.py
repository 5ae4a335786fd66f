"""Commands run by several processes that train together, as `torchrun` starts them, but without its own process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def launched(processes: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """`python -m proxygml ARGUMENTS` by several processes of one thread each; what still runs is killed at the end.

    Args:
        processes: how many.
        arguments: of the command.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "proxygml", *map(str, arguments)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def finish(processes: int, *arguments: object, seconds: float = 300) -> str:
    """What the first of several processes prints to standard error; all must end well."""
    with launched(processes, *arguments) as started:
        printed = [process.communicate(timeout=seconds)[1] for process in started]
        for process, text in zip(started, printed, strict=True):
            assert process.returncode == 0, text
    return printed[0]


def kill_once(happened: Callable[[], bool], processes: int, *arguments: object, seconds: float = 240) -> None:
    """Kill all of several processes, as by `kill -9`, as soon as something has happened."""
    with launched(processes, *arguments) as started:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline and all(process.poll() is None for process in started), "it ended before"
            time.sleep(0.005)

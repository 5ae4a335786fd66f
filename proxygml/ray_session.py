"""Ray, which runs work on the processes of many machines: how we connect to it, and what it may take of one machine.

Ray is the extra `ray`, and loads when a command is given `--ray`.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from proxygml.console import note
from proxygml.errors import UserError, check_extra
from proxygml.files import PathLike

RUNNING_OR_LOCAL = "auto"
"""What stands for an address where none is given: the Ray that runs on this machine, else one that is started here."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a Ray that is started here. Only numbers of parts and recipes pass through it, never images."""

ATTEMPTS = 5
"""To start Ray here."""


@contextmanager
def ray_session(address: str = RUNNING_OR_LOCAL, cpus: int | None = None) -> Iterator[Any]:
    """Connect to Ray for the length of the block, and hand out the module.

    A Ray that was started here ends with the block; so does the connection to a cluster. One that this process had
    before stays. Nothing is reported to Ray's makers, and no dashboard is started.

    Args:
        address: of a cluster, HOST:PORT or ray://HOST:PORT; `auto` takes the Ray that runs on this machine (or that
            RAY_ADDRESS names), and starts one on all of its processors where none does; `local` starts one.
        cpus: of a Ray that is started here, in place of all processors.

    Raises:
        UserError: the extra `ray` is not installed, or there is no cluster at the address.
    """
    check_extra("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ parts complain of what we cannot change
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without GPUs see none, as Ray will have it
    import ray  # noqa: PLC0415  # an extra, and slow to load

    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address, cpus or processors())
    try:
        yield ray
    finally:
        ray.shutdown()


def check_shared(what: str, places: Iterable[PathLike]) -> None:
    """Raise UserError where a place is in the memory of this process alone, which others cannot reach."""
    for place in places:
        if str(place).lower().startswith("memory:/"):
            raise UserError(
                f"{what} is {place}, but memory:// lies within one process, and those of Ray do not see it: give a "
                "folder or an object store that all machines can reach"
            )


def _connect(ray: Any, address: str, cpus: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == RUNNING_OR_LOCAL:
        with suppress(ConnectionError):
            ray.init(address="auto", **quiet)
            return
    if address in (RUNNING_OR_LOCAL, "local"):
        note("starting Ray on this machine")
        _start(ray, cpus, quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"there is no Ray cluster at {address} ({_reason(error)}): start one (`ray start --head`), or give --ray "
            "alone to start one on this machine"
        ) from error


def _start(ray: Any, cpus: int, quiet: Mapping[str, Any]) -> None:
    """Start Ray here; several times, because its parts wait 15 seconds for each other, too few on a busy machine."""
    for left in reversed(range(ATTEMPTS)):
        others = set(_children())
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            for child in set(_children()) - others:  # which it leaves behind
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            if not left:
                raise UserError(
                    f"Ray does not start on this machine ({_reason(error)}): stop other programs, or leave --ray out"
                ) from error


def _children() -> list[psutil.Process]:
    return list(psutil.Process().children(recursive=True))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total(ray: Any, kind: str) -> float:
    """How much of a resource, such as CPU, GPU or memory, all machines of the cluster have together."""
    return float(ray.cluster_resources().get(kind, 0))


def largest(ray: Any, kind: str) -> float:
    """How much of a resource the machine has that has most of it: a task that takes more would wait for ever."""
    return max((float(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]), default=0)

"""Times taken side by side, and the peak memory of a process: what every benchmark makes its tables of."""

from __future__ import annotations

import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Work = Callable[[], object]

MIB = 2**20

# Wide enough for every table, so that a table in a file looks like one on a screen.
console = Console(width=140, highlight=False)


def side_by_side(contenders: Mapping[str, Work], seconds: float = 5.0, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each piece of work, the pieces taken in turn so that a slow moment strikes all alike.

    Every round runs each piece once, in an order drawn anew; a first round warms up and is not counted.

    Args:
        contenders: the pieces of work under their names.
        seconds: how long to go on, at least.
        rounds: how many rounds to take, at least.
    """
    names, order = list(contenders), random.Random(0)
    for name in names:
        _timed(contenders[name])
    taken: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    while len(taken[names[0]]) < rounds or time.perf_counter() - start < seconds:
        for name in order.sample(names, len(names)):
            taken[name].append(_timed(contenders[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def _timed(work: Work) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(prepare: Callable[..., Work], *arguments: object) -> int:
    """Bytes that a piece of work takes at its peak beyond what its inputs hold, in a process of its own.

    On a GPU the device's memory, elsewhere the process's resident memory (Linux).

    Args:
        prepare: a function of a module; makes the inputs and returns the work.
        arguments: what `prepare` takes, picklable.

    Raises:
        RuntimeError: the work failed, or the kernel ended it for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, torch.get_num_threads(), prepare, *arguments))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{prepare.__name__}{arguments} ended without an answer: out of memory?") from None
    finally:
        process.join()
    return peak


def _measure_peak(sender: Connection, threads: int, prepare: Callable[..., Work], *arguments: object) -> None:
    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    work = prepare(*arguments)
    torch.ones(64, 64) @ torch.ones(64, 64)  # thread pools and their buffers are nobody's cost
    if on_gpu:
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronize()
        sender.send(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    work()
    sender.send(max(0, resident("VmHWM") - before))


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> str:
    """What the figures were taken on and when, for the head of a table."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        names = [line for line in _cpuinfo() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else platform.processor()
        processor = f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{processor}; torch {torch.__version__}; Python {platform.python_version()}; {date.today().isoformat()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(title: str, columns: list[str]) -> Table:
    """A table whose first column names the work and whose others hold figures."""
    result = Table(title=title, title_justify="left")
    result.add_column(columns[0])
    for column in columns[1:]:
        result.add_column(column, justify="right")
    return result


def milliseconds(seconds: float) -> str:
    """A time as a table shows it."""
    return f"{1e3 * seconds:,.2f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def mebibytes(count: int) -> str:
    """An amount of memory as a table shows it."""
    return f"{count / MIB:,.0f} MiB"

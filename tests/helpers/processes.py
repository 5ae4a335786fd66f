"""Functions run by several real processes that talk over gloo."""

import os
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

PRELOADED = (
    *("faiss", "hypothesis", "jsonargparse", "pandas", "pyarrow.parquet", "sklearn.metrics", "torch._dynamo"),
    *("proxygml.cli.main", "proxygml.cli.train", "proxygml.comparison.process", "proxygml.reports.run_report"),
    *("proxygml.training.evaluate_run", "proxygml.training.remote_run", "proxygml.training.train"),
)


def forking() -> ForkServerContext:
    """Starts processes by forking one that has loaded PyTorch and done nothing with it."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def in_processes(
    count: int, function: Callable[..., Any], folder: Path, *arguments: Any, killed: Sequence[int] = ()
) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` processes of one group, in their order.

    Args:
        count: how many processes.
        function: of a module, so that a new process can import it.
        folder: where the processes meet and leave their results.
        arguments: the same for all.
        killed: which of them end before they return; only the others' results are returned then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    forking()
    started = multiprocessing.start_processes(
        _joined, (count, function, folder, arguments), nprocs=count, join=not killed, start_method="forkserver"
    )
    for process in started.processes if started else ():
        process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count) if rank not in killed]


def _joined(rank: int, count: int, function: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        torch.save(function(*arguments), folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()

"""The processes that train together: Accelerate, data parallelism, the global batch, shared statistics."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast_object_list
from torch import Tensor, nn

from proxygml.console import warn
from proxygml.errors import RecipeError
from proxygml.models.embedder import Embedder
from proxygml.training.recipe import Recipe

Module = TypeVar("Module", bound=nn.Module)


def make_accelerator(recipe: Recipe, folder: Path | None = None) -> Accelerator:
    """Accelerate with the precision of a recipe and, where a folder is given, its tracker.

    Raises:
        RecipeError: a precision or a tracker that this machine does not have.
    """
    check_precision_and_tracker(recipe)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    logs = (
        None if folder is None or recipe.tracker == "none" else ProjectConfiguration(str(folder), str(folder / "logs"))
    )
    # Accelerate keeps the first precision of a process; a second run in the same process may need another.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            mixed_precision=precision,
            log_with=None if logs is None else recipe.tracker,
            project_config=logs,
            # Some of timm's backbones own parameters that their feature maps do not depend on.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise RecipeError(f"precision {recipe.precision} is not possible here: {error}") from error


def of_main_process(path: Path | None) -> Path | None:
    """The main process's value, on every process: over a network, two machines may list a folder differently."""
    values: list[Path | None] = [path]
    broadcast_object_list(values)
    return values[0]


def check_precision_and_tracker(recipe: Recipe) -> None:
    """Raise RecipeError for a precision or a tracker that this machine does not have."""
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise RecipeError("precision is fp16, which needs a GPU: take bf16 or fp32 here")
    if recipe.tracker != "none" and recipe.tracker not in map(str, get_available_trackers()):
        raise RecipeError(f"tracker is {recipe.tracker}, which is not installed: pip install {recipe.tracker}, or none")


def start_tracking(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's tracker.

    Raises:
        RecipeError: it cannot start: a part of it is not installed, or its server or its account is missing.
    """
    try:
        accelerator.init_trackers("proxygml")
    except Exception as error:  # of the tracker's own many kinds
        part = "; mlflow-skinny logs to a server alone: pip install mlflow, or set MLFLOW_TRACKING_URI"
        raise RecipeError(
            f"tracker {recipe.tracker} cannot start: {type(error).__name__}: {error}"
            f"{part if recipe.tracker == 'mlflow' else ''}; or take tracker none"
        ) from error


def check_batch_division(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise RecipeError where features are to be normalised over a batch of which each process has only its share."""
    whole = accelerator.num_processes == 1 or accelerator.device.type == "cuda"  # PyTorch joins those of GPUs
    if recipe.embedder.feature_norm == "batch" and not whole:
        raise RecipeError(
            "embedder.feature_norm is batch, but on CPUs several processes cannot normalise by the whole batch: "
            "take layer, or one process"
        )


def share_batch_statistics(embedder: Embedder, recipe: Recipe, accelerator: Accelerator) -> None:
    """Make batch norm see the global batch, as one process would; PyTorch can do this on GPUs only.

    Raises:
        RecipeError: see check_batch_division.
    """
    if accelerator.num_processes == 1:
        return
    check_batch_division(recipe, accelerator)
    if recipe.embedder.feature_norm == "batch":
        embedder.head = _sharing_statistics(embedder.head)
    if recipe.batch_norm != "trained":
        return
    if accelerator.device.type == "cuda":
        embedder.backbone = _sharing_statistics(embedder.backbone)
    elif accelerator.is_main_process:
        warn(
            "batch_norm is trained: on CPUs each process normalises by its own share of the batch, so the result "
            "differs from that of one process (with batch_norm frozen it does not)"
        )


def _sharing_statistics(module: Module) -> Module:
    """The module with batch-norm layers that normalise by the batch of all processes."""
    # timm's own, because PyTorch's would drop the activations that timm's batch-norm layers hold.
    from timm.layers.norm_act import convert_sync_batchnorm  # noqa: PLC0415  (loads all of timm's models)

    converted: Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted


def data_parallel(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The module as Accelerate wraps it for the parameters that require gradients now; call it anew when they change.

    Data parallelism fixes at that moment which gradients it exchanges. One process in full precision has nothing to
    wrap.
    """
    plain = accelerator.num_processes == 1 and accelerator.mixed_precision == "no"
    if plain or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    # Gradients of convolutions are channels last, as the images are, so they are copied; each process would warn of it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    accelerator.free_memory()
    module = accelerator.unwrap_model(module, keep_fp32_wrapper=False)
    prepared: nn.Module = accelerator.prepare_model(module)
    return prepared


def process_group(accelerator: Accelerator) -> dist.ProcessGroup | None:
    """The processes that train together; None where there is only one."""
    return dist.group.WORLD if accelerator.num_processes > 1 else None


def own_part(embeddings: Tensor, labels: Tensor, size: int, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """This process's part of a global batch of `size` images, without the image that fills it up (see Batches)."""
    count = len(range(accelerator.process_index, size, accelerator.num_processes))
    return embeddings[:count], labels[:count]


@torch.no_grad()
def share_overflow(gradient: Tensor, parameters: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Let the loss scaling of fp16 see the overflow of a gradient that is divided over processes on all of them.

    Else those without it would take the step that the others skip, and scale differently from then on. Source: ours;
    torch's ShardedGradScaler cannot be used with a fused Adam.

    Args:
        gradient: this process's part.
        parameters: all that the optimiser updates. Where a part has overflowed, one number of their gradients becomes
            NaN, on every process.
        group: the processes.
    """
    overflow = (~gradient.isfinite()).any().float()
    dist.all_reduce(overflow, dist.ReduceOp.MAX, group=group)
    seen = next(each.grad for each in parameters if each.grad is not None and each.grad.numel())
    seen[(0,) * seen.dim()] += torch.where(overflow > 0, torch.nan, 0.0)


def own_slice(count: int, accelerator: Accelerator) -> slice:
    """This process's part of as many items: consecutive ones, as evenly divided as can be."""
    rank, size = accelerator.process_index, accelerator.num_processes
    return slice(count * rank // size, count * (rank + 1) // size)


def parts_on_all(part: Tensor, count: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """The parts of all processes in turn, on every one of them; no other part is in memory then.

    All processes must go through to the end.

    Args:
        part: the rows `own_slice` of `count` rows, on the CPU.
        count: of the rows of all.
        accelerator: the processes.
    """
    size = accelerator.num_processes
    for process in range(size):
        own = process == accelerator.process_index
        rows = count * (process + 1) // size - count * process // size
        piece = part if own else part.new_empty(rows, *part.shape[1:])
        if size > 1:
            moved = piece.to(accelerator.device).contiguous()
            dist.broadcast(moved, process)
            piece = piece if own else moved.cpu()
        yield piece


def parts_of_processes(part: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Iterator[Tensor]:
    """The parts (sizes[process], ...) of all processes in turn, on the first one; no other part is in memory then.

    All processes must go through to the end. On the others, which send theirs, there is nothing to see.
    """
    if dist.get_rank(group) > 0:
        dist.send(part, dist.get_global_rank(group, 0), group=group)
        return
    yield part
    for process, size in enumerate(sizes[1:], start=1):
        other = part.new_empty(size, *part.shape[1:])
        dist.recv(other, dist.get_global_rank(group, process), group=group)
        yield other


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it holds on any process, the same on each."""
    return bool(accelerator.reduce(torch.tensor(int(flag), device=accelerator.device)))


def gather_batch(embeddings: Tensor, labels: Tensor, size: int, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """The global batch in its own order, on every process, with gradients; so every loss sees all its samples.

    The gather's backward adds the processes' gradients and data parallelism averages them, which together leave the
    gradient of one process with the same batch.

    Args:
        embeddings: (m, D) of this process.
        labels: int64 (m,).
        size: M, how many images the global batch holds.
        accelerator: the processes.

    Returns:
        (M, D) embeddings and (M,) labels.
    """
    if accelerator.num_processes == 1:
        return embeddings, labels
    parts: Tensor = _Gather.apply(embeddings)
    gathered = accelerator.gather(labels).view(accelerator.num_processes, -1)
    return parts.flatten(0, 1)[:size], gathered.T.flatten()[:size]


class _Gather(torch.autograd.Function):
    """(m, D) of each of W processes to (m, W, D) on all; backward adds the processes' gradients.

    PyTorch's own function of this kind warns, in every process, that it will be removed.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[:, dist.get_rank()]

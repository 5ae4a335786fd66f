"""An embedder as an ONNX graph, from RGB bytes to the unit vector, and what a runtime computes with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proxygml.arrays import Vectors
from proxygml.errors import UserError
from proxygml.models.embedder import Embedder

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a component from PyTorch's that a float32 graph may have."""

BATCHES = (1, 5)
"""Sizes of the batches that a graph is tried with."""

Compute = Callable[[npt.NDArray[np.generic]], Vectors]
"""What a runtime does with a graph: its input (n, ...) to embeddings (n, D), float32."""


def write_graph(embedder: Embedder, path: Path) -> None:
    """Write the graph in float32; the batch size is free, and the weights are inside.

    Raises:
        UserError: the network cannot be expressed in ONNX.
    """
    name, example = graph_input(embedder, 2)  # of 1, the exporter would fix the batch size
    try:
        program = torch.onnx.export(
            embedder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name],
            output_names=["embeddings"],
            dynamic_shapes={"items": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{embedder.settings.backbone} cannot be expressed in ONNX: {reason}") from error
    assert program is not None  # as it is for every call without a file
    program.save(path)


def graph_input(embedder: Embedder, count: int, generator: torch.Generator | None = None) -> tuple[str, Tensor]:
    """The name of the graph's input, and so many random ones."""
    if not embedder.takes_images:
        return "vectors", torch.randn(count, embedder.num_features, generator=generator)
    side = embedder.images.at_test.size
    return "images", torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def onnxruntime_compute(path: Path) -> Compute:
    """The graph, run by ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime  # noqa: PLC0415  (an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily take the processor from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(given: npt.NDArray[np.generic]) -> Vectors:
        found: Vectors = session.run(None, {name: given})[0]
        return found

    return compute


def random_examples(embedder: Embedder) -> Tensor:
    """Random inputs to compare with, the same at every call: as many as BATCHES together."""
    return graph_input(embedder, sum(BATCHES), torch.Generator().manual_seed(0))[1]


@torch.inference_mode()
def expected_embeddings(embedder: Embedder, given: Tensor) -> Vectors:
    """PyTorch's embeddings (n, D) of uint8 images (n, 3, S, S), or of vectors (n, F)."""
    parts = [embedder(part.to(embedder.device)).float().cpu() for part in torch.split(given, 32)]
    embeddings: Vectors = torch.cat(parts).numpy()
    return embeddings


def computed_embeddings(compute: Compute, given: npt.NDArray[np.generic]) -> Vectors:
    """What a runtime makes of the same, in batches of BATCHES and then of 32."""
    ends = [*np.cumsum(BATCHES), *range(sum(BATCHES) + 32, len(given) + 32, 32)]
    starts = [0, *ends]
    return np.concatenate([compute(given[a:b]) for a, b in zip(starts, ends, strict=False) if a < len(given)])

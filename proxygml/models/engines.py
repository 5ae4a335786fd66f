"""Embedders whose network another runtime than PyTorch computes: ONNX Runtime or OpenVINO, on the CPU, in float32.

The graph of a model is made once and kept in the user's cache, with some images and PyTorch's embeddings of them. At
every start these are compared with what the runtime computes. So the vectors of all engines can be compared: a gallery
may be built with one engine and searched with another.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proxygml.arrays import Vectors
from proxygml.errors import UserError, check_extra
from proxygml.files import atomic_folder, cache_folder
from proxygml.models.embedder import Embedder
from proxygml.models.image_embedder import EmbedderOfImages
from proxygml.models.model_description import ModelDescription, read_model
from proxygml.models.model_files import fingerprint
from proxygml.models.onnx_graph import (
    OPSET,
    TOLERANCE,
    Compute,
    computed_embeddings,
    expected_embeddings,
    onnxruntime_compute,
    random_examples,
    write_graph,
)

Engine = Literal["torch", "onnx", "openvino"]

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "onnx", "onnxscript")}
"""What each engine needs; the extra has the engine's name."""

GRAPH, EXAMPLES = "model.onnx", "examples.npz"


class EngineEmbedder(EmbedderOfImages):
    """A saved embedder of images, computed by another runtime. It gives embeddings alone: no features, no training.

    Args:
        model: the description of the saved embedder.
        compute: the runtime.
        embedding_size: D.
    """

    def __init__(self, model: ModelDescription, compute: Compute, embedding_size: int) -> None:
        super().__init__(model.embedder, model.classes)
        self.images, self.space = model.images, model.input
        self.embedding_size = embedding_size
        self._compute = compute

    def forward(self, items: Tensor) -> Tensor:
        """RGB images (M, 3, S, S), uint8 in 0..255 -> (M, embedding_size), float32, L2-normalised."""
        return torch.from_numpy(self._compute(items.numpy()))

    def features(self, *_: object, **__: object) -> NoReturn:
        """Is not to be had."""
        raise UserError("this embedder is run by another engine, which gives embeddings alone: load it with torch")

    def save(self, folder: Path) -> NoReturn:
        """Is not to be had."""
        raise UserError(f"this embedder is run by another engine, and has no tensors to save in {folder}")

    def _description(self) -> NoReturn:
        raise NotImplementedError


def load_embedder(run: Path, engine: Engine = "torch", device: str | torch.device = "cpu") -> Embedder:
    """The embedder of a run folder, on an engine.

    Args:
        run: the run folder.
        engine: torch; or onnx or openvino, whose embeddings differ from PyTorch's by at most TOLERANCE.
        device: where torch computes; the others compute on the CPU.

    Raises:
        UserError: an extra is not installed, the model takes vectors or cannot be expressed in ONNX, or the engine
            gives other embeddings than PyTorch.
        RunError, WeightsError: see Embedder.load.
    """
    if engine == "torch":
        return Embedder.load(run, device)
    check_extra(engine, *PACKAGES[engine])
    model = read_model(run)
    if not isinstance(model, ModelDescription):
        raise UserError(f"{run} takes vectors, for which there is the engine torch alone: leave --engine out")
    folder = cache_folder("engines") / f"{fingerprint(run)}-{OPSET}"
    if not (folder / EXAMPLES).is_file():
        _write_cache(Embedder.load(run), folder)
    try:
        compute = _RUNTIMES[engine](folder / GRAPH)
        with np.load(folder / EXAMPLES) as examples:
            given, expected = examples["images"], examples["embeddings"]
        found = computed_embeddings(compute, given)
    except Exception as error:  # each runtime has its own kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{engine} cannot run {folder / GRAPH}: {reason}; delete {folder}, and try again") from error
    _check_same(engine, found, expected)
    return EngineEmbedder(model, compute, expected.shape[1]).eval()


def _write_cache(embedder: Embedder, folder: Path) -> None:
    """Put a model's graph, and examples of what it should give, into the folder."""
    given = random_examples(embedder)
    with atomic_folder(folder) as temporary:
        write_graph(embedder, temporary / GRAPH)
        np.savez(temporary / EXAMPLES, images=given.numpy(), embeddings=expected_embeddings(embedder, given))


def _check_same(engine: Engine, found: Vectors, expected: Vectors) -> None:
    """Raise UserError where an engine gives other embeddings than PyTorch."""
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"{engine} gives embeddings that differ from PyTorch's by {difference:.1e}, but at most {TOLERANCE:.0e} is "
            "expected: take --engine torch"
        )


def openvino_compute(path: Path) -> Compute:
    """The graph, run by OpenVINO on the CPU in float32, with as many threads as PyTorch has."""
    import openvino  # noqa: PLC0415  (an extra)

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    alone = threading.Lock()  # a compiled model keeps the results of its last call only

    def compute(given: npt.NDArray[np.generic]) -> Vectors:
        with alone:
            return np.array(compiled([given])[0])

    return compute


_RUNTIMES: dict[str, Callable[[Path], Compute]] = {"onnx": onnxruntime_compute, "openvino": openvino_compute}

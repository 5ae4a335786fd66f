"""A float32 ONNX graph in fewer bits: float16, or int8 by static quantisation on images.

The scaling of the pixels, the first layer and what comes after the last layers of the backbone stay in float32 in int8:
there the loss of accuracy is largest and the work small (docs/performance.md has the figures).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from proxygml.models.onnx_bias import correct_biases

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FIRST, LAST = 1, 2
"""So many layers at the beginning and at the end of the graph stay in float32."""

_BATCH = 4


def write_float16(graph: Path, out: Path) -> None:
    """Weights and computation in float16; images and embeddings stay as they are."""
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), out)


def write_int8(graph: Path, out: Path, images: npt.NDArray[np.uint8]) -> None:
    """Weights (by channel) and activations in int8, as pairs of QuantizeLinear and DequantizeLinear (QDQ).

    The ranges of the activations are the extremes over a few images, averaged over all: the extremes over all images
    are those of a few outliers, for which all other values would be rounded more coarsely. Biases make up for what
    rounding the weights adds on average; see onnx_bias.py.

    Args:
        graph: the float32 graph.
        out: the file to write.
        images: uint8 (n, 3, S, S), of the kind that will be embedded.
    """
    import onnx  # noqa: PLC0415  (an extra)
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(graph, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        kept = _float_nodes(model)
        correct_biases(model, _batches(images), kept)
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            out,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            extra_options={"CalibMovingAverage": True},
        )


def _batches(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    return iter(np.split(images, range(_BATCH, len(images), _BATCH)))


def _reader(images: npt.NDArray[np.uint8]) -> Any:
    """The images in batches, as the quantisation reads them."""
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415  (an extra)

    class Images(CalibrationDataReader):  # type: ignore[misc]  # an untyped library
        def __init__(self) -> None:
            self._batches = _batches(images)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    return Images()


def _float_nodes(model: Any) -> list[str]:
    """The names of the nodes that stay in float32."""
    nodes = list(model.graph.node)
    layers = [place for place, node in enumerate(nodes) if node.op_type in LAYERS]
    first, last = layers[min(FIRST, len(layers)) - 1], layers[-min(LAST, len(layers))]
    return [node.name for place, node in enumerate(nodes) if place <= first or place >= last]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice, which is for those who call it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

"""Biases that make up for what rounding the weights of a graph to int8 adds to the outputs on average.

Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, section 4.2, with the
mean inputs measured on images.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]


def correct_biases(model: Any, batches: Iterable[npt.NDArray[np.uint8]], kept: Sequence[str]) -> None:
    """Change the biases of the convolutions of a float32 graph whose weights will be rounded to int8.

    Args:
        model: the graph.
        batches: uint8 (n, 3, S, S), images of the kind that will be embedded.
        kept: the names of the nodes whose weights will not be rounded.
    """
    from onnx import numpy_helper  # noqa: PLC0415  (an extra)

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv" and node.name not in kept]
    layers = [node for node in layers if len(node.input) == 3 and {node.input[1], node.input[2]} <= tensors.keys()]
    if not layers:
        return
    means = _mean_inputs(model, sorted({node.input[0] for node in layers}), batches)
    for node in layers:
        weight, bias = (tensors[name] for name in node.input[1:])
        shift = _shift(numpy_helper.to_array(weight), means[node.input[0]])
        corrected = numpy_helper.to_array(bias) - shift.astype(np.float32)
        bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _shift(weights: Weights, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What rounding weights (O, I / groups, h, w) adds to the O outputs, for the mean (I,) of each input."""
    errors = (_rounded(weights) - weights).sum(axis=(2, 3))
    groups = len(means) // errors.shape[1]
    inputs = means.reshape(groups, -1).repeat(len(errors) // groups, axis=0)
    shift: npt.NDArray[np.float64] = (errors * inputs).sum(axis=1)
    return shift


def _rounded(weights: Weights) -> Weights:
    """Weights (O, ...) as int8 gives them back, with a scale for each output: what onnxruntime makes of them."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1).reshape(-1, *[1] * (weights.ndim - 1))
    scale = np.where(largest > 0, largest, 1) / 127
    return np.asarray(np.rint(weights / scale) * scale, dtype=np.float32)


def _mean_inputs(
    model: Any, names: Sequence[str], batches: Iterable[npt.NDArray[np.uint8]]
) -> Mapping[str, npt.NDArray[np.float64]]:
    """The mean of each channel of these tensors (n, C, h, w) of the graph, (C,), over images and places."""
    import onnx  # noqa: PLC0415  (an extra)
    import onnxruntime  # noqa: PLC0415

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    sums, count = dict.fromkeys(names, np.zeros(1)), 0
    for batch in batches:
        found = session.run(list(names), {"images": batch})
        for name, values in zip(names, found, strict=True):
            sums[name] = sums[name] + values.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
        count += len(batch)
    return {name: total / count for name, total in sums.items()}

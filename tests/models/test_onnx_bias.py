"""Biases that make up for rounded weights: the mean output stays what it was."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from proxygml.models.onnx_bias import correct_biases  # noqa: E402  (after the check for the extra)


def convolution(weights: np.ndarray, groups: int) -> "onnx.ModelProto":
    """A graph of a 1 x 1 or 3 x 3 convolution of images without padding, from uint8."""
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["given"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Conv", ["given", "w", "b"], ["out"], name="conv", group=groups),
    ]
    value = onnx.helper.make_tensor_value_info
    kinds = onnx.TensorProto
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("images", kinds.UINT8, ["n", groups * weights.shape[1], 6, 6])],
        [value("out", kinds.FLOAT, None)],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.ones(len(weights), "f4"), "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def means(model: "onnx.ModelProto", images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": images})[0].mean(axis=(0, 2, 3))
    return found


@pytest.mark.parametrize(("shape", "groups"), [((8, 4, 1, 1), 1), ((4, 1, 3, 3), 4), ((8, 2, 1, 1), 2)])
def test_the_mean_output_of_rounded_weights_is_that_of_the_weights(shape: tuple[int, ...], groups: int) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=shape).astype(np.float32)
    channels = groups * shape[1]
    # Of one value a channel, so that borders have the same mean as the whole.
    images = np.broadcast_to(random.integers(256, size=(12, channels, 1, 1)), (12, channels, 6, 6)).astype(np.uint8)
    model = convolution(weights, groups)
    expected = means(model, images)
    scale = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127
    rounded = convolution((np.rint(weights / scale) * scale).astype(np.float32), groups)
    assert np.abs(means(rounded, images) - expected).max() > 0.1
    correct_biases(model, np.split(images, 3), kept=[])
    rounded.graph.initializer[1].CopyFrom(model.graph.initializer[1])
    assert np.allclose(means(rounded, images), expected, atol=1e-3)


def test_layers_that_stay_as_they_are_keep_their_biases() -> None:
    model = convolution(np.full((2, 3, 1, 1), 0.3, np.float32), 1)
    correct_biases(model, [np.zeros((1, 3, 6, 6), np.uint8)], kept=["conv"])
    assert (onnx.numpy_helper.to_array(model.graph.initializer[1]) == 1).all()

"""A trained embedder as an ONNX file that any runtime can run, and a JSON beside it that says how to feed it.

Everything from pixels to the unit vector is in the graph: colour order, scaling of values, backbone, pooling, linear
layer, norm. What is left to the caller is to decode an image and to cut its square out; the JSON says how.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proxygml.arguments import check_arguments
from proxygml.errors import UserError, check_extra
from proxygml.files import PathLike, atomic_write, check_ending, check_overwrite, local_path
from proxygml.models.embedder import Embedder
from proxygml.models.model_files import fingerprint

OPSET = 18
TOLERANCE = 1e-4  # greatest difference of a component from PyTorch's
BATCHES = (1, 5)  # sizes that the written graph is tried with


@check_arguments
def export(run: PathLike, out: PathLike, *, force: bool = False) -> float:
    """Write a run's embedder as ONNX, and its preprocessing as JSON beside it (birds.onnx, birds.json).

    Nothing is left behind unless onnxruntime gives PyTorch's embeddings.

    Args:
        run: a run folder.
        out: the .onnx file; its batch size is free. Weights are inside.
        force: replace files that are there.

    Returns:
        The largest difference of any component from PyTorch's, over batches of random images of sizes 1 and 5.

    Raises:
        UserError: the extra is not installed, the name does not end in .onnx, a file is there already or is part of the
            run, the network cannot be expressed, or its ONNX form gives other embeddings.
    """
    run, out = local_path(run, "run"), local_path(out, "out")
    check_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    check_ending(out, ".onnx")
    description = out.with_suffix(".json")
    if description.resolve() == (run / "model.json").resolve():
        raise UserError(
            f"the description of {out} would replace {description}, without which the run cannot be loaded: choose "
            f"another name, such as {out.with_name('exported.onnx')}"
        )
    for path in (out, description):
        check_overwrite(path, force)
    embedder = Embedder.load(run)
    program = _program(embedder)
    content = json.dumps(describe(embedder, fingerprint(run)), indent=2) + "\n"
    with atomic_write(description) as beside, atomic_write(out) as temporary:
        beside.write_text(content, encoding="utf-8")
        program.save(temporary)
        difference = _largest_difference(embedder, temporary)
        if not difference <= TOLERANCE:
            raise UserError(
                f"the ONNX form of {embedder.settings.backbone} differs from PyTorch by {difference:.1e}, but at most "
                f"{TOLERANCE:.0e} is expected: nothing was written"
            )
        description.unlink(missing_ok=True)  # a process that dies now leaves no description of another model
    return difference


def describe(embedder: Embedder, model: str) -> dict[str, Any]:
    """What a caller must do before the graph, and what comes out: the content of the JSON."""
    output = {
        "name": "embeddings",
        "shape": ["batch", embedder.embedding_size],
        "type": "float32",
        "normalised": "L2: compare by the inner product, which is the cosine",
    }
    if not embedder.takes_images:
        shape = ["batch", embedder.num_features]
        given = {"name": "vectors", "shape": shape, "type": "float32", "length": "any: the graph scales them to 1"}
        return {"format": 1, "model": model, "input": given, "output": output}
    images = embedder.images
    return {
        "format": 1,
        "model": model,
        "input": {
            "name": "images",
            "shape": ["batch", 3, images.size, images.size],
            "type": "uint8",
            "layout": "NCHW",
            "colour": "RGB, 0..255, as decoded: the graph scales and shifts the values itself",
        },
        "preprocessing": [
            {"step": "decode", "to": "RGB", "orientation": "apply the EXIF tag", "transparent": "white"},
            {"step": "centre_crop", "at_most": "3 x the shorter side, in either direction"},
            {
                "step": "resize",
                "shorter_side": images.resize,
                "longer_side": f"floor({images.resize} x longer / shorter)",
                "interpolation": images.interpolation,
                "antialias": True,
                "same_as": f"Pillow's resize with {images.interpolation.upper()}, up to 1 grey level of rounding",
            },
            {"step": "centre_crop", "size": images.size, "top_left": "round half to even of (side - size) / 2"},
        ],
        "output": output,
    }


def _program(embedder: Embedder) -> torch.onnx.ONNXProgram:
    name, example = _input(embedder, 2)  # of 1, the exporter would fix the batch size
    try:
        program = torch.onnx.export(
            embedder,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{embedder.settings.backbone} cannot be expressed in ONNX: {reason}") from error
    assert program is not None  # as it is for every call without a file
    return program


def _input(embedder: Embedder, count: int, generator: torch.Generator | None = None) -> tuple[str, Tensor]:
    """The name of the graph's input, and so many random ones."""
    if not embedder.takes_images:
        return "vectors", torch.randn(count, embedder.num_features, generator=generator)
    side = embedder.images.size
    return "images", torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def _largest_difference(embedder: Embedder, path: Path) -> float:
    import onnxruntime  # noqa: PLC0415  (an extra)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in BATCHES:
        name, given = _input(embedder, count, generator)
        with torch.inference_mode():
            expected: Tensor = embedder(given)
        found: npt.NDArray[np.float32] = session.run(None, {name: given.numpy()})[0]
        largest = max(largest, float(np.abs(found - expected.numpy()).max()))
    return largest

"""A trained embedder as an ONNX file that any runtime can run, and a JSON beside it that says how to feed it.

Everything from pixels to the unit vector is in the graph: colour order, scaling of values, backbone, pooling, linear
layer, norm. What is left to the caller is to decode an image and to cut its square out; the JSON says how.
training/export.py finds the images that a graph is quantised on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from torch import Tensor

from proxygml.arrays import Vectors
from proxygml.errors import UserError, check_extra
from proxygml.files import atomic_write, check_ending, check_overwrite
from proxygml.models.embedder import Embedder
from proxygml.models.model_files import fingerprint
from proxygml.models.onnx_graph import (
    TOLERANCE,
    computed_embeddings,
    expected_embeddings,
    onnxruntime_compute,
    random_examples,
    write_graph,
)
from proxygml.models.onnx_precision import write_float16, write_int8

Precision = Literal["float32", "float16", "int8"]

LEAST_COSINE = {"float16": 0.999, "int8": 0.9}
"""Cosine similarity with PyTorch's embeddings, on average over the images, below which nothing is written."""


@dataclass(frozen=True)
class Agreement:
    """How close the embeddings of an exported graph are to PyTorch's.

    Attributes:
        difference: the largest of any component.
        cosine: the mean cosine similarity over the images.
        least_cosine: the smallest.
        images: how many were compared.
    """

    difference: float
    cosine: float
    least_cosine: float
    images: int

    @classmethod
    def of(cls, found: Vectors, expected: Vectors) -> "Agreement":
        """That of embeddings (n, D) with others."""
        cosines = (found.astype(np.float64) * expected).sum(axis=1).clip(-1, 1)
        return cls(float(np.abs(found - expected).max()), float(cosines.mean()), float(cosines.min()), len(cosines))


def export_embedder(
    run: Path,
    out: Path,
    *,
    precision: Precision = "float32",
    calibration: Tensor | None = None,
    check: Tensor | None = None,
    force: bool = False,
) -> Agreement:
    """Write a run's embedder as ONNX, and its preprocessing as JSON beside it (birds.onnx, birds.json).

    Nothing is left behind unless onnxruntime gives PyTorch's embeddings, as near as the precision lets them be.

    Args:
        run: a run folder.
        out: the .onnx file; its batch size is free. Weights are inside.
        precision: of weights and computation.
        calibration: uint8 (n, 3, S, S), images that int8 is quantised on; it needs some.
        check: the same, images to compare with PyTorch; by default random ones.
        force: replace files that are there.

    Raises:
        UserError: the extra is not installed, the name does not end in .onnx, a file is there already or is part of the
            run, the network cannot be expressed, or its ONNX form gives other embeddings.
    """
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
    content = json.dumps(describe(embedder, fingerprint(run), precision), indent=2) + "\n"
    with atomic_write(description) as beside, atomic_write(out) as temporary:
        beside.write_text(content, encoding="utf-8")
        write_in_precision(embedder, temporary, precision, calibration)
        agreement = _check_agreement(embedder, temporary, precision, check)
        description.unlink(missing_ok=True)  # a process that dies now leaves no description of another model
    return agreement


def write_in_precision(embedder: Embedder, out: Path, precision: Precision, calibration: Tensor | None) -> None:
    """Write the graph of an embedder in a precision; see export_embedder."""
    if precision == "float32":
        write_graph(embedder, out)
        return
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "float32.onnx"
        write_graph(embedder, graph)
        if precision == "float16":
            write_float16(graph, out)
        elif calibration is None:
            raise UserError("precision int8 needs images that the ranges of the activations are measured on")
        else:
            write_int8(graph, out, calibration.numpy())


def _check_agreement(embedder: Embedder, path: Path, precision: Precision, check: Tensor | None) -> Agreement:
    """How close the file's embeddings are to PyTorch's; UserError where they are not close enough."""
    given = random_examples(embedder) if check is None else check
    found = computed_embeddings(onnxruntime_compute(path), given.numpy())
    agreement = Agreement.of(found, expected_embeddings(embedder, given))
    backbone = embedder.settings.backbone
    if precision == "float32" and not agreement.difference <= TOLERANCE:
        raise UserError(
            f"the ONNX form of {backbone} differs from PyTorch by {agreement.difference:.1e}, but at most "
            f"{TOLERANCE:.0e} is expected: nothing was written"
        )
    if precision != "float32" and not agreement.cosine >= LEAST_COSINE[precision]:
        raise UserError(
            f"the {precision} form of {backbone} has a mean cosine similarity of {agreement.cosine:.4f} with PyTorch's "
            f"embeddings, but at least {LEAST_COSINE[precision]} is expected: nothing was written; take --precision "
            f"{'float32' if precision == 'float16' else 'float16'}"
        )
    return agreement


def describe(embedder: Embedder, model: str, precision: Precision = "float32") -> dict[str, Any]:
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
        return {"format": 1, "model": model, "precision": precision, "input": given, "output": output}
    images = embedder.images.at_test
    return {
        "format": 1,
        "model": model,
        "precision": precision,
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

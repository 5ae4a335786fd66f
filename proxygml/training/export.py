"""A run's embedder for other runtimes, checked on the images of the run's own catalog."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proxygml.arguments import check_arguments
from proxygml.data.catalog import Catalog
from proxygml.errors import UserError
from proxygml.evaluation.metrics import evaluate
from proxygml.files import PathLike, check_ending, check_overwrite, local_path
from proxygml.models.embedder import Embedder
from proxygml.models.image_batches import image_batches
from proxygml.models.model_description import ModelDescription, read_model
from proxygml.models.onnx_export import Agreement, Precision, export_embedder
from proxygml.models.onnx_graph import computed_embeddings, expected_embeddings, onnxruntime_compute
from proxygml.training.run_folder import RunFolder

CALIBRATION, CHECKED = 256, 128
"""Training images that int8 is quantised on, and others that it is compared with PyTorch on."""


@check_arguments
def export(run: PathLike, out: PathLike, *, precision: Precision = "float32", force: bool = False) -> Agreement:
    """Write a run's embedder as ONNX, and its preprocessing as JSON beside it (birds.onnx, birds.json).

    Nothing is left behind unless onnxruntime gives PyTorch's embeddings, as near as the precision lets them be. float32
    and float16 are compared on batches of random images of sizes 1 and 5. int8 is quantised on 256 training images of
    the run's catalog and compared on 128 others, or on the same where there are no others.

    Args:
        run: a run folder.
        out: the .onnx file; its batch size is free. Weights are inside.
        precision: of weights and computation: float32, float16, or int8 (static quantisation).
        force: replace files that are there.

    Returns:
        How close the embeddings are to PyTorch's: `.difference`, `.cosine`, `.least_cosine`.

    Raises:
        UserError: the extra is not installed, the name does not end in .onnx, a file is there already or is part of the
            run, the network cannot be expressed, its ONNX form gives other embeddings; or, for int8, the model takes
            vectors or the training images are not there.
    """
    folder, file = local_path(run, "run"), local_path(out, "out")
    if precision != "int8":
        return export_embedder(folder, file, precision=precision, force=force)
    check_ending(file, ".onnx")
    check_overwrite(file, force)  # before any image is decoded
    calibration, check = _training_images(folder)
    return export_embedder(folder, file, precision=precision, calibration=calibration, check=check, force=force)


class RecallPair(NamedTuple):
    """Recall@1 in 0..1 on the test split of the run's catalog."""

    torch: float
    exported: float
    images: int


def exported_recall(run: Path, file: Path) -> RecallPair:
    """Recall@1 of a run's embedder and of a file that `export` has made of it, with the same images.

    Raises:
        UserError: the run's catalog is not there, or has no test split of use.
    """
    embedder = Embedder.load(run)
    test = _catalog(run).split("test")
    compute = onnxruntime_compute(file)
    batches = image_batches([str(path) for path in test.paths], test.boxes, embedder.images, 64, 0)
    both = [(expected_embeddings(embedder, batch), computed_embeddings(compute, batch.numpy())) for batch in batches]
    recalls = []
    for parts in zip(*both, strict=True):
        embeddings = torch.from_numpy(np.concatenate(parts))
        found = evaluate(embeddings, test.labels, recall_at=(1,), nmi=False, **test.rules)
        recalls.append(found.recall[1].value)
    return RecallPair(recalls[0], recalls[1], len(test))


def _training_images(run: Path) -> tuple[Tensor, Tensor]:
    """Squares of training images, uint8 (n, 3, S, S): those to quantise on, and those to check with."""
    model = read_model(run)
    if not isinstance(model, ModelDescription):
        raise UserError(f"{run} takes vectors, but precision int8 is for models of images: take float16")
    train = _catalog(run).split("train")
    rows = np.random.default_rng(0).permutation(len(train))[: CALIBRATION + CHECKED]
    boxes = None if train.boxes is None else train.boxes[rows]
    paths = [str(path) for path in train.paths]
    squares = torch.cat(list(image_batches([paths[row] for row in rows], boxes, model.images, 64, 0)))
    return squares[:CALIBRATION], squares[CALIBRATION:] if len(squares) > CALIBRATION else squares


def _catalog(run: Path) -> Catalog:
    """The catalog that a run was trained on."""
    recipe = RunFolder(run).read_recipe()
    if recipe.takes_vectors:
        raise UserError(f"{run} takes vectors: only exports of models of images are evaluated here")
    return Catalog.read(recipe.catalog)

"""A head on vectors as a plain .safetensors file: a few arrays, from which twenty lines of NumPy embed.

docs/guide/vectors.md has those lines. onnx_export.py writes any model as a graph.
"""

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from proxygml.errors import UserError
from proxygml.files import PathLike, atomic_write, check_ending, check_overwrite, local_path
from proxygml.models.embedder import Embedder
from proxygml.models.head import Head, ResidualLinear, ResidualMLP, Standardized
from proxygml.models.model_files import TENSORS, fingerprint


def export_arrays(run: PathLike, out: PathLike, *, force: bool = False) -> dict[str, tuple[int, ...]]:
    """Write the arrays of a model of vectors: mean and deviation (F,), weight (D, F), bias (D,); float32.

    A vector x of length 1 becomes z = (x - mean) / deviation, then z @ weight.T + bias, then that scaled to length 1. A
    head `mlp` adds gelu(z @ hidden_weight.T + hidden_bias) @ output_weight.T before the last step.

    Args:
        run: a run folder.
        out: the .safetensors file.
        force: replace a file that is there.

    Returns:
        The name and shape of each array.

    Raises:
        UserError: the model takes images, or normalises by layer, which these arrays cannot do; or the name is wrong,
            or a file is there already, or part of the run.
    """
    folder, file = local_path(run, "run"), local_path(out, "safetensors")
    check_ending(file, ".safetensors")
    if file.resolve() == (folder / TENSORS).resolve():
        raise UserError(f"{file} is the run's own model: choose another name")
    check_overwrite(file, force)
    embedder = Embedder.load(folder)
    if embedder.takes_images:
        raise UserError(f"{folder} takes images, and --safetensors writes only layers on vectors: use --onnx")
    found = _arrays(embedder.head, embedder.num_features)
    arrays = {name: tensor.float().contiguous() for name, tensor in found.items()}
    with atomic_write(file) as temporary:
        save_file(arrays, temporary, {"model": fingerprint(folder), "format": "1"})
    return {name: tuple(tensor.shape) for name, tensor in arrays.items()}


@torch.no_grad()
def _arrays(head: Head, num_features: int) -> dict[str, Tensor]:
    mean, deviation, factor, shift = _norm(head.norm, num_features)
    if not isinstance(head.linear, nn.Linear):
        weight, bias = torch.eye(num_features), torch.zeros(num_features)
    else:
        weight, bias = head.linear.weight, head.linear.bias
        if isinstance(head.linear, ResidualLinear):
            weight = weight + head.linear.start
    arrays = {
        "mean": mean,
        "deviation": deviation,
        "weight": weight * factor,
        "bias": bias + weight @ shift,
    }
    if isinstance(head.linear, ResidualMLP):
        hidden = head.linear.hidden
        arrays |= {
            "hidden_weight": hidden.weight * factor,
            "hidden_bias": hidden.bias + hidden.weight @ shift,
            "output_weight": head.linear.output.weight,
        }
    return arrays


def _norm(norm: nn.Module, num_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a norm does: (x - mean) / deviation * factor + shift, each (F,)."""
    zeros, ones = torch.zeros(num_features), torch.ones(num_features)
    if isinstance(norm, nn.Identity):
        return zeros, ones, ones, zeros
    if isinstance(norm, Standardized):
        return norm.mean, norm.deviation, ones, zeros
    if isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None:
        return norm.running_mean, (norm.running_var + norm.eps).sqrt(), norm.weight, norm.bias
    raise UserError("embedder.feature_norm is layer, which takes each vector's own mean: use --onnx")

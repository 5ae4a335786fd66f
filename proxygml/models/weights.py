"""Files of weights for a backbone: of timm, of PyTorch, of training loops, and of our own runs.

Nothing but tensors is unpickled. A file may come from a stranger: it is checked before it is read.
"""

import math
import pickle
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from proxygml.console import note
from proxygml.errors import WeightsError
from proxygml.files import check_size
from proxygml.models.bn_inception import BNInception
from proxygml.models.model_files import check_finite_tensors
from proxygml.remote import local_file
from proxygml.urls import Place, Url, as_place

TABLES = ("state_dict", "model", "model_state_dict", "embedder", "backbone", "network", "net")
"""Where the checkpoints of training loops keep the tensors of the network."""

LARGEST_SHARE = 16
"""A checkpoint may be so many times as large as the backbone: with a classifier, an optimiser and averaged weights."""

ROOM = 2**30
"""Bytes that a file of weights may have beside that."""


def check_weights_file(weights: str) -> None:
    """Raise WeightsError where `embedder.weights` names a file that does not exist, or something else."""
    if weights in ("pretrained", "none"):
        return
    place = as_place(weights, "embedder.weights", WeightsError)
    if isinstance(place, Url):
        local_file(place, WeightsError)
        return
    path = place
    if not path.exists():
        raise WeightsError(f"embedder.weights is {weights!r}, which is not there: give a file, pretrained or none")
    if path.is_dir():
        raise WeightsError(f"embedder.weights is {weights!r}, a folder: give a file in it, such as model.safetensors")
    if not path.is_file():
        raise WeightsError(f"embedder.weights is {weights!r}, a device or a pipe: give an ordinary file")


def load_weights(backbone: nn.Module, path: Place) -> None:
    """Load every tensor of the backbone from a file or a URL; its classifier is left out, everything else must fit.

    A prefix before all names of the backbone (`module.`, `model.`, `backbone.`, `_orig_mod.`, and any other) is
    removed, and a line says so; what lies outside of it belongs to other parts of the network and is left out.

    Raises:
        WeightsError: the file is missing, cannot be read or does not fit, or holds NaN.
    """
    expected = backbone.state_dict()
    state = _read(path, expected)
    prefix = _prefix(state, expected)
    if prefix:
        _note_once(f"{path}: removed {prefix!r} from the names of the weights")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    load_state(backbone, state, path)


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], source: Place | str) -> None:
    """Load tensors of a backbone's own names.

    Args:
        backbone: loaded in place.
        state: all of its tensors; a classifier is left out, everything else must fit.
        source: where they come from, for messages.

    Raises:
        WeightsError: they do not fit, or hold NaN.
    """
    check_finite_tensors(state, source)
    if isinstance(backbone, BNInception):
        backbone.load_port_weights(state)
        return
    expected = backbone.state_dict()
    # A backbone has no classifier; no other name of the file may be left over.
    classifier = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{part}." for part in ((classifier,) if isinstance(classifier, str) else classifier))
    given = _at_own_size({key: value for key, value in state.items() if not key.startswith(prefixes)}, backbone, source)
    problems = [f"missing {key}" for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    problems += [f"unexpected {key}" for key in given if key not in expected]
    problems += [
        f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        for key, value in given.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise WeightsError(f"{source} does not fit the backbone: {shown}")
    backbone.load_state_dict(given, strict=False)


def _at_own_size(state: dict[str, Tensor], backbone: nn.Module, source: Place | str) -> dict[str, Tensor]:
    """The tensors with the position embeddings of a vision transformer interpolated to this backbone's grid of patches.

    Weights of another image size then fit, as those do that timm downloads: DINOv2's are of 518 pixels.
    """
    own, given = getattr(backbone, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or given.dim() != 3 or given.shape[::2] != own.shape[::2]:
        return state
    others = 0 if getattr(backbone, "no_embed_class", False) else getattr(backbone, "num_prefix_tokens", 1)
    side = math.isqrt(max(given.shape[1] - others, 0))
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is None or given.shape == own.shape or side < 1 or side * side != given.shape[1] - others:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: PLC0415  (a backbone of timm has it loaded already)

    _note_once(f"{source}: position embeddings of {side} x {side} patches interpolated to {grid[0]} x {grid[1]}")
    return state | {"pos_embed": resample_abs_pos_embed(given, list(grid), num_prefix_tokens=others)}


def _note_once(text: str) -> None:
    """Print a note; of several processes that train together, and all load the weights, the first prints it."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        note(text)


def _read(path: Place, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a weights file, or of the table of them inside a training checkpoint."""
    check_weights_file(str(path))
    backbone = sum(4 * tensor.numel() for tensor in expected.values())
    file = local_file(path, WeightsError)
    check_size(file, LARGEST_SHARE * backbone + ROOM, WeightsError)
    try:
        if path.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise WeightsError(f"{path} cannot be read as weights (.safetensors, or tensors in a .pth): {error}") from error
    return _table(content, path)


def _table(content: Any, path: Place) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in TABLES if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no table of tensors: expected the state_dict of a network")
    return {str(name): tensor for name, tensor in content.items()}


def _prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What stands before most of the backbone's names in the file; "" where they are its own."""
    if any(name in state for name in expected):
        return ""
    endings = {name.rpartition(".")[2] for name in expected}
    found: Counter[str] = Counter()
    for name in state:
        if name.rpartition(".")[2] in endings:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                if ".".join(parts[cut:]) in expected:
                    found[".".join(parts[:cut]) + "."] += 1
    return found.most_common(1)[0][0] if found else ""

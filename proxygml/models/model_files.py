"""The two files of a saved model: model.safetensors (the tensors) and model.json (what they mean).

They need nothing else: neither the recipe nor the weights that training started from.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from proxygml.errors import RunError, WeightsError
from proxygml.files import atomic_write, check_local, check_size

FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"

LARGEST_DESCRIPTION = 2**30
"""Bytes of model.json: the names of ten million classes."""

ROOM = 64 * 2**20
"""Bytes that a file of tensors may have beside the tensors that are expected."""


def write_model(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each whole or not at all.

    A process that dies between the two leaves no description of another model beside the new tensors, but none.
    """
    described = folder / DESCRIPTION
    text = json.dumps({"format": FORMAT} | dict(description), indent=2, ensure_ascii=False) + "\n"
    with atomic_write(described) as last, atomic_write(folder / TENSORS) as first:
        last.write_text(text, encoding="utf-8")
        save_file(_apart(tensors), first)
        if described.is_file() and described.read_bytes() != text.encode():
            described.unlink()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without shared memory, which the format cannot express: of tied weights, each name gets its copy."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart


def read_description(folder: Path) -> dict[str, Any]:
    """The content of model.json.

    Raises:
        RunError: the file is missing, unreadable or of another format.
    """
    check_local(folder, "the run folder", RunError)
    path = folder / DESCRIPTION
    if not path.exists():
        raise RunError(f"{folder} holds no model.json: give a run folder in which training has finished")
    check_size(path, LARGEST_DESCRIPTION, RunError)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise RunError(f"{path} has format {found!r}, but this version of proxygml reads format {FORMAT}")
    return dict(description)


def read_tensors(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of model.safetensors, on the CPU.

    Args:
        folder: the run folder.
        expected: the network's own, which say how large the file can be.

    Raises:
        RunError: the file is missing, unreadable or far too large.
        WeightsError: it holds NaN or infinite values.
    """
    path = folder / TENSORS
    check_size(path, sum(8 * tensor.numel() for tensor in expected.values()) + ROOM, RunError)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    check_finite_tensors(tensors, path)
    return tensors


def check_finite_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise WeightsError where a tensor holds NaN or infinite values, of which every embedding would be NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(
                f"{path}: {name} holds NaN or infinite values, so every embedding would be NaN: take the file of a "
                "training that ended well"
            )


def fingerprint(run_folder: str | Path) -> str:
    """What identifies a model: 64 hexadecimal digits, SHA-256 of model.json and model.safetensors.

    Embeddings can be compared where their models' fingerprints are the same.

    Raises:
        RunError: a file is missing or of another format.
    """
    folder = Path(run_folder)
    read_description(folder)
    digest = hashlib.sha256()
    for name in (DESCRIPTION, TENSORS):
        check_size(folder / name, sys.maxsize, RunError)
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()

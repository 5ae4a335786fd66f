"""The two files of a saved model: model.safetensors (the tensors) and model.json (what they mean).

They need nothing else: neither the recipe nor the weights that training started from.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from proxygml.errors import RunError, WeightsError, counted
from proxygml.files import atomic_write, check_local, check_size

FORMAT = 1
DESCRIPTION, TENSORS = "model.json", "model.safetensors"

LARGEST_DESCRIPTION = 2**30
"""Bytes of model.json: the names of ten million classes."""

BYTES_IN_MEMORY = 24
"""For each byte of model.json: as many as empty lists take when they are read."""

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
        missing = f"{folder} holds no {DESCRIPTION}" if folder.is_dir() else f"there is no folder {folder}"
        raise RunError(f"{missing}: give a run folder in which training has finished")
    check_size(path, min(LARGEST_DESCRIPTION, psutil.virtual_memory().available // BYTES_IN_MEMORY), RunError)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise RunError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if type(found) is not int or found != FORMAT:
        raise RunError(f"{path} has format {found!r:.40}, but this version of proxygml reads format {FORMAT}")
    return dict(description)


def read_tensors(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of model.safetensors, on the CPU.

    Args:
        folder: the run folder.
        expected: the network's own, which say how large the file can be.

    Raises:
        RunError: the file is missing, unreadable or far too large.
        WeightsError: it holds NaN or infinite values, or whole numbers where others are expected.
    """
    path = folder / TENSORS
    if not path.exists():
        raise RunError(f"{folder} holds no {TENSORS}: no other file of weights is read in its place")
    check_size(path, sum(8 * tensor.numel() for tensor in expected.values()) + ROOM, RunError)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    for name in tensors.keys() & expected.keys():
        if tensors[name].is_floating_point() != expected[name].is_floating_point():
            raise WeightsError(
                f"{path}: {name} is {tensors[name].dtype}, but {expected[name].dtype} is expected: take the file that "
                "`proxygml train` has written"
            )
    check_finite_tensors(tensors, path)
    return tensors


@contextmanager
def numbers_at_most(folder: Path) -> Iterator[None]:
    """While a network is built, let it have no more numbers than the file of its tensors has bytes.

    A description takes a few bytes, and can name a network that fills the memory before its tensors are looked at.

    Raises:
        RunError: the file cannot be read.
        WeightsError: it would have more.
    """
    path, thread, count = folder / TENSORS, threading.get_ident(), 0
    most = path.stat().st_size if path.is_file() else sys.maxsize  # a missing file is named later

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is None or threading.get_ident() != thread:
            return
        count += parameter.numel()
        if count > most:
            _check_readable(path)
            raise WeightsError(
                f"{path} does not fit its model.json: it has {counted(most, 'byte')}, but the network that is "
                "described there has more numbers than that"
            )

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def _check_readable(path: Path) -> None:
    """Raise RunError where the head of a file of tensors cannot be read: the file is something else."""
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


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

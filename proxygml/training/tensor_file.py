"""Writes `.safetensors` files piece by piece, so that a tensor need not be in memory, nor on the CPU, as a whole.

The library's own save_file needs each tensor whole, and its older releases copy all of them. The format is eight bytes
with the length of a header, the header in JSON (name, type, shape and place of each tensor), then the numbers.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

PIECE = 2**26
"""Bytes of a tensor that are copied or written at a time."""

TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How the format calls the types of PyTorch."""


@dataclass(frozen=True)
class Source:
    """A tensor to write, in pieces.

    Args:
        dtype, shape: of the whole tensor.
        pieces: its rows, in order; for a tensor without dimensions, the tensor itself.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


def source_of(tensor: Tensor) -> Source:
    """A tensor that is in memory, or on another device."""
    pieces = (tensor[rows] for rows in row_blocks(tensor.shape, tensor.dtype)) if tensor.dim() else (tensor,)
    return Source(tensor.dtype, tuple(tensor.shape), pieces)


def row_blocks(shape: Sequence[int], dtype: torch.dtype) -> Iterator[slice]:
    """Slices of rows that cover a tensor of one dimension or more, each of at most PIECE bytes or of a single row."""
    step = max(1, PIECE // max(1, prod(shape[1:]) * dtype.itemsize))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def write_tensor_file(path: Path, tensors: Mapping[str, Source]) -> None:
    """Write a `.safetensors` file and wait until it is on the disk."""
    # Wide types first: each tensor then starts at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    end = 0
    for name in names:
        source = tensors[name]
        start, end = end, end + source.size
        header[name] = {"dtype": TYPES[source.dtype], "shape": list(source.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            for piece in tensors[name].pieces:
                file.write(piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())

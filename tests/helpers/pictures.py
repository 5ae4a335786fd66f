"""Small image files for the tests."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def write_picture(path: Path, seed: int, size: tuple[int, int] = (24, 16)) -> Path:
    """A noisy RGB image of (width, height) pixels, another one for every seed; its folders are made too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder_of_pictures(folder: Path) -> Path:
    """deep/0.png to deep/5.png in a folder, beside a text and a hidden folder, which are no images of it."""
    for number in range(6):
        write_picture(folder / "deep" / f"{number}.png", number)
    (folder / "notes.txt").write_text("no image")
    write_picture(folder / ".hidden" / "x.png", 9)
    return folder


def gradient(height: int = 30, width: int = 40) -> Image.Image:
    """Colours that tell up from down and left from right."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 - 128 * x / width], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

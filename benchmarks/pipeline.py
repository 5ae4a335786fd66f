"""How fast images come, and where a training epoch's time goes: `python -m benchmarks.pipeline [--images PATH]`.

Without images it makes some, about as large and as heavy as the photos of CUB-200-2011.
"""

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.transforms import v2

from benchmarks.measure import Work, console, default_device, machine, milliseconds, side_by_side, synchronize, table
from proxygml import ProxyGMLLoss
from proxygml.data.catalog import Catalog
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset, collate, decode_image, decode_part
from proxygml.data.images.transforms import random_crop, train_transform
from proxygml.data.preparing.resize import Size, copy_smaller
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_embedder import ImageEmbedder
from proxygml.training.optimization import make_optimizers, set_learning_rates
from proxygml.training.recipe import Recipe
from proxygml.training.sampler import Batches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, SHORTER_SIDE = 100, 256

Item = TypeVar("Item")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs, or a tar archive of one")
    parser.add_argument("--weights", default="none", help="a weights file of mobilenetv2_100; random when left out")
    parser.add_argument("--count", type=int, default=200, help="how many images to take")
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    options = parser.parse_args()
    count, seconds = (64, 2.0) if options.quick else (options.count, 12.0)
    with tempfile.TemporaryDirectory() as folder:
        paths = find_images(options.images, Path(folder), count)
        width, height = np.median([Image.open(path).size for path in paths], axis=0)
        kilobytes = np.median([path.stat().st_size for path in paths]) / 1000
        console.print(machine(default_device()))
        console.print(f"{len(paths)} JPEGs, median {width:.0f} x {height:.0f} pixels, {kilobytes:.0f} kB")
        copies = smaller_copies(paths, Path(folder) / "copies")
        print_decoding(paths, copies, seconds)
        print_epoch(paths, options.weights)
        print_effects(paths, copies, options.weights, seconds)


# Images ---------------------------------------------------------------------------------------------------------------


def find_images(source: Path | None, folder: Path, count: int) -> list[Path]:
    """At most `count` JPEGs of a folder or an archive, spread over all of it; synthetic ones where there is none."""
    if source is None:
        return [write_photo(folder / f"{seed}.jpg", seed) for seed in range(count)]
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(folder / "images", filter="data")
        source = folder / "images"
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"{source} holds no JPEG")
    return [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]


def write_photo(path: Path, seed: int) -> Path:
    """500 x 375 pixels with detail at every scale, as photos have it."""
    random = np.random.default_rng(seed)
    pixels = np.full((375, 500, 3), 128.0)
    for cells in (4, 16, 64, 250):
        noise = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        pixels += (np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)) - 128.0) / cells**0.4
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return path


def smaller_copies(paths: Sequence[Path], folder: Path) -> list[Path]:
    """What `prepare --resize` makes."""
    rows = {"path": [str(path.resolve()) for path in paths], "label": "any", "split": "train"}
    catalog = Catalog(pd.DataFrame(rows), folder)
    sizes = {path: Size(*decode_image(path).shape[1:]) for path in catalog.paths}
    start = time.perf_counter()
    copies = list(map(Path, copy_smaller(catalog, sizes, folder, SHORTER_SIDE).paths))
    console.print(f"making the copies took {milliseconds((time.perf_counter() - start) / len(paths))} an image")
    return copies


# From files to crops --------------------------------------------------------------------------------------------------


def print_decoding(paths: Sequence[Path], copies: Sequence[Path], seconds: float) -> None:
    """Images per second of one core, ours beside what everyone writes; and the parts of ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = ImageSettings()
    whole = side_by_side(
        {
            "Pillow + torchvision transforms (v1)": everyones(paths, v1_transform()),
            "Pillow + torchvision transforms.v2": everyones(paths, v2_transform()),
            "ours": ours(paths, settings),
            f"ours, on --resize {SHORTER_SIDE} copies": ours(copies, settings),
        },
        seconds,
    )
    first, second = list(whole.values())[:2]
    result = table("JPEG files to random 224 crops, one core", ["", "images/s", "an image", "to v1", "to v2"])
    for name, taken in whole.items():
        each = taken / len(paths)
        result.add_row(name, f"{1 / each:,.0f}", milliseconds(each), f"{first / taken:.2f}x", f"{second / taken:.2f}x")
    console.print(result)
    parts = side_by_side(our_parts(paths, settings), seconds)
    result = table("The parts of ours", ["", "an image"])
    for name, taken in parts.items():
        result.add_row(name, milliseconds(taken / len(paths)))
    console.print(result)
    torch.set_num_threads(threads)


def v1_transform() -> Callable[[Image.Image], Tensor]:
    steps = [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    composed: Callable[[Image.Image], Tensor] = v1.Compose(steps)
    return composed


def v2_transform() -> Callable[[Image.Image], Tensor]:
    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(224),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    composed: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return composed


def everyones(paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> Work:
    """Batches of 32 as the usual loader stacks them."""

    def work() -> None:
        for batch in batches(paths):
            torch.stack([transform(Image.open(path).convert("RGB")) for path in batch])

    return work


def ours(paths: Sequence[Path], settings: ImageSettings) -> Work:
    dataset = ImageDataset(paths, None, settings, training=True)

    def work() -> None:
        for batch in batches(range(len(paths))):
            collate([dataset[index] for index in batch])

    return work


def our_parts(paths: Sequence[Path], settings: ImageSettings) -> dict[str, Work]:
    """Each part alone."""
    dataset = ImageDataset(paths, None, settings, training=True)
    squares = [dataset[index] for index in range(len(paths))]
    decoded = [decode_image(path) for path in paths]
    transform = train_transform(settings, np.random.default_rng(0))
    return {
        "read": lambda: [path.read_bytes() for path in paths],
        "read and decode, all rows": lambda: [decode_image(path) for path in paths],
        "read and decode, the rows of the crop": lambda: decode_parts(paths, range(len(paths)), settings),
        "cut, scale, mirror": lambda: [transform(image) for image in decoded],
        "collate": lambda: [collate(batch) for batch in batches(squares)],
        "generator of (seed, epoch, index)": lambda: [np.random.default_rng((0, 0, i)) for i in range(len(paths))],
    }


def decode_parts(paths: Sequence[Path], indices: Sequence[int], settings: ImageSettings) -> None:
    """The decoding of training crops, without what follows."""
    for index in indices:
        generator = np.random.default_rng((0, 0, index))
        decode_part(paths[index], lambda height, width: random_crop(height, width, settings, generator))  # noqa: B023


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), 32):
        yield items[start : start + 32]


# An epoch -------------------------------------------------------------------------------------------------------------


class PlanarEmbedder(ImageEmbedder):
    """As the embedder was before: the network computes channel by channel."""

    def _normalise(self, images: Tensor) -> Tensor:
        return super()._normalise(images).contiguous()


@dataclass
class Epoch:
    """What an epoch of recipes/cub200_2010_crops.yaml needs, after its warm-up."""

    dataset: ImageDataset
    labels: Tensor
    embedder: ImageEmbedder
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device


def make_epoch(paths: Sequence[Path], weights: str, planar: bool = False, fused: bool = True) -> Epoch:
    settings, device = ImageSettings(size=128, resize=146), default_device()
    kind = PlanarEmbedder if planar else ImageEmbedder
    embedder = kind(EmbedderSettings("mobilenetv2_100", weights), settings).to(device).train()
    for layer in embedder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval().requires_grad_(False)
    criterion = ProxyGMLLoss(CLASSES, embedder.embedding_size).to(device)
    recipe = Recipe()
    (optimizer,) = make_optimizers(recipe, embedder, criterion)
    set_learning_rates([optimizer], recipe, 2)
    if not fused:
        groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
        optimizer = torch.optim.Adam(groups, eps=recipe.eps, weight_decay=recipe.weight_decay)
    dataset = ImageDataset(paths, None, settings, training=True)
    return Epoch(dataset, torch.arange(len(paths)) % CLASSES, embedder, criterion, optimizer, device)


class Clock:
    """Seconds spent under each name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def print_epoch(paths: Sequence[Path], weights: str) -> None:
    """Where the time of a training epoch goes when one process does everything in turn."""
    epoch = make_epoch(paths, weights)
    clock = Clock()
    for counted in (False, True):
        for indices in Batches(epoch.labels.numpy(), 32):
            profile_step(epoch, paths, indices, clock)
        if not counted:
            clock.seconds.clear()
    as_parts(clock.seconds)
    total = sum(clock.seconds.values())
    title = f"An epoch at 128 pixels, MobileNetV2, batch 32, no workers: {len(paths) / total:,.0f} images/s"
    result = table(title, ["", "an image", "share"])
    for name, seconds in clock.seconds.items():
        result.add_row(name, milliseconds(seconds / len(paths)), f"{seconds / total:.1%}")
    console.print(result)


def as_parts(seconds: dict[str, float]) -> None:
    """What was timed within something else comes off it."""
    seconds["cut, scale, mirror"] -= seconds["decode"]
    seconds["backward"] -= seconds["loss, backward"]


def profile_step(epoch: Epoch, paths: Sequence[Path], indices: Sequence[int], clock: Clock) -> None:
    """One step; decoding and the loss's backward are done twice, once alone."""
    with clock("decode"):
        decode_parts(paths, indices, epoch.dataset.settings)
    with clock("cut, scale, mirror"):
        items = [epoch.dataset[index] for index in indices]
    with clock("collate"):
        images, rows = collate(items)
    with clock("transfer"):
        images, labels = images.to(epoch.device), epoch.labels[rows].to(epoch.device)
    with clock("forward, normalising included"):
        embeddings = epoch.embedder(images)
    with clock("loss, forward"):
        loss = epoch.criterion(embeddings, labels)
    with clock("loss, backward"):
        torch.autograd.grad(loss, [embeddings, *epoch.criterion.parameters()], retain_graph=True)
    with clock("backward"):
        torch.autograd.backward(loss)
    with clock("optimiser"):
        epoch.optimizer.step()
        epoch.optimizer.zero_grad()


def print_effects(paths: Sequence[Path], copies: Sequence[Path], weights: str, seconds: float) -> None:
    """Whole epochs with one thing changed at a time."""
    part = len(paths) // 2
    paths, copies = paths[:part], copies[:part]
    plain = make_epoch(paths, weights)
    loaders = [make_loader(plain, workers) for workers in (0, 1, 2)]
    contenders = {
        "no workers": train_pass(plain, loaders[0]),
        "1 worker": train_pass(plain, loaders[1]),
        "2 workers, as in the recipe": train_pass(plain, loaders[2]),
        "2 workers, started anew each epoch": train_pass(plain, make_loader(plain, 2, persistent=False)),
        "2 workers, planar": train_pass(make_epoch(paths, weights, planar=True), loaders[2]),
        "2 workers, Adam not fused": train_pass(make_epoch(paths, weights, fused=False), loaders[2]),
        f"2 workers, --resize {SHORTER_SIDE} copies": train_pass(plain, make_loader(make_epoch(copies, weights), 2)),
    }
    taken = side_by_side(contenders, seconds, rounds=3)
    result = table("The same epoch with one thing changed", ["", "images/s", "to the recipe's"])
    recipes = taken["2 workers, as in the recipe"]
    for name, each in taken.items():
        result.add_row(name, f"{part / each:,.0f}", f"{recipes / each:.2f}x")
    console.print(result)


def make_loader(epoch: Epoch, workers: int, persistent: bool = True) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        epoch.dataset,
        batch_sampler=Batches(epoch.labels.numpy(), 32),
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        collate_fn=collate,
        pin_memory=epoch.device.type == "cuda",
    )


def train_pass(epoch: Epoch, loader: DataLoader[tuple[Tensor, int]]) -> Work:
    def work() -> None:
        for images, rows in loader:
            embeddings = epoch.embedder(images.to(epoch.device, non_blocking=True))
            labels = epoch.labels[rows].to(epoch.device, non_blocking=True)
            loss: Tensor = epoch.criterion(embeddings, labels)
            torch.autograd.backward(loss)
            epoch.optimizer.step()
            epoch.optimizer.zero_grad()

    return work


if __name__ == "__main__":
    main()

"""Embeddings and features of whole catalogs: over all processes, and kept on disk where the backbone is frozen."""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from proxygml.console import track
from proxygml.data.catalog import Catalog
from proxygml.data.image_list import file_stamps
from proxygml.data.images import ImageDataset, collate
from proxygml.files import atomic_write, cache_folder
from proxygml.models.embedder import Embedder, checked_embeddings
from proxygml.models.views import ONE_VIEW, View, views_of
from proxygml.training.vectors import embed_vectors
from proxygml.urls import absolute


def embed_catalog(
    embedder: Embedder, catalog: Catalog, accelerator: Accelerator, *, workers: int, cached: bool, batch_size: int = 64
) -> Tensor:
    """The embeddings of a catalog's images, computed by all processes together, the same on each.

    Args:
        embedder: on the accelerator's device.
        catalog: the images.
        accelerator: the processes.
        workers: decoding processes for each.
        cached: take the backbone's features from the cache, or put them there.
        batch_size: images at a time and process.

    Returns:
        float32 (n, D) on the CPU.
    """
    if not embedder.takes_images:
        return embed_vectors(embedder, catalog)
    if cached:
        features = cached_features(embedder, catalog, accelerator, workers=workers, batch_size=batch_size)
        return embed_features(embedder, features)
    return checked_embeddings(_compute(embedder, embedder, catalog, accelerator, workers, batch_size))


@torch.inference_mode()
def embed_features(embedder: Embedder, features: Tensor) -> Tensor:
    """The embeddings, float32 (n, D) on the CPU, of pooled features (n, F)."""
    embeddings: Tensor = embedder.head.eval()(features.to(embedder.device)).float().cpu()
    return checked_embeddings(embeddings)


def cached_features(
    embedder: Embedder,
    catalog: Catalog,
    accelerator: Accelerator,
    *,
    workers: int,
    batch_size: int = 64,
    as_trained: bool = False,
) -> Tensor:
    """Pooled features, float32 (n, F) on the CPU, from the cache on disk or computed and put there.

    The key covers the backbone's weights, pooling, views, output stride, the test transform and the files (path, box,
    size, time of change).

    Args:
        embedder, catalog, accelerator, workers, batch_size: see embed_catalog.
        as_trained: features of one view and the backbone's own map, as training on images sees them.
    """
    views = ONE_VIEW if as_trained else views_of(embedder.settings)
    stride = 0 if as_trained else embedder.settings.output_stride
    path = cache_folder("features") / f"{_key(embedder, catalog, views, stride)}.safetensors"
    kept = _read_cache(path)
    # Decided together, since machines may not share the folder: all compute, or none.
    found = int(accelerator.reduce(torch.tensor(int(kept is not None), device=accelerator.device)))
    if kept is not None and found == accelerator.num_processes:
        return kept
    compute = partial(embedder.features, views=views, finer=bool(stride))
    features = _compute(embedder, compute, catalog, accelerator, workers, batch_size)
    if accelerator.is_local_main_process:
        with atomic_write(path) as temporary:
            save_file({"features": features}, temporary)
    return features


def _read_cache(path: Path) -> Tensor | None:
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or damaged: to be computed


def _key(embedder: Embedder, catalog: Catalog, views: Sequence[View], output_stride: int) -> str:
    digest = hashlib.sha256()
    images = embedder.images
    form = (embedder.settings.backbone, embedder.settings.pooling, list(map(tuple, views)), output_stride)
    digest.update(repr((*form, embedder.space)).encode())
    digest.update(repr((images.size, images.resize, images.interpolation)).encode())
    for name, tensor in embedder.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    boxes = catalog.boxes
    paths = [absolute(path) for path in catalog.paths]
    for row, (path, stamp) in enumerate(zip(paths, file_stamps(paths), strict=True)):
        box = None if boxes is None else boxes[row].tolist()
        state = stamp or uuid.uuid4().hex  # what nobody knows the state of is computed anew
        digest.update(repr((path, state, box)).encode())
    return digest.hexdigest()[:32]


@torch.inference_mode()
def _compute(
    embedder: Embedder,
    function: Callable[[Tensor], Tensor],
    catalog: Catalog,
    accelerator: Accelerator,
    workers: int,
    batch_size: int,
) -> Tensor:
    """Rank r of W takes every W-th image, from r on; the parts are put together again on every rank."""
    rank, world = accelerator.process_index, accelerator.num_processes
    share = -(-len(catalog) // world)
    mine = [min(row, len(catalog) - 1) for row in range(rank, share * world, world)]
    dataset = ImageDataset(catalog.paths, catalog.boxes, embedder.images, training=False, kept=True)
    on_gpu = accelerator.device.type == "cuda"
    loader = DataLoader(
        Subset(dataset, mine),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # of its own: a loader draws a number, and no other draw may depend on it
    )
    embedder.eval()
    batches = track(loader, "embedding", disable=not accelerator.is_main_process)
    computed = torch.cat([function(images.to(accelerator.device, non_blocking=True)).float() for images, _ in batches])
    if world == 1:
        return computed.cpu()
    gathered: Tensor = accelerator.gather(computed.contiguous())
    return gathered.view(world, share, -1).transpose(0, 1).flatten(0, 1)[: len(catalog)].cpu()


class FeatureDataset(Dataset[tuple[Tensor, int]]):
    """Cached features in place of images: item i is (float32 (F,), i)."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: features are the same in every epoch."""

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], index

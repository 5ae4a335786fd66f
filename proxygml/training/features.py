"""Embeddings and features of whole catalogs: over all processes, and kept on disk where the backbone is frozen.

Every process computes those of its own part of the images, `own_slice`. Embeddings stay where they were computed.
"""

import hashlib
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from proxygml.console import track
from proxygml.data.catalog import Catalog
from proxygml.data.images.image_list import file_stamps
from proxygml.data.images.settings import ImageSettings
from proxygml.data.images.tensors import ImageDataset, collate
from proxygml.data.lazy_list import LazyList
from proxygml.files import atomic_write, cache_folder
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.embedder import Embedder, checked_embeddings
from proxygml.models.views import ONE_VIEW, View, views_of
from proxygml.training.processes import any_process, own_slice, parts_on_all
from proxygml.training.tensor_file import Source, write_tensor_file
from proxygml.training.vectors import embed_vectors
from proxygml.urls import absolute_in


def embed_catalog(
    embedder: Embedder, catalog: Catalog, accelerator: Accelerator, *, workers: int, cached: bool, batch_size: int = 64
) -> Tensor:
    """The embeddings of this process's part of a catalog's images.

    Args:
        embedder: on the accelerator's device.
        catalog: all images.
        accelerator: the processes.
        workers: decoding processes for each.
        cached: take the backbone's features from the cache, or put them there.
        batch_size: images at a time and process.

    Returns:
        float32 (m, D) on the CPU, of the rows `own_slice(n, accelerator)`.
    """
    if not embedder.takes_images:
        return embed_vectors(embedder, catalog, own_slice(len(catalog), accelerator))
    if cached:
        features = cached_features(
            embedder, catalog, accelerator, workers=workers, batch_size=batch_size, own_part=True
        )
        return embed_features(embedder, features)
    images, width = embedder.images, embedder.embedding_size
    return checked_embeddings(_compute(embedder, embedder, width, catalog, images, accelerator, workers, batch_size))


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
    own_part: bool = False,
) -> Tensor:
    """Pooled features, float32 (n, F) on the CPU, from the cache on disk or computed and put there.

    The key covers the backbone's weights, pooling, views, output stride, the test transform and the files (path, box,
    size, time of change).

    Args:
        embedder, catalog, accelerator, workers, batch_size: see embed_catalog.
        as_trained: features of one view, the backbone's own map and the size of training, as training sees images.
        own_part: return those of this process's part of the images alone, (m, F).
    """
    views = ONE_VIEW if as_trained else views_of(embedder.settings)
    stride = 0 if as_trained else embedder.settings.output_stride
    images = embedder.images.as_trained if as_trained else embedder.images
    path = cache_folder("features") / f"{_key(embedder, catalog, images, views, stride)}.safetensors"
    rows = own_slice(len(catalog), accelerator)
    kept = _read_cache(path, rows if own_part else slice(None))
    # Decided together, since machines may not share the folder: all compute, or none.
    if not any_process(kept is None, accelerator) and kept is not None:
        return kept
    compute = partial(embedder.features, views=views, finer=bool(stride))
    features = _compute(embedder, compute, embedder.num_features, catalog, images, accelerator, workers, batch_size)
    shape = (len(catalog), features.shape[1])
    pieces: Iterable[Tensor] = parts_on_all(features, len(catalog), accelerator)
    if not own_part:
        features = torch.cat(list(pieces))
        pieces = [features]
    if accelerator.is_local_main_process:
        with atomic_write(path) as temporary:
            write_tensor_file(temporary, {"features": Source(features.dtype, shape, pieces)})
    else:
        deque(pieces, maxlen=0)  # sends this process's part
    return features


def _read_cache(path: Path, rows: slice) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_slice("features")[rows]
            return found
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or damaged: to be computed


def _key(embedder: Embedder, catalog: Catalog, images: ImageSettings, views: Sequence[View], output_stride: int) -> str:
    digest = hashlib.sha256()
    form = (embedder.settings.backbone, embedder.settings.pooling, list(map(tuple, views)), output_stride)
    digest.update(repr((*form, embedder.space)).encode())
    digest.update(repr((images.at_test.size, images.at_test.resize, images.interpolation)).encode())
    for name, tensor in embedder.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    boxes = catalog.boxes
    paths = LazyList(catalog.table["path"], partial(absolute_in, catalog.folder))
    for row, (path, stamp) in enumerate(zip(paths, file_stamps(paths), strict=True)):
        box = None if boxes is None else boxes[row].tolist()
        state = stamp or uuid.uuid4().hex  # what nobody knows the state of is computed anew
        digest.update(repr((path, state, box)).encode())
    return digest.hexdigest()[:32]


@freed_memory_kept()
@torch.inference_mode()
def _compute(
    embedder: Embedder,
    function: Callable[[Tensor], Tensor],
    width: int,
    catalog: Catalog,
    settings: ImageSettings,
    accelerator: Accelerator,
    workers: int,
    batch_size: int,
) -> Tensor:
    """What the function (m, 3, H, W) -> (m, width) gives for this process's part of the images, on the CPU."""
    rows = own_slice(len(catalog), accelerator)
    if rows.start == rows.stop:  # more processes than images
        return torch.empty(0, width)
    dataset = ImageDataset(catalog.paths, catalog.boxes, settings, training=False, kept=True)
    loader = DataLoader(
        Subset(dataset, range(rows.start, rows.stop)),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # of its own: a loader draws a number, and no other draw may depend on it
    )
    embedder.eval()
    batches = track(loader, "Embedding", disable=not accelerator.is_main_process)
    computed = [function(images.to(accelerator.device, non_blocking=True)).float() for images, _ in batches]
    return torch.cat(computed).cpu()


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

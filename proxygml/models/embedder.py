"""The embedder: backbone, pooling, linear layer, L2 norm; from RGB images to unit vectors.

Its settings are in embedder_settings.py, backbones and their weights in backbones.py, the files of a saved model in
model_files.py; training/ trains it.
"""

from collections.abc import Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from proxygml.arguments import check_arguments
from proxygml.console import track
from proxygml.data.image_settings import ImageSettings
from proxygml.errors import (
    LARGEST_BATCH,
    MOST_WORKERS,
    ImageError,
    RecipeError,
    RunError,
    UserError,
    WeightsError,
    check_whole,
    counted,
)
from proxygml.models.backbones import Backbone, build_backbone
from proxygml.models.dilation import FinerMap
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.head import Head, Pool
from proxygml.models.image_batches import ImageLike, image_batches
from proxygml.models.model_description import VectorModelDescription, read_model
from proxygml.models.model_files import TENSORS, read_tensors, write_model
from proxygml.models.prefix import check_dimensions, prefix
from proxygml.models.run_files import local_run
from proxygml.models.views import ONE_VIEW, View, apply_view, views_of
from proxygml.urls import as_place

LARGEST_LAYER = 2**30
"""Weights of the embedding layer."""


class Embedder(nn.Module):
    """Images to L2-normalised embeddings.

    In training mode an image is embedded by one view and the backbone's own feature map; in evaluation mode by the
    views and the finer map of the settings.

    Args:
        settings: backbone, weights, pooling and size.
        images: how images are cut and scaled before they come here.
        classes: the training classes in the order of their numbers; kept with the model.
        backbone: used in place of the backbone that the settings name, which is then not built.

    Raises:
        RecipeError, WeightsError: see build_backbone; or images.size does not suit the backbone.
    """

    takes_images = True
    """Whether the input is images; that of a VectorEmbedder is vectors."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        settings: EmbedderSettings,
        images: ImageSettings,
        classes: Sequence[str] = (),
        *,
        backbone: Backbone | None = None,
    ) -> None:
        super().__init__()
        network, space = backbone or build_backbone(settings.backbone, settings.weights, images.size)
        self.settings = settings
        self.images = images
        self.classes = tuple(classes)
        self.space = space
        self.backbone = network
        stride = settings.output_stride
        self.finer_map = FinerMap(network, settings.backbone, stride) if stride else None
        self.channels: int = network.num_features  # type: ignore[assignment]
        self.num_features = self.channels * (self._positions() if settings.pooling == "flatten" else 1)
        self.embedding_size = settings.embedding_size or self.num_features
        check_layer(self.num_features, settings)
        self.pool = Pool(settings.pooling)
        self.head = head_of(settings, self.num_features)
        self.register_buffer("mean", torch.tensor(space.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(space.std).view(3, 1, 1), persistent=False)
        if self.finer_map is not None:
            self._positions(finer=True)  # raised now where the size does not suit it, and not after an epoch

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    def forward(self, images: Tensor) -> Tensor:
        """RGB images (M, 3, H, W), uint8 in 0..255 or float in 0..1 -> (M, embedding_size), L2-normalised."""
        embeddings: Tensor = self.head(self.features(images))
        return embeddings

    def features(self, images: Tensor, *, views: Sequence[View] | None = None, finer: bool | None = None) -> Tensor:
        """Pooled features (M, num_features), the mean over the views.

        Args:
            images: RGB (M, 3, H, W), uint8 in 0..255 or float in 0..1.
            views: what is looked at; by default those of the settings, in training mode the image itself.
            finer: take the finer feature map; by default where the settings have one, but not in training mode.
        """
        if views is None:
            views = ONE_VIEW if self.training else views_of(self.settings)
        if finer is None:
            finer = self.finer_map is not None and not self.training
        images = self._normalise(images)
        pooled: list[Tensor] = [self.pool(self._feature_map(apply_view(images, view), finer)) for view in views]
        return pooled[0] if len(pooled) == 1 else sum(pooled[1:], start=pooled[0]) / len(pooled)

    def _normalise(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            images = images / 255
        images = (images - self.mean) / self.std
        images = images.flip(1) if self.space.bgr else images
        images = images.to(self.mean.dtype)  # that of the network, after half() or bfloat16()
        # Convolutions are fastest so, and every layer passes the layout on; the weights may stay as they are.
        return images.contiguous(memory_format=torch.channels_last)

    def _feature_map(self, images: Tensor, finer: bool) -> Tensor:
        """Normalised images to (M, F, positions)."""
        if not finer:
            features: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        elif self.finer_map is not None:
            features = self.finer_map(self.backbone, images)
        else:
            raise RecipeError("embedder.output_stride is 0, so this embedder has no finer feature map")
        return self._positions_last(features)

    def _positions_last(self, features: Tensor) -> Tensor:
        """(M, F, h, w), (M, h, w, F), (M, tokens, F) or (M, F), by the family of timm, to (M, F, positions)."""
        if features.dim() == 4 and features.shape[1] == self.channels:
            return features.flatten(2)
        if features.dim() == 4:
            return features.flatten(1, 2).transpose(1, 2)
        if features.dim() == 3:
            # Class and register tokens come first; pooling is over the patches.
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
        return features[:, :, None]

    @torch.no_grad()
    def _positions(self, finer: bool = False) -> int:
        """How many positions the feature map of an image has."""
        size, was_training = self.images.size, self.backbone.training
        self.backbone.eval()
        try:
            return self._feature_map(torch.zeros(1, 3, size, size), finer).shape[-1]
        except (RuntimeError, AssertionError) as error:
            stride = f" and embedder.output_stride {self.settings.output_stride}" if finer else ""
            raise RecipeError(
                f"images.size is {size}{stride}, which {self.settings.backbone} cannot take: {error}"
            ) from error
        finally:
            self.backbone.train(was_training)

    @torch.no_grad()  # tensors of inference_mode could not be trained on
    def embed(
        self,
        images: Tensor | npt.NDArray[np.floating] | Sequence[ImageLike],
        *,
        boxes: npt.NDArray[np.int64] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
        dimensions: int | None = None,
    ) -> Tensor:
        """Embed any number of images, in batches, on the device where the embedder is.

        Args:
            images: paths; or RGB images of any size as uint8 tensors (3, H, W), uint8 arrays (H, W, 3) or Pillow
                images, which are turned upright as files are; or one uint8 tensor (n, 3, H, W). A model of vectors
                takes those, floats (n, F).
            boxes: integer (n, 4), the part of each file to embed, x_1 y_1 x_2 y_2 in pixels; paths only.
            batch_size: images at a time.
            workers: processes that decode files; 0 decodes in this one.
            progress: show a progress bar.
            dimensions: give the first so many numbers of each embedding, scaled to length 1 again; see the setting
                `prefixes`. None gives all.

        Returns:
            float32 (n, dimensions) on the CPU, L2-normalised, in the order of the images.

        Raises:
            ImageError: an image that cannot be decoded, or something that is no image.
            WeightsError: an embedding is NaN.
            UserError: a batch or a number of workers that no machine can have.
        """
        if isinstance(images, np.ndarray):
            raise ImageError("embed takes a list of images, but got one array: put arrays (H, W, 3) in a list")
        if isinstance(images, (str, Path)):
            raise ImageError(f"embed takes a list of images, but got the single path {str(images)!r}: put it in a list")
        if not isinstance(images, Sized):
            raise ImageError(f"images is {images!r}, but embed takes a list of them")
        check_dimensions(dimensions, self.embedding_size)
        if len(images) == 0:
            return torch.empty(0, dimensions or self.embedding_size)
        check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
        check_whole("workers", workers, 0, MOST_WORKERS)
        was_training = self.training
        self.eval()
        try:
            batches = image_batches(images, boxes, self.images, batch_size, workers)
            total = -(-len(images) // batch_size)
            embedded = [
                self(batch.to(self.device, non_blocking=True)).float().cpu()
                for batch in track(batches, "embedding", total, disable=not progress)
            ]
        finally:
            self.train(was_training)
        return prefix(checked_embeddings(torch.cat(embedded)), dimensions)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json, each whole or not at all."""
        description = {
            "embedder": asdict(self.settings),
            "images": asdict(self.images),
            "input": asdict(self.space),
            "classes": list(self.classes),
        }
        write_model(folder, description, self.state_dict())

    @classmethod
    @check_arguments
    def load(cls, run_folder: str | Path, device: str | torch.device = "cpu") -> "Embedder":
        """The embedder of a run folder, ready to embed; a VectorEmbedder where it was trained on vectors.

        Args:
            run_folder: the folder that holds model.safetensors and model.json, or its URL.
            device: where to put it.

        Raises:
            RunError: a file is missing, unreadable, of another format or far too large, or a value in model.json is of
                another type or impossible.
            WeightsError: the tensors do not fit the description, or hold NaN.
        """
        folder, device = local_run(as_place(run_folder, "the run folder", RunError)), checked_device(device)
        model = read_model(folder)
        if isinstance(model, VectorModelDescription):
            from proxygml.models.vector_embedder import VectorEmbedder  # noqa: PLC0415  (it is a kind of this class)

            return (
                VectorEmbedder(model.embedder, model.num_features, model.classes).with_tensors(folder).to(device).eval()
            )
        network, _ = build_backbone(model.embedder.backbone, "none", model.images.size)
        embedder = cls(model.embedder, model.images, model.classes, backbone=Backbone(network, model.input))
        return embedder.with_tensors(folder).to(device).eval()

    def with_tensors(self, folder: Path) -> Self:
        """This embedder with the tensors of a run folder; see `load`."""
        try:
            self.load_state_dict(read_tensors(folder, self.state_dict()))
        except RuntimeError as error:
            raise WeightsError(f"{folder / TENSORS} does not fit its model.json: {error}") from error
        return self


def checked_device(device: str | torch.device) -> torch.device:
    """The device of that name; UserError where PyTorch does not know it, or this machine has none."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device is {device!r}, but must be the name of one, such as cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device is {device!r}, but PyTorch finds {counted(torch.cuda.device_count(), 'GPU')}: take cpu"
        )
    return found


def checked_embeddings(embeddings: Tensor) -> Tensor:
    """The embeddings (n, D); WeightsError where one is NaN, which no comparison would find, nor miss."""
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        raise WeightsError(
            f"the model gives NaN for {int((~finite).sum()):,} of {counted(len(finite), 'image')}: its weights "
            "are damaged, or overflow in this precision; take the model of a training that ended well, or float32"
        )
    return embeddings


def head_of(settings: EmbedderSettings, num_features: int) -> Head:
    """The head that the settings describe."""
    return Head(num_features, settings.embedding_size, settings.feature_norm, settings.head, settings.hidden_size)


def check_layer(num_features: int, settings: EmbedderSettings) -> None:
    """Raise RecipeError where the embedding layer would fill the memory of any device."""
    units = settings.hidden_size if settings.head == "mlp" else 0
    numbers = num_features * max(settings.embedding_size, units)
    if numbers > LARGEST_LAYER:
        raise RecipeError(
            f"embedder.embedding_size is {settings.embedding_size:,} ({counted(units, 'hidden unit')}) for "
            f"{counted(num_features, 'feature')}, which makes a layer of {counted(numbers, 'number')}, but at most "
            f"{LARGEST_LAYER:,} are possible: take a smaller one, or another pooling than flatten"
        )

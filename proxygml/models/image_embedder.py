"""The embedder of images: backbone, pooling and head; from RGB images to unit vectors.

Its settings are in embedder_settings.py, backbones and their weights in backbones.py; training/ trains it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from proxygml.data.images.settings import ImageSettings
from proxygml.errors import RecipeError
from proxygml.models.backbones import Backbone, build_backbone
from proxygml.models.dilation import FinerMap
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.head import Pool, check_layer, head_of
from proxygml.models.image_batches import checked_images, image_batches
from proxygml.models.views import ONE_VIEW, View, apply_view, views_of


class EmbedderOfImages(Embedder):
    """What embedders of images share, whatever computes the network."""

    takes_images = True

    def _checked(self, items: object) -> Any:
        return checked_images(items)

    def _batches(
        self, items: Any, boxes: npt.NDArray[np.int64] | None, batch_size: int, workers: int
    ) -> Iterator[Tensor]:
        return image_batches(items, boxes, self.images, batch_size, workers)


class ImageEmbedder(EmbedderOfImages):
    """Images to L2-normalised embeddings.

    In training mode an image is embedded by one view and the backbone's own feature map; in evaluation mode by the
    views and the finer map of the settings.

    Args:
        settings: backbone, weights, pooling and size.
        images: how images are cut and scaled before they come here.
        classes: the training classes in the order of their numbers; kept with the model.
        backbone: used in place of the backbone that the settings name, which is then not built.

    Raises:
        RecipeError, WeightsError: see build_backbone; or images.size or images.test_scale does not suit the backbone.
    """

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
        super().__init__(settings, classes)
        network, space = backbone or build_backbone(settings.backbone, settings.weights, images)
        self.images = images
        self.space = space
        self.backbone = network
        stride = settings.output_stride
        self.finer_map = FinerMap(network, settings.backbone, stride) if stride else None
        self.channels: int = network.num_features  # type: ignore[assignment]
        self.num_features = self.channels * (self._positions(images.size) if settings.pooling == "flatten" else 1)
        self.embedding_size = settings.embedding_size or self.num_features
        check_layer(self.num_features, settings)
        self.pool = Pool(settings.pooling)
        self.head = head_of(settings, self.num_features)
        self.register_buffer("mean", torch.tensor(space.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(space.std).view(3, 1, 1), persistent=False)
        if self.finer_map is not None or images.test_scale != 1:
            self._check_test_size()

    def features(self, items: Tensor, *, views: Sequence[View] | None = None, finer: bool | None = None) -> Tensor:
        """Pooled features (M, num_features), the mean over the views.

        Args:
            items: RGB images (M, 3, H, W), uint8 in 0..255 or float in 0..1.
            views: what is looked at; by default those of the settings, in training mode the image itself.
            finer: take the finer feature map; by default where the settings have one, but not in training mode.
        """
        if views is None:
            views = ONE_VIEW if self.training else views_of(self.settings)
        if finer is None:
            finer = self.finer_map is not None and not self.training
        images = self._normalise(items)
        pooled: list[Tensor] = [self.pool(self._feature_map(apply_view(images, view), finer)) for view in views]
        return pooled[0] if len(pooled) == 1 else sum(pooled[1:], start=pooled[0]) / len(pooled)

    def _normalise(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            images = images / 255
        images = (images - self.mean) / self.std
        images = images.flip(1) if self.space.bgr else images
        images = images.to(self.dtype)  # that of the network, after half() or bfloat16()
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

    def _check_test_size(self) -> None:
        """Raised now where the network cannot embed images of that size, and not after an epoch."""
        positions = self._positions(self.images.at_test.size, finer=self.finer_map is not None)
        if self.settings.pooling == "flatten" and self.channels * positions != self.num_features:
            raise RecipeError(
                f"images.test_scale is {self.images.test_scale:g}, but embedder.pooling is flatten, which needs as "
                "many positions as in training: take another pooling, or leave test_scale out"
            )

    @torch.no_grad()
    def _positions(self, size: int, finer: bool = False) -> int:
        """How many positions the feature map of an image of that side has."""
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            return self._feature_map(torch.zeros(1, 3, size, size), finer).shape[-1]
        except (RuntimeError, AssertionError) as error:
            stride = f" and embedder.output_stride {self.settings.output_stride}" if finer else ""
            times = f" times images.test_scale {self.images.test_scale:g}" if size != self.images.size else ""
            raise RecipeError(
                f"images.size is {self.images.size}{times}{stride}, which {self.settings.backbone} cannot take: {error}"
            ) from error
        finally:
            self.backbone.train(was_training)

    def _description(self) -> dict[str, Any]:
        return {"images": asdict(self.images), "input": asdict(self.space)}

"""The embedder: backbone, pooling, linear layer, L2 norm; from RGB images to unit vectors.

It is saved as two files that need nothing else: model.safetensors (tensors) and model.json (what they mean).
Backbones and their weights are backbones.py's, training is training.py's.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from proxygml.console import track
from proxygml.data.images import ImageDataset, ImageSettings, collate, test_transform
from proxygml.errors import ImageError, RecipeError, RunError, WeightsError
from proxygml.files import atomic_write
from proxygml.models.backbones import InputSpace, build_backbone
from proxygml.models.dilation import Dilation

Pooling = Literal["avg", "max", "avg+max", "gem", "flatten"]
FeatureNorm = Literal["none", "batch", "layer"]
FORMAT = 1

ImageLike = str | Path | Tensor | npt.NDArray[np.uint8] | Image.Image


@dataclass(frozen=True)
class EmbedderSettings:
    """What the embedder is made of: the `embedder` section of a recipe.

    Raises:
        RecipeError: a value is impossible; the message names the key.
    """

    backbone: str = "bn_inception"
    """`bn_inception` (the paper's), `conv4` or `conv4_small` (for characters) or the name of any timm model."""

    weights: str = "pretrained"
    """`pretrained` (downloaded), `none` (random), or the path of a .safetensors or .pth file."""

    pooling: Pooling = "avg"
    """How the backbone's feature map becomes one vector: avg, max, avg+max (their sum), gem (generalised mean) or
    flatten (all positions side by side: for small maps of things that all stand alike, such as characters)."""

    embedding_size: int = 512
    """Dimension of the embeddings; 0 leaves the linear layer out and embeds by the pooled features themselves."""

    feature_norm: FeatureNorm = "none"
    """Bring the pooled features to mean 0 and variance 1 before the linear layer: `batch`, each over the batch, by a
    layer of batch norm (Luo et al. 2019); `layer`, those of each image, without parameters (Teh et al. 2020). So
    embeddings do not all point the same way when training from random weights begins."""

    mirror: bool = False
    """Embed every image by the mean of its features and its mirror image's: in twice the time. Training takes one view,
    but for `cache_features`, which trains on features of images as they are embedded."""

    tilt: float = 0.0
    """Embed every image by the mean of its features upright and turned by so many degrees to either side, 0 to 45: in
    three times the time, with one view in training, as with `mirror`."""

    zoom: float = 1.0
    """Embed every image by the mean of its features whole and with its centre so many times enlarged, 1 to 2: in twice
    the time, with one view in training. With `tilt` and `mirror`, every combination is embedded."""

    output_stride: int = 0
    """Embed every image by a finer feature map of the same weights, with a position for every so many pixels to a side,
    such as 8: the backbone's last strides are taken out and what follows is dilated. In about three times the time for
    8, with the backbone's own map in training, as with `mirror`. 0: its own. For convolutional networks of timm."""

    def __post_init__(self) -> None:
        for key, choices in (("pooling", Pooling), ("feature_norm", FeatureNorm)):
            if getattr(self, key) not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise RecipeError(f"embedder.{key} is {getattr(self, key)!r}, but must be one of {allowed}")
        if self.embedding_size < 0:
            raise RecipeError(f"embedder.embedding_size is {self.embedding_size}, but must be 0 or more")
        if not 0 <= self.tilt <= 45:
            raise RecipeError(f"embedder.tilt is {self.tilt}, but must be 0 to 45 degrees")
        if not 1 <= self.zoom <= 2:
            raise RecipeError(f"embedder.zoom is {self.zoom}, but must be 1 to 2")
        if self.output_stride < 0:
            raise RecipeError(f"embedder.output_stride is {self.output_stride}, but must be 0 or more")
        if self.output_stride and self.pooling == "flatten":
            raise RecipeError(
                f"embedder.output_stride is {self.output_stride}, but embedder.pooling is flatten, which needs as many "
                "positions in training: take another pooling, or leave output_stride out"
            )

    @property
    def views(self) -> list[tuple[bool, float, float]]:
        """What is embedded of an image: whether mirrored, turned by how many degrees, how many times enlarged."""
        mirrored = (False, True) if self.mirror else (False,)
        angles = (0.0, -self.tilt, self.tilt) if self.tilt else (0.0,)
        zooms = (1.0, self.zoom) if self.zoom > 1 else (1.0,)
        return list(product(mirrored, angles, zooms))


class Pool(nn.Module):
    """A feature map, (M, F, positions), to one vector an image, (M, F); with flatten (M, F * positions)."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling
        if pooling == "gem":
            self.power = nn.Parameter(torch.tensor(3.0))  # the value of Radenovic et al. 2018, from which it is learned

    def forward(self, features: Tensor) -> Tensor:
        if self.pooling == "avg":
            return features.mean(dim=-1)
        if self.pooling == "max":
            return features.amax(dim=-1)
        if self.pooling == "avg+max":
            return features.mean(dim=-1) + features.amax(dim=-1)
        if self.pooling == "flatten":
            return features.flatten(1)
        return features.float().clamp_min(1e-6).pow(self.power).mean(dim=-1).pow(1 / self.power)


class Head(nn.Module):
    """Pooled features (M, F) to embeddings (M, D): their norm, the linear layer, the L2 norm, in float32 at least."""

    def __init__(self, num_features: int, embedding_size: int, feature_norm: FeatureNorm = "none") -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        if feature_norm == "batch":
            self.norm = nn.BatchNorm1d(num_features)
        elif feature_norm == "layer":
            self.norm = nn.LayerNorm(num_features, elementwise_affine=False)
        self.linear = nn.Linear(num_features, embedding_size) if embedding_size else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        vectors: Tensor = self.linear(self.norm(features))
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


class Embedder(nn.Module):
    """Images to L2-normalised embeddings.

    Args:
        settings: backbone, weights, pooling and size.
        images: how images are cut and scaled before they come here.
        classes: the training classes in the order of their numbers; kept with the model.

    Raises:
        RecipeError, WeightsError: see build_backbone; or, to flatten, images too small for the backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EmbedderSettings, images: ImageSettings, classes: Sequence[str] = ()) -> None:
        super().__init__()
        backbone, space = build_backbone(settings.backbone, settings.weights, images.size)
        self._assemble(backbone, space, settings, images, classes)

    def _assemble(
        self,
        backbone: nn.Module,
        space: InputSpace,
        settings: EmbedderSettings,
        images: ImageSettings,
        classes: Sequence[str],
    ) -> None:
        self.settings = settings
        self.images = images
        self.classes = tuple(classes)
        self.space = space
        self.backbone = backbone
        self.dilation = (
            Dilation(backbone, settings.backbone, settings.output_stride) if settings.output_stride else None
        )
        self.channels: int = backbone.num_features  # type: ignore[assignment]
        self.num_features = self.channels * (self._positions(images.size) if settings.pooling == "flatten" else 1)
        self.embedding_size = settings.embedding_size or self.num_features
        self.pool = Pool(settings.pooling)
        self.head = Head(self.num_features, settings.embedding_size, settings.feature_norm)
        self.register_buffer("mean", torch.tensor(space.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(space.std).view(3, 1, 1), persistent=False)
        if self.dilation is not None:
            self.dilation.take("finer")
            self._positions(images.size)  # named now, and not after an epoch, where the network cannot take it
        self._take_form()

    def train(self, mode: bool = True) -> Self:
        """Train in the backbone's own form, embed in the one of `output_stride`."""
        super().train(mode)
        self._take_form()
        return self

    def _take_form(self) -> None:
        if self.dilation is not None:
            self.dilation.take("own" if self.training or not self.settings.output_stride else "finer")

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within it, images are embedded as training sees them: by one view, and the backbone's own feature map."""
        settings = self.settings
        self.settings = replace(settings, mirror=False, tilt=0.0, zoom=1.0, output_stride=0)
        self._take_form()
        try:
            yield
        finally:
            self.settings = settings
            self._take_form()

    def forward(self, images: Tensor) -> Tensor:
        """RGB images (M, 3, H, W), uint8 in 0..255 or float in 0..1 -> (M, embedding_size), L2-normalised."""
        embeddings: Tensor = self.head(self.features(images))
        return embeddings

    def features(self, images: Tensor) -> Tensor:
        """RGB images (M, 3, H, W), uint8 in 0..255 or float in 0..1 -> pooled features (M, num_features)."""
        images = self._normalise(images)
        if self.training:
            return self._pooled(images)
        views = [self._pooled(_view(images, *view)) for view in self.settings.views]
        return sum(views[1:], start=views[0]) / len(views)

    def _pooled(self, images: Tensor) -> Tensor:
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        pooled: Tensor = self.pool(self._positions_last(features))
        return pooled

    @torch.no_grad()
    def _positions(self, size: int) -> int:
        """How many positions the backbone's feature map of a square image has."""
        was_training = self.backbone.training
        try:
            features = self.backbone.eval().forward_features(torch.zeros(1, 3, size, size))  # type: ignore[operator]
        except (RuntimeError, AssertionError) as error:
            stride = f" and embedder.output_stride {self.settings.output_stride}" if self.settings.output_stride else ""
            raise RecipeError(
                f"images.size is {size}{stride}, which {self.settings.backbone} cannot take: {error}"
            ) from error
        self.backbone.train(was_training)
        return self._positions_last(features).shape[-1]

    def _normalise(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            images = images / 255
        images = (images - self.mean) / self.std
        images = images.flip(1) if self.space.bgr else images
        # Convolutions are fastest so, and every layer passes the layout on; the weights may stay as they are.
        return images.contiguous(memory_format=torch.channels_last)

    def _positions_last(self, features: Tensor) -> Tensor:
        """(M, F, h, w), (M, h, w, F), (M, tokens, F) or (M, F), as timm's families have it, to (M, F, positions)."""
        if features.dim() == 4 and features.shape[1] == self.channels:
            return features.flatten(2)
        if features.dim() == 4:
            return features.flatten(1, 2).transpose(1, 2)
        if features.dim() == 3:
            # Class and register tokens come first; pooling is over the patches.
            return features[:, getattr(self.backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
        return features[:, :, None]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.inference_mode()
    def embed(
        self,
        images: Tensor | Sequence[ImageLike],
        *,
        boxes: npt.NDArray[np.int64] | None = None,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Embed any number of images, in batches, on the device where the embedder is.

        Args:
            images: paths; or RGB images of any size as uint8 tensors (3, H, W), uint8 arrays (H, W, 3) or Pillow
                images; or one uint8 tensor (n, 3, H, W).
            boxes: integer (n, 4), the part of each file to embed, x_1 y_1 x_2 y_2 in pixels; paths only.
            batch_size: images at a time.
            workers: processes that decode files; 0 decodes in this one.
            progress: show a progress bar.

        Returns:
            float32 (n, embedding_size) on the CPU, L2-normalised, in the order of the images.

        Raises:
            ImageError: an image that cannot be decoded, or that is none.
        """
        if isinstance(images, (str, Path)):
            raise ImageError(f"embed takes a list of images, but got the single path {str(images)!r}: put it in a list")
        if len(images) == 0:
            return torch.empty(0, self.embedding_size)
        was_training = self.training
        self.eval()
        try:
            batches = self._batches(images, boxes, batch_size, workers)
            total = -(-len(images) // batch_size)
            embedded = [
                self(batch.to(self.device, non_blocking=True)).float().cpu()
                for batch in track(batches, "embedding", total, disable=not progress)
            ]
        finally:
            self.train(was_training)
        return torch.cat(embedded)

    def _batches(
        self, images: Tensor | Sequence[ImageLike], boxes: npt.NDArray[np.int64] | None, batch_size: int, workers: int
    ) -> Iterator[Tensor]:
        if not isinstance(images, Tensor) and isinstance(images[0], (str, Path)):
            paths = [path for path in images if isinstance(path, (str, Path))]
            if len(paths) != len(images):
                raise ImageError("embed takes paths or decoded images, but got both in one list: embed them apart")
            dataset = ImageDataset(paths, boxes, self.images, training=False)
            for batch, _ in torch.utils.data.DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate):
                yield batch
            return
        transform = test_transform(self.images)
        for start in range(0, len(images), batch_size):
            yield torch.stack([transform(_as_tensor(image)) for image in images[start : start + batch_size]])

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json, each whole or not at all."""
        description = {
            "format": FORMAT,
            "embedder": asdict(self.settings),
            "images": asdict(self.images),
            "input": asdict(self.space),
            "classes": list(self.classes),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with atomic_write(folder / "model.safetensors") as path:
            save_file(tensors, path)
        with atomic_write(folder / "model.json") as path:
            path.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, run_folder: str | Path, device: str | torch.device = "cpu") -> "Embedder":
        """The embedder of a run folder, ready to embed.

        Args:
            run_folder: the folder that holds model.safetensors and model.json.
            device: where to put it.

        Raises:
            RunError: a file is missing, unreadable or of another format.
            WeightsError: the tensors do not fit the description.
        """
        folder = Path(run_folder)
        description = _read_description(folder)
        try:
            settings = EmbedderSettings(**description["embedder"])
            images = ImageSettings(**{key: _tuple(value) for key, value in description["images"].items()})
            space = InputSpace(**{key: _tuple(value) for key, value in description["input"].items()})
            classes = description["classes"]
        except (KeyError, TypeError, AttributeError, RecipeError) as error:
            raise RunError(f"{folder / 'model.json'} does not describe an embedder: {error}") from error
        backbone, _ = build_backbone(settings.backbone, "none", images.size)
        embedder = cls.__new__(cls)
        nn.Module.__init__(embedder)
        embedder._assemble(backbone, space, settings, images, classes)
        try:
            embedder.load_state_dict(load_file(folder / "model.safetensors"))
        except (SafetensorError, OSError) as error:
            raise RunError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
        except RuntimeError as error:
            raise WeightsError(f"{folder / 'model.safetensors'} does not fit its model.json: {error}") from error
        return embedder.to(device).eval()


def _view(images: Tensor, mirrored: bool, degrees: float, zoom: float) -> Tensor:
    """Images (M, 3, H, W) mirrored, turned around their centre and enlarged; beyond the edge goes on what is there."""
    images = images.flip(3) if mirrored else images
    if degrees == 0 and zoom == 1:
        return images
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    matrix = images.new_tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(matrix, [1, *images.shape[1:]], align_corners=False)
    grid = grid.expand(images.shape[0], -1, -1, -1)  # and not len(images), which would fix the batch of an ONNX export
    turned = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)


def fingerprint(run_folder: str | Path) -> str:
    """What tells one model from every other: 64 hexadecimal digits, SHA-256 of model.json and model.safetensors.

    Embeddings can be compared where their models' fingerprints are the same.

    Raises:
        RunError: a file is missing or of another format.
    """
    folder = Path(run_folder)
    _read_description(folder)
    digest = hashlib.sha256()
    for name in ("model.json", "model.safetensors"):
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise RunError(f"{folder / name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no model.json: give a run folder in which training has finished")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise RunError(f"{path} has format {found!r}, but this version of proxygml reads format {FORMAT}")
    return dict(description)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_tensor(image: ImageLike) -> Tensor:
    """An RGB image in memory as uint8 (3, H, W)."""
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"an array has shape {image.shape}, {image.dtype}: expected (H, W, 3) uint8, RGB")
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if not isinstance(image, Tensor):
        raise ImageError(f"an image is a {type(image).__name__}: expected a path, tensor, array or Pillow image")
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ImageError(f"a tensor has shape {tuple(image.shape)}, {image.dtype}: expected (3, H, W) uint8, RGB")
    return image

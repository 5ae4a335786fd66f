"""What all embedders have in common: they turn items into unit vectors, and are loaded from and saved in run folders.

image_embedder.py has the embedder of images, vector_embedder.py that of vectors which another model made, engines.py
embedders of images that another runtime computes. The files of a saved model are in model_files.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from proxygml.arguments import check_arguments
from proxygml.console import track
from proxygml.data.images.settings import ImageSettings
from proxygml.errors import (
    LARGEST_BATCH,
    MOST_WORKERS,
    RunError,
    UserError,
    WeightsError,
    check_whole,
    counted,
)
from proxygml.kept_memory import freed_memory_kept
from proxygml.models.backbones import Backbone, InputSpace, build_backbone
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.head import Head
from proxygml.models.image_batches import ImageLike
from proxygml.models.model_description import VectorModelDescription, read_model
from proxygml.models.model_files import TENSORS, numbers_at_most, read_tensors, write_model
from proxygml.models.prefix import check_dimensions, prefix
from proxygml.models.run_files import local_run, naming_run
from proxygml.models.views import View
from proxygml.urls import as_place


class Embedder(nn.Module, ABC):
    """Items to L2-normalised embeddings. `Embedder.load` gives that of a run folder.

    Args:
        settings: of the embedder.
        classes: the training classes in the order of their numbers; kept with the model.
    """

    takes_images: ClassVar[bool]
    """Whether items are images, and not vectors."""

    usual_batch: ClassVar[int] = 64
    """Items that `embed` takes at a time by default."""

    images: ImageSettings
    """How images are cut and scaled; of embedders that take images."""

    space: InputSpace
    """The values that the backbone takes; of embedders that take images."""

    num_features: int
    """Numbers that the head takes."""

    embedding_size: int
    backbone: nn.Module
    pool: nn.Module
    head: Head
    place: Tensor

    def __init__(self, settings: EmbedderSettings, classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.classes = tuple(classes)
        self.register_buffer("place", torch.zeros(()), persistent=False)  # moves as the tensors do

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.place.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it computes in."""
        return self.place.dtype

    def forward(self, items: Tensor) -> Tensor:
        """A batch of items, as `features` takes them -> (M, embedding_size), L2-normalised."""
        embeddings: Tensor = self.head(self.features(items))
        return embeddings

    @abstractmethod
    def features(self, items: Tensor, *, views: Sequence[View] | None = None, finer: bool | None = None) -> Tensor:
        """What the head takes, (M, num_features), of a batch of items; views and finer maps are those of images."""

    @abstractmethod
    def _batches(
        self, items: Any, boxes: npt.NDArray[np.int64] | None, batch_size: int, workers: int
    ) -> Iterator[Tensor]:
        """The items, checked, as batches that `forward` takes."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """What model.json says beside settings and classes."""

    @abstractmethod
    def _checked(self, items: object) -> Any:
        """The items, which have a length; UserError where they are none that this embedder takes."""

    @torch.no_grad()  # tensors of inference_mode could not be trained on
    def embed(
        self,
        images: Tensor | npt.NDArray[np.floating] | Sequence[ImageLike],
        *,
        boxes: npt.NDArray[np.int64] | None = None,
        batch_size: int | None = None,
        workers: int = 0,
        progress: bool = False,
        dimensions: int | None = None,
    ) -> Tensor:
        """Embed any number of images or vectors, in batches, on the device where the embedder is.

        Args:
            images: paths; or RGB images of any size as uint8 tensors (3, H, W), uint8 arrays (H, W, 3) or Pillow
                images, which are turned upright as files are; or one uint8 tensor (n, 3, H, W). A model of vectors
                takes those: floats (n, F), of the model that made the vectors which it was trained on.
            boxes: integer (n, 4), the part of each file to embed, x_1 y_1 x_2 y_2 in pixels; paths only.
            batch_size: items at a time; by default 64 images, or 65,536 vectors.
            workers: processes that decode files; 0 decodes in this one. For images only.
            progress: show a progress bar.
            dimensions: give the first so many numbers of each embedding, scaled to length 1 again; see the setting
                `prefixes`. None gives all.

        Returns:
            float32 (n, dimensions) on the CPU, L2-normalised, in the order of the items.

        Raises:
            ImageError: an image that cannot be decoded, or something that is no image.
            WeightsError: an embedding is NaN.
            UserError: no vectors of the right size, or one that holds a NaN or an infinite number, or zeros alone; or a
                batch or a number of workers that no machine can have.
        """
        items = self._checked(images)
        check_dimensions(dimensions, self.embedding_size)
        if len(items) == 0:
            return torch.empty(0, dimensions or self.embedding_size)
        size = self.usual_batch if batch_size is None else batch_size
        check_whole("batch_size", size, 1, LARGEST_BATCH)
        check_whole("workers", workers, 0, MOST_WORKERS)
        was_training = self.training
        self.eval()
        try:
            batches = self._batches(items, boxes, size, workers)
            with freed_memory_kept() if len(items) > size else nullcontext():  # not for each request of a server
                embedded = [
                    self(batch.to(self.device, non_blocking=True)).float().cpu()
                    for batch in track(batches, "Embedding", -(-len(items) // size), disable=not progress)
                ]
        finally:
            self.train(was_training)
        return prefix(checked_embeddings(torch.cat(embedded)), dimensions)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json, each whole or not at all."""
        description = {"embedder": asdict(self.settings), **self._description(), "classes": list(self.classes)}
        write_model(folder, description, self.state_dict())

    @staticmethod
    @check_arguments
    def load(run_folder: str | Path, device: str | torch.device = "cpu") -> "Embedder":
        """The embedder of a run folder, ready to embed: of vectors where it was trained on some, else of images.

        Args:
            run_folder: the folder that holds model.safetensors and model.json, or its URL.
            device: where to put it.

        Raises:
            RunError: a file is missing, unreadable, of another format or far too large, or a value in model.json is of
                another type or impossible.
            WeightsError: the tensors do not fit the description, or hold NaN.
        """
        run, device = as_place(run_folder, "the run folder", RunError), checked_device(device)
        folder = local_run(run)
        with naming_run(run, folder):
            with numbers_at_most(folder):
                embedder = _described(folder)
            return embedder.with_tensors(folder).to(device).eval()

    def with_tensors(self, folder: Path) -> Self:
        """This embedder with the tensors of a run folder; see `load`."""
        try:
            self.load_state_dict(read_tensors(folder, self.state_dict()))
        except RuntimeError as error:
            raise WeightsError(f"{folder / TENSORS} does not fit its model.json: {error}") from error
        return self


def _described(folder: Path) -> Embedder:
    """The embedder that a run folder describes, without its tensors."""
    # Imported here, because they are kinds of the class above.
    from proxygml.models.image_embedder import ImageEmbedder  # noqa: PLC0415
    from proxygml.models.vector_embedder import VectorEmbedder  # noqa: PLC0415

    model = read_model(folder)
    if isinstance(model, VectorModelDescription):
        return VectorEmbedder(model.embedder, model.num_features, model.classes)
    network, _ = build_backbone(model.embedder.backbone, "none", model.images)
    return ImageEmbedder(model.embedder, model.images, model.classes, backbone=Backbone(network, model.input))


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
            f"the model gives NaN for {int((~finite).sum()):,} of {counted(len(finite), 'item')}: its weights "
            "are damaged, or overflow in this precision; take the model of a training that ended well, or float32"
        )
    return embeddings

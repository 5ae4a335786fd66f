"""The embedder of vectors: a head on vectors that another model made, of images or of anything else.

embedder.py is the one of images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.console import track
from proxygml.data.vector_checks import ROWS_AT_A_TIME, checked_matrix
from proxygml.errors import LARGEST_BATCH, MOST_WORKERS, UserError, check_whole, counted
from proxygml.models.embedder import Embedder, check_layer, checked_embeddings, head_of
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.image_batches import ImageLike
from proxygml.models.model_files import write_model
from proxygml.models.prefix import check_dimensions, prefix
from proxygml.models.views import View


class VectorEmbedder(Embedder):
    """Vectors to L2-normalised embeddings: the vectors scaled to length 1, then the head.

    It has no backbone, and takes no images.

    Args:
        settings: with backbone `vectors`; the head's keys count.
        num_features: F, the size of the vectors.
        classes: the training classes in the order of their numbers; kept with the model.

    Raises:
        RecipeError: the layer would be larger than any memory.
    """

    takes_images = False

    def __init__(self, settings: EmbedderSettings, num_features: int, classes: Sequence[str] = ()) -> None:
        nn.Module.__init__(self)  # and not Embedder's, which builds a backbone for images
        self.settings = settings
        self.classes = tuple(classes)
        self.num_features = self.channels = num_features
        self.embedding_size = settings.embedding_size or num_features
        check_layer(num_features, settings)
        self.backbone: nn.Module = nn.Identity()
        self.pool = nn.Identity()  # type: ignore[assignment]
        self.finer_map = None
        self.head = head_of(settings, num_features)
        self.register_buffer("mean", torch.zeros(1), persistent=False)  # where it computes, and in which precision

    def features(self, images: Tensor, *, views: Sequence[View] | None = None, finer: bool | None = None) -> Tensor:
        """Vectors (M, F), floats of any precision, scaled to length 1 in at least float32, then in the head's own."""
        return unit(images).to(self.mean.dtype)

    @torch.no_grad()
    def embed(
        self,
        images: Tensor | npt.NDArray[np.floating] | Sequence[ImageLike],
        *,
        boxes: npt.NDArray[np.int64] | None = None,
        batch_size: int = ROWS_AT_A_TIME,
        workers: int = 0,
        progress: bool = False,
        dimensions: int | None = None,
    ) -> Tensor:
        """Embed any number of vectors, in batches, on the device where the embedder is.

        Args:
            images: the vectors, floats (n, F), of the model that made those which this one was trained on.
            boxes, workers: are for images only.
            batch_size: vectors at a time.
            progress: show a progress bar.
            dimensions: give the first so many numbers of each embedding, scaled to length 1 again; see the setting
                `prefixes`. None gives all.

        Returns:
            float32 (n, dimensions) on the CPU, L2-normalised, in the order of the vectors.

        Raises:
            UserError: no floats (n, F); or a vector that holds a NaN or an infinite number, or zeros alone.
            WeightsError: an embedding is NaN.
        """
        vectors = self._checked(images)
        check_dimensions(dimensions, self.embedding_size)
        if not len(vectors):
            return torch.empty(0, dimensions or self.embedding_size)
        check_whole("batch_size", batch_size, 1, LARGEST_BATCH)
        check_whole("workers", workers, 0, MOST_WORKERS)
        was_training = self.training
        self.eval()
        try:
            total = -(-len(vectors) // batch_size)
            parts = track(self._parts(vectors, batch_size), "embedding", total, disable=not progress)
            embedded = torch.cat([self(part.to(self.device)).float().cpu() for part in parts])
        finally:
            self.train(was_training)
        return prefix(checked_embeddings(embedded), dimensions)

    def _checked(self, given: object) -> npt.NDArray[np.floating]:
        vectors = given.detach().cpu().float().numpy() if isinstance(given, Tensor) else given
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
            found = f"{vectors.shape}, {vectors.dtype}" if isinstance(vectors, np.ndarray) else type(given).__name__
            raise UserError(f"images is {found}, but this model takes vectors: floats (n, {self.num_features})")
        if vectors.shape[1] != self.num_features:
            raise UserError(
                f"the vectors have {counted(vectors.shape[1], 'number')}, but this model takes "
                f"{self.num_features}: give vectors of the model that made those which it was trained on"
            )
        return vectors

    @staticmethod
    def _parts(vectors: npt.NDArray[np.floating], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(vectors), batch_size):
            part, problems = checked_matrix(vectors[start : start + batch_size])
            for row, problem in problems.items():
                raise UserError(f"vectors[{start + row}] holds {problem}: correct it, or leave it out")
            yield torch.from_numpy(np.array(part))

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json, each whole or not at all."""
        description = {
            "embedder": asdict(self.settings),
            "vectors": {"size": self.num_features},
            "classes": list(self.classes),
        }
        write_model(folder, description, self.state_dict())


def unit(vectors: Tensor) -> Tensor:
    """Vectors (M, F) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=1)

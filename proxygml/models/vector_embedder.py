"""The embedder of vectors: a head on vectors that another model made, of images or of anything else.

image_embedder.py has the one of images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxygml.data.vectors.checks import ROWS_AT_A_TIME, checked_matrix
from proxygml.errors import UserError, counted
from proxygml.models.embedder import Embedder
from proxygml.models.embedder_settings import EmbedderSettings
from proxygml.models.head import check_layer, head_of
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
    usual_batch = ROWS_AT_A_TIME

    def __init__(self, settings: EmbedderSettings, num_features: int, classes: Sequence[str] = ()) -> None:
        super().__init__(settings, classes)
        self.num_features = num_features
        self.embedding_size = settings.embedding_size or num_features
        check_layer(num_features, settings)
        self.backbone = nn.Identity()
        self.pool = nn.Identity()
        self.head = head_of(settings, num_features)

    def features(self, items: Tensor, *, views: Sequence[View] | None = None, finer: bool | None = None) -> Tensor:
        """Vectors (M, F), floats of any precision, scaled to length 1 in at least float32, then in the head's own."""
        return unit(items).to(self.dtype)

    def _checked(self, items: object) -> npt.NDArray[np.floating]:
        vectors = items.detach().cpu().float().numpy() if isinstance(items, Tensor) else items
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
            found = f"{vectors.shape}, {vectors.dtype}" if isinstance(vectors, np.ndarray) else type(items).__name__
            raise UserError(f"images is {found}, but this model takes vectors: floats (n, {self.num_features})")
        if vectors.shape[1] != self.num_features:
            raise UserError(
                f"the vectors have {counted(vectors.shape[1], 'number')}, but this model takes "
                f"{self.num_features}: give vectors of the model that made those which it was trained on"
            )
        return vectors

    def _batches(
        self, items: Any, boxes: npt.NDArray[np.int64] | None, batch_size: int, workers: int
    ) -> Iterator[Tensor]:
        for start in range(0, len(items), batch_size):
            part, problems = checked_matrix(items[start : start + batch_size])
            for row, problem in problems.items():
                raise UserError(f"vectors[{start + row}] holds {problem}: correct it, or leave it out")
            yield torch.from_numpy(np.array(part))

    def _description(self) -> dict[str, Any]:
        return {"vectors": {"size": self.num_features}}


def unit(vectors: Tensor) -> Tensor:
    """Vectors (M, F) scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=1)

"""The model of a server: what many requests bring is embedded together, in batches."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import torch
from torch import Tensor

from proxygml.data.images.orientation import Pixels
from proxygml.data.images.transforms import test_transform
from proxygml.models.embedder import Embedder
from proxygml.serving.batcher import Batcher
from proxygml.serving.decoder import Decoder

_BATCH = 16


class BatchedEmbedder:
    """Embeds image files, or vectors where the model takes those.

    Args:
        embedder: the model.
        decoder: decodes the image files.
    """

    def __init__(self, embedder: Embedder, decoder: Decoder) -> None:
        self._embedder = embedder.eval()
        self._transform = test_transform(embedder.images) if embedder.takes_images else None
        self._decoder = decoder
        self._batcher: Batcher[Tensor, Tensor] = Batcher(self._embed, _BATCH)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it embeds; what waits at the end is embedded before it."""
        await self._batcher.start()
        try:
            yield
        finally:
            await self._batcher.stop()

    async def embed_file(self, data: bytes) -> Tensor:
        """The vector of an image file's bytes, float32 (D,), L2-normalised.

        Raises:
            RequestError: 413, 415 or 422 for what is no image that may be decoded.
        """
        return await self.embed(await self._decoder.use(data, self._transformed))

    async def embed(self, taken: Tensor) -> Tensor:
        """The vector of what the model takes: a square, uint8 (3, S, S), or a vector of another model, float32 (F,)."""
        return await self._batcher.do(taken)

    def _transformed(self, pixels: Pixels) -> Tensor:
        """Pixels (H, W, 3) to the square that the network sees, uint8 (3, S, S)."""
        assert self._transform is not None  # a model of vectors has no route for images
        return self._transform(torch.from_numpy(pixels).permute(2, 0, 1))

    @torch.inference_mode()
    def _embed(self, batch: Sequence[Tensor]) -> list[Tensor]:
        return list(self._embedder(torch.stack(list(batch)).to(self._embedder.device)).float().cpu())

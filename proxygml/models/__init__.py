"""Networks: backbones and their weights, the embedder (backbone, pooling, head), embedding of many images, ONNX export.

training/ trains them.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.models.embedder import Embedder as Embedder
    from proxygml.models.embedder_settings import EmbedderSettings as EmbedderSettings
    from proxygml.models.image_embedder import ImageEmbedder as ImageEmbedder

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embedder": ["Embedder"],
        "embedder_settings": ["EmbedderSettings"],
        "image_embedder": ["ImageEmbedder"],
    },
)

"""Networks: backbones, the embedder that is made of one, embedding of many images, export to ONNX.

How a network is trained is in training/.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.models.embedder import Embedder as Embedder
    from proxygml.models.embedder import EmbedderSettings as EmbedderSettings

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"embedder": ["Embedder", "EmbedderSettings"]}
)

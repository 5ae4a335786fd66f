"""Image embeddings for classes never seen in training: deep graph metric learning with few proxies.

The names that most users import. Each loads when it is first asked for, so that nobody waits for what he does not use.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.evaluation.metrics import evaluate as evaluate
    from proxygml.gallery.base import Gallery as Gallery
    from proxygml.loss.lazy_adam import LazyAdam as LazyAdam
    from proxygml.loss.proxygml_loss import ProxyGMLLoss as ProxyGMLLoss
    from proxygml.models.embedder import Embedder as Embedder

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation.metrics": ["evaluate"],
        "gallery.base": ["Gallery"],
        "loss.lazy_adam": ["LazyAdam"],
        "loss.proxygml_loss": ["ProxyGMLLoss"],
        "models.embedder": ["Embedder"],
    },
)

"""Image embeddings for classes never seen in training: deep graph metric learning with few proxies.

The names that most users import. The loss is here at once; the others load when they are first asked for, so that
somebody's own training loop pays for nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from proxygml.loss import ProxyGMLLoss

if TYPE_CHECKING:
    from proxygml.embedder import Embedder
    from proxygml.evaluation import evaluate
    from proxygml.gallery import Gallery

__all__ = ["Embedder", "Gallery", "ProxyGMLLoss", "evaluate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    rooms = {"Embedder": "proxygml.embedder", "evaluate": "proxygml.evaluation", "Gallery": "proxygml.gallery"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)

"""Image embeddings for classes never seen in training: deep graph metric learning with few proxies.

The names that most users import. Each loads when it is first asked for, so that nobody waits for what he does not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxygml.embedder import Embedder
    from proxygml.evaluation import evaluate
    from proxygml.gallery import Gallery
    from proxygml.loss import ProxyGMLLoss

__all__ = ["Embedder", "Gallery", "ProxyGMLLoss", "evaluate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    rooms = {
        "Embedder": "proxygml.embedder",
        "Gallery": "proxygml.gallery",
        "ProxyGMLLoss": "proxygml.loss",
        "evaluate": "proxygml.evaluation",
    }
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)

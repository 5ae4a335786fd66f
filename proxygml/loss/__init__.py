"""The method: ProxyGMLLoss, the mathematics of its graph with its gradients, and the optimiser for many proxies.

It needs torch alone. graph.py selects the proxies that a sample keeps, sharded.py divides classes over processes. A
recipe's loss, ours or another, is built in training/criterion.py.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.loss.lazy_adam import LazyAdam as LazyAdam
    from proxygml.loss.proxygml_loss import ProxyGMLLoss as ProxyGMLLoss

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"lazy_adam": ["LazyAdam"], "proxygml_loss": ["ProxyGMLLoss"]}
)

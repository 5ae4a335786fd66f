"""Image embeddings for classes never seen in training: deep graph metric learning with few proxies.

The names that most users import; each loads when it is first used. `proxygml.errors` holds what they raise.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml import errors as errors
    from proxygml.auditing.audit import audit as audit
    from proxygml.comparison.compare import compare as compare
    from proxygml.data.catalog import Catalog as Catalog
    from proxygml.data.preparing.prepare import prepare as prepare
    from proxygml.evaluation.metrics import evaluate as evaluate
    from proxygml.gallery.base import Gallery as Gallery
    from proxygml.gallery.build import index as index
    from proxygml.gallery.clusters.cluster import cluster as cluster
    from proxygml.gallery.embed import embed as embed
    from proxygml.gallery.query import search as search
    from proxygml.hub.push import push as push
    from proxygml.loss.lazy_adam import LazyAdam as LazyAdam
    from proxygml.loss.proxygml_loss import ProxyGMLLoss as ProxyGMLLoss
    from proxygml.models.embedder import Embedder as Embedder
    from proxygml.training.evaluate_run import evaluate_run as evaluate_run
    from proxygml.training.export import export as export
    from proxygml.training.recipe import Recipe as Recipe
    from proxygml.training.train import train as train

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["errors"],
    submod_attrs={
        "auditing.audit": ["audit"],
        "comparison.compare": ["compare"],
        "data.catalog": ["Catalog"],
        "data.preparing.prepare": ["prepare"],
        "evaluation.metrics": ["evaluate"],
        "gallery.base": ["Gallery"],
        "gallery.build": ["index"],
        "gallery.clusters.cluster": ["cluster"],
        "gallery.embed": ["embed"],
        "gallery.query": ["search"],
        "hub.push": ["push"],
        "loss.lazy_adam": ["LazyAdam"],
        "loss.proxygml_loss": ["ProxyGMLLoss"],
        "models.embedder": ["Embedder"],
        "training.export": ["export"],
        "training.evaluate_run": ["evaluate_run"],
        "training.recipe": ["Recipe"],
        "training.train": ["train"],
    },
)

"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision and NMI, with intervals.

It takes embeddings and labels; it opens no image and runs no network. metrics.py computes the figures (estimates.py)
and their intervals (bootstrap.py), rules.py says which images count, and ranking.py finds the ranks (small classes in
tiles.py, large ones and top-k in lists.py).
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.evaluation.metrics import Estimate as Estimate
    from proxygml.evaluation.metrics import Evaluation as Evaluation
    from proxygml.evaluation.metrics import evaluate as evaluate

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"metrics": ["Estimate", "Evaluation", "evaluate"]}
)

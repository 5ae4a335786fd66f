"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision and NMI, with intervals.

It takes embeddings and labels; it opens no image and runs no network. metrics.py computes the figures and their
bootstrap intervals, ranking.py the ranks behind them (small classes in tiles.py, large ones and top-k in lists.py).
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

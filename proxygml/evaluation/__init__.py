"""How well embeddings retrieve and cluster: Recall@K, MAP@R, R-precision and NMI, with intervals.

Embeddings and labels come in; no image is opened and no network runs.
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

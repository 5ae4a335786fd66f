"""Training: the recipe, the loop (trainer.py) and a file for each of its parts, and the evaluation of a finished run.

optimization.py has the learning rates and their schedule, splits.py the classes held out for validation, criterion.py
builds the loss. A run writes a run folder (run_folder.py); comparison/ makes many runs under one protocol.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.training.loss_settings import LossSettings as LossSettings
    from proxygml.training.recipe import Recipe as Recipe
    from proxygml.training.run_folder import RunFolder as RunFolder
    from proxygml.training.trainer import fit as fit
    from proxygml.training.trainer import resume as resume

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loss_settings": ["LossSettings"],
        "recipe": ["Recipe"],
        "run_folder": ["RunFolder"],
        "trainer": ["fit", "resume"],
    },
)

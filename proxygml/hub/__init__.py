"""Runs passed on through the Hugging Face Hub: what is sent there, and the card that explains it.

`hf://USER/NAME` takes the place of a run folder wherever one is read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"card": ["model_card"], "push": ["push"]})

"""Labels that the proxy graph contradicts: which labels of a catalog are probably wrong, and how sure that is.

contradiction.py holds the method, probability.py how margins become probabilities.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.auditing.audit import Audit as Audit

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"audit": ["Audit"]})

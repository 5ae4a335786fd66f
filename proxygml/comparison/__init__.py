"""Comparisons: many methods and seeds trained and judged under one protocol, and the tables made of the results."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.comparison.plan import Comparison as Comparison
    from proxygml.comparison.plan import Method as Method
    from proxygml.comparison.tables import Summary as Summary

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"plan": ["Comparison", "Method"], "tables": ["Summary"]}
)

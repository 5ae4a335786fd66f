"""Figures and self-contained HTML pages.

What they show is computed elsewhere: in evaluation/, training/ and comparison/.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.reports.run_report import write_report as write_report

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"run_report": ["write_report"]})

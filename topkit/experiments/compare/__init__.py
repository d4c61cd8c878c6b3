"""Two recipes on one capture: is the candidate as good as the baseline? Imports measure and what is below."""

from __future__ import annotations

from topkit.experiments.compare.compare import compare
from topkit.experiments.compare.comparison import Comparison

__all__ = ["Comparison", "compare"]

# pyright: strict
"""What holds a selection kernel to its word: the exact scores, the same choice again, real tensors."""

from topkit.assertions.audit import Audit, Change
from topkit.assertions.real import REAL_KINDS, REAL_LAYERS, Real, real_tensors
from topkit.assertions.repeatable import assert_repeatable
from topkit.assertions.selects import assert_selects
from topkit.assertions.summary import Spread, Summary

__all__ = [
    "REAL_KINDS",
    "REAL_LAYERS",
    "Audit",
    "Change",
    "Real",
    "Spread",
    "Summary",
    "assert_repeatable",
    "assert_selects",
    "real_tensors",
]

# pyright: strict
"""What holds a selection kernel to its word: the exact scores, the same choice again, real tensors."""

from topkit.assertions.selects import assert_selects
from topkit.assertions.summary import Spread, Summary

__all__ = ["Spread", "Summary", "assert_selects"]

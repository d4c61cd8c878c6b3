"""What others run against their own selectors and kernels."""

from topkit.assertions import (
    REAL_KINDS,
    REAL_LAYERS,
    assert_repeatable,
    assert_selects,
    real_tensors,
)
from topkit.contract import LAWS, check_indexer, parametrize_with_checks

__all__ = [
    "LAWS",
    "REAL_KINDS",
    "REAL_LAYERS",
    "assert_repeatable",
    "assert_selects",
    "check_indexer",
    "parametrize_with_checks",
    "real_tensors",
]

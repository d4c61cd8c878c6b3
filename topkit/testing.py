"""What others run against their own selectors and kernels."""

from topkit.assertions import assert_selects
from topkit.contract import LAWS, check_indexer, parametrize_with_checks

__all__ = ["LAWS", "assert_selects", "check_indexer", "parametrize_with_checks"]

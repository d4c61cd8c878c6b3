"""What others run against their own selectors and kernels."""

from topkit.contract import LAWS, check_indexer, parametrize_with_checks

__all__ = ["LAWS", "check_indexer", "parametrize_with_checks"]

# pyright: strict
"""The contract suite: laws that every indexer keeps, and how to hold one to them."""

from topkit.contract.check import LAWS, check_indexer, parametrize_with_checks

__all__ = ["LAWS", "check_indexer", "parametrize_with_checks"]

"""Attention over chosen keys."""

from topkit.kernels.gather_attention.reference import attend, gather_attention, gather_scores

__all__ = ["attend", "gather_attention", "gather_scores"]

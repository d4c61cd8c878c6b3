"""Exact top-k of rows of scores."""

from topkit.kernels.select_topk.reference import select_topk

__all__ = ["select_topk"]

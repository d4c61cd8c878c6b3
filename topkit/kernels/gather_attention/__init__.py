"""Attention over chosen keys."""

from topkit.kernels.gather_attention.reference import gather_attention

__all__ = ["gather_attention"]

"""Query-key scores under grouped-query attention."""

from topkit.kernels.score.reference import score

__all__ = ["score"]

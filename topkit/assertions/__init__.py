# pyright: strict
"""Holding the output of a selection kernel to the exact scores."""

from __future__ import annotations

from topkit.assertions.arrays import Array, indices_of, numbers
from topkit.assertions.demand import Demand
from topkit.assertions.exact import of_attention, of_scores
from topkit.assertions.verdict import require
from topkit.assertions.window import window
from topkit.errors import InputError
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import TOLERANCE

__all__ = ["assert_selects"]

# Scores in memory at a time.
BLOCK = 1 << 25


@full_precision()
def assert_selects(
    indices: Array,
    scores: Array | None = None,
    *,
    queries: Array | None = None,
    keys: Array | None = None,
    k: int | None = None,
    recall: float | None = None,
    mass: float | None = None,
    scaling: float | None = None,
    lengths: Array | None = None,
    start: Array | None = None,
    stop: Array | None = None,
    tolerance: float | None = None,
) -> None:
    """Require that a kernel chose the exact Top-k, or near enough to it, on every single row.

    Exact is judged by score: no slot left out scores above one chosen, so that among equal scores any
    will do, in any order. recall=0.99 or mass=0.95 ask for that much instead, again on every row, not on
    average: recall is the share of the Top-k chosen, ties forgiven; mass is the attention weight of what
    was chosen. min(k, visible) different visible slots are due, and -1 stands for none: one that is due
    is missed, which exactness does not allow. k: by default the width of indices.
    tolerance: the share of its own magnitude, |q| |k| of queries and keys, that a score may be off by; two
    that may be as much are one, and no other score of the row has a say. By default 1e-6, the rounding of
    float32, for queries and keys, and 0 for scores.

    Shapes: indices [..., w] beside scores [..., T], -inf where a slot may not be chosen (a finite number
    is a score, however low); or indices [B, Hs, Tq, w], Hs in {Hq, Hk, 1}, beside queries
    [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]. Query i then sees the slots start <= s < stop[i] (start
    [B], stop [B or 1, Tq]); by default the queries are the last Tq of T slots, or of lengths [B]. A list
    that several heads share is judged by the mean of their attention weights. scaling, of the weights:
    D ** -0.5, or 1 for scores.
    Raises: AssertionError with the facts of the worst row; InputError for what cannot be judged, bounds
    that cannot be among it.
    """
    picked = indices_of(indices)
    if tolerance is None:
        tolerance = TOLERANCE if scores is None else 0.0
    demand = Demand.of(picked.shape[-1] if k is None else k, recall, mass, scaling, tolerance)
    if scores is None:
        if queries is None or keys is None:
            raise InputError("expected scores, or queries and keys")
        q, x = numbers(queries, "queries"), numbers(keys, "keys")
        seen = window(q, x, lengths, start, stop)
        exact = of_attention(q, x, picked.shape[1:2].numel(), demand, seen, BLOCK)
    elif all(x is None for x in (queries, keys, lengths, start, stop)):
        exact = of_scores(numbers(scores, "scores"), demand, BLOCK)
    else:
        raise InputError(
            "scores say by -inf what is not visible: give them alone, or else queries and keys"
        )
    if picked.shape[:-1] != exact.shape or exact.shape.numel() == 0:
        raise InputError(
            f"indices {list(picked.shape)} must be {[*exact.shape, 'k']} beside these scores, "
            "and hold at least one row"
        )
    require(picked.long().reshape(exact.shape.numel(), picked.shape[-1]), exact, demand)

# pyright: strict
"""Holding the output of a selection kernel to the exact scores."""

from __future__ import annotations

from topkit.assertions.arrays import Array, indices_of, numbers
from topkit.assertions.demand import Demand
from topkit.assertions.problem import Problem
from topkit.assertions.ragged import Ragged
from topkit.assertions.summary import Summary
from topkit.assertions.verdict import require
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import TOLERANCE

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
    mass_ratio: float | None = None,
    scaling: float | None = None,
    lengths: Array | int | None = None,
    start: Array | None = None,
    stop: Array | None = None,
    cu_seqlens: Array | None = None,
    block_table: Array | None = None,
    page_size: int | None = None,
    tolerance: float | None = None,
) -> Summary:
    """Require that a kernel chose the exact Top-k, or near enough to it, on every single row.

    Exact is judged by score: no slot left out scores above one chosen, so that among equal scores any
    will do, in any order. recall=0.99, mass_ratio=0.99 or mass=0.95 ask for that much instead, again on every row,
    not on average: recall is the share of the Top-k chosen, ties forgiven; mass is the attention weight of what
    was chosen, mass_ratio its share of what the exact Top-k has. min(k, visible) different visible slots are due,
    and -1 stands for none: one that is due is missed, which exactness does not allow. k: by default the width of
    indices.
    tolerance: the share of its own magnitude, |q| |k| of queries and keys, that a score may be off by; two
    that may be as much are one, and no other score of the row has a say. By default 1e-6, the rounding of
    float32, for queries and keys, and 0 for scores.

    Shapes: indices [..., w] beside scores [..., T], -inf where a slot may not be chosen (a finite number
    is a score, however low); or indices [B, Hs, Tq, w], Hs in {Hq, Hk, 1}, beside queries
    [B, Hq, Tq, D] and keys [B or 1, Hk, T, D]. Query i then sees the slots start <= s < stop[i] (start
    [B], stop [B or 1, Tq]); by default the queries are the last Tq of T slots, or of lengths [B]. So it is with
    scores [B, Hs, Tq, T] where one of these is there; scores of another shape take lengths, one a row.
    cu_seqlens [B + 1]: sequences stand one after the other, the queries of each the last of its lengths [B], by
    default as many: indices [N, w] or [N, Hs, w] count from the first key of their own sequence, beside queries
    [N, Hq, D] and keys [M, Hk, D] or padded [B, Hk, T, D], or scores [N, T] or [N, Hs, T].
    block_table [B, pages], page_size: indices are physical, page * page_size + place in the page; scores and keys
    are in the order of the sequence.
    A list that several heads share is judged by the mean of their attention weights. scaling, of the weights:
    D ** -0.5, or 1 for scores.
    Returns: a Summary of all rows: means, percentiles, the worst row by name, ties at the boundary.
    Raises: AssertionError with the facts of the worst row; InputError for what cannot be judged, bounds
    that cannot be among it.
    """
    picked = indices_of(indices)
    if tolerance is None:
        tolerance = TOLERANCE if scores is None else 0.0
    demand = Demand.of(
        picked.shape[-1] if k is None else k,
        recall=recall, mass=mass, mass_ratio=mass_ratio, scaling=scaling, tolerance=tolerance,
    )  # fmt: skip
    problem = Problem(
        None if scores is None else numbers(scores, "scores"),
        None if queries is None else numbers(queries, "queries"),
        None if keys is None else numbers(keys, "keys"),
        lengths, start, stop, block_table, page_size,
    )  # fmt: skip
    if cu_seqlens is not None:
        problem = Ragged.of(problem, cu_seqlens, picked.shape[0])
    return require(problem.parts(picked, demand, BLOCK), demand)

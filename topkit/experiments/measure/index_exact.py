"""Selections judged by a learned indexer's own scores, where attention's queries and keys are not there."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.decode.driver import piece
from topkit.experiments.runs.judged import Exact, Judged
from topkit.indexers.base import Indexer, Selection
from topkit.indexers.combinator import leaf
from topkit.indexers.stateless import Stateless
from topkit.kernels.rounding import TOLERANCE, Rounding, norms
from topkit.kernels.score import score_lightning

# What the Top-k of these scores is called in messages; and what means something without attention.
NAME = "lightning(weights='given')"
KEPT = (
    "visible",
    "trivial",
    "kept",
    "recall",
    "own_recall",
    "score_regret",
    "keys_scored",
    "bytes_read",
)


class IndexExact:
    """The Top-k of the float32 index scores of each query, one list a layer: what selections are judged against.

    Ties are forgiven as by `Exact`; what weighs by attention is NaN, and score_regret is in index scores.
    Scores are computed a block of queries at a time, for each selection anew where there are several blocks.
    """

    def __init__(self, tensors: LayerTensors, k: int, stop: Tensor) -> None:
        self.tensors, self.k, self.stop = tensors, k, stop
        heads, length = _index(tensors)[0].shape[1], tensors.keys.shape[2]
        step = piece(tensors.queries, (heads + 2) * length)
        count = tensors.queries.shape[2]
        self._blocks = [slice(at, min(at + step, count)) for at in range(0, count, step)]
        self._key_norms = norms(tensors.keys)
        self._whole = self._exact(self._blocks[0]) if len(self._blocks) == 1 else None

    def judged(self, selection: Selection, k: int, name: str = "the selection") -> list[Judged]:
        """The one list of the layer against the Top-k of the index scores.

        Raises: InputError that begins with `name`, as `Exact.judged`.
        """
        parts = [exact.heads(_of(selection, at), k, name) for at, exact in self._each()]
        return [_joined(parts)]

    def overlap(self, selection: Selection, k: int, other: Selection, name: str) -> Judged:
        """As `Exact.overlap`."""
        parts = [
            exact.overlap(_of(selection, at), k, _of(other, at), name) for at, exact in self._each()
        ]
        return _joined(parts)

    def _each(self) -> Iterator[tuple[slice, Exact]]:
        for at in self._blocks:
            yield at, self._whole or self._exact(at)

    def _exact(self, at: slice) -> Exact:
        t = self.tensors
        queries, keys, gates = _index(t)
        queries, gates = queries[:, :, at].float(), gates[:, at].float()
        scores = score_lightning(queries, keys.float(), gates, backend="torch")
        each = norms(queries) * gates.mT.abs()
        bound = (
            TOLERANCE * each.sum(1, keepdim=True) * (queries.shape[1] * queries.shape[3]) ** -0.5
        )
        return Exact(
            t.queries[:, :, at],
            None,
            None,
            self.k,
            scaling=1.0,
            stop=self.stop[:, at],
            layer=t.layer,
            scores=scores,
            rounding=Rounding(bound, self._key_norms),
        )


def _index(t: LayerTensors) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, H, Tq, d], keys [1, 1, T, d] and weights [1, Tq, H] of the indexer."""
    assert t.index_queries is not None and t.index_keys is not None and t.index_weights is not None
    return t.index_queries, t.index_keys, t.index_weights


def require_index(recipe: Indexer) -> None:
    """Refuse a recipe that chooses by attention's queries and keys, which an index-only capture has not.

    Raises: InputError that says what does choose.
    """
    needs = recipe.needs
    of_index = bool(needs & {"index_keys", "native"}) or isinstance(leaf(recipe), Stateless)
    if "cache" in needs or not (of_index or "sample" in needs):
        raise InputError(
            f"{recipe} chooses by the queries and keys of attention, and the capture holds a learned "
            f"indexer's tensors alone; measure {NAME}, lightning(weights='given', dtype='fp8') and their kin, "
            "or give queries and keys too"
        )


def _of(selection: Selection, at: slice) -> Selection:
    """The selection of some of its queries."""
    weights = selection.log_weights
    costs = {
        name: x[..., at] if isinstance(x := getattr(selection, name), Tensor) and x.ndim else x
        for name in ("keys_scored", "bytes_read")
    }
    weights = None if weights is None else weights[:, :, at]
    return Selection(selection.indices[:, :, at], weights, None, **costs)


def _joined(parts: list[Judged]) -> Judged:
    """Judged queries as one, without what only attention gives a meaning."""
    columns = {
        name: torch.cat([part.columns[name] for part in parts], -1) for name in parts[0].columns
    }
    for name in set(columns) - set(KEPT):
        columns[name] = torch.full_like(columns["recall"], nan)
    return Judged(parts[0].level, parts[0].reference, columns)

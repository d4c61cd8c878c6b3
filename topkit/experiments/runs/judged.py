"""Selections judged against the exact rows of their queries, at every level that they have."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topkit.fidelity import (
    METRICS,
    Truth,
    UnitTruth,
    answer_key,
    judge,
    judge_units,
    overlap,
    truth,
    unit_truth,
)
from topkit.fidelity.sums import Weigh
from topkit.fidelity.truth import with_sinks
from topkit.fidelity.validity import require_valid
from topkit.indexers.base import Selection
from topkit.kernels.gather_attention import PLAIN, Softmax, gather_attention
from topkit.kernels.rounding import Rounding
from topkit.kernels.score import score as dot_products

# Scores that are kept to be read by every judge of the same queries: 128 MiB of them at most.
KNOWN = 1 << 25
COSTS = ("keys_scored", "bytes_read")


class Judged(NamedTuple):
    """A selection in numbers: visible, trivial, METRICS and COSTS, each [B, H, Tq].

    H counts what the level says: query heads, or the lists that a group or the layer shares. Where a
    metric has no meaning it is NaN.
    """

    level: str
    reference: str
    columns: Mapping[str, Tensor]

    def beside(self, columns: Mapping[str, Tensor]) -> Judged:
        """The same with other columns beside its own."""
        return self._replace(columns={**self.columns, **columns}) if columns else self


class Exact:
    """The exact rows of some queries, which any number of their selections are judged against.

    Shapes: queries, keys, values, start and stop as `topkit.fidelity.truth` has them; k is the
    greatest to be judged at. scores [B, Hq, Tq, T]: all dot products, where they are known already;
    with them, and with rounding and weigh, keys and values are not read. softmax: the model's own, whose
    sinks take of the keys' weights, and whose softcap changes them.
    Raises: InputError for NaN or infinity, naming layer and head.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        k: int,
        *,
        scaling: float,
        layer: int | None = None,
        start: Tensor | None = None,
        stop: Tensor | None = None,
        scores: Tensor | None = None,
        rounding: Rounding | None = None,
        weigh: Weigh | None = None,
        softmax: Softmax = PLAIN,
    ) -> None:
        if scores is None and keys is not None:
            known = queries[..., 0].numel() * keys.shape[2] <= KNOWN
            known = known or softmax.softcap is not None
            scores = dot_products(queries, keys) if known else None
        if scores is not None:
            scores = softmax.capped_scores(scores, scaling)
        self.queries, self.keys, self.values, self.k = queries, keys, values, k
        self._scores = scores
        self.truth: Truth = truth(
            queries,
            keys,
            values,
            k,
            scaling=scaling,
            layer=layer,
            start=start,
            stop=stop,
            scores=scores,
            rounding=rounding,
            weigh=weigh,
        )
        if softmax.sinks is not None:
            self.truth = with_sinks(self.truth, softmax.of_heads(self.truth.scores)[..., 0])
        self._softmax = softmax
        self._units: dict[int, UnitTruth] = {}

    def of(self, rows: Tensor | slice) -> Exact:
        """The exact rows of some rows of the batch, where all scores are known."""
        one = copy(self)
        assert self._scores is not None
        one.queries, one._scores = self.queries[rows], self._scores[rows]
        one.truth, one._units = self.truth.of(rows), {}
        return one

    def judged(self, selection: Selection, k: int, name: str = "the selection") -> list[Judged]:
        """Each head against its own Top-k; and, of shared lists, each list against its unit's.

        Raises: InputError that begins with `name`, which chose, for a slot that is chosen twice or not
        visible, and for more than k.
        """
        judged = [self.heads(selection, k, name)]
        if self._level(selection.indices.shape[1]) != "head":
            judged.append(self.units(selection, k, name))
        return judged

    def heads(
        self,
        selection: Selection,
        k: int | Tensor,
        name: str = "the selection",
        output: Tensor | None = None,
    ) -> Judged:
        """Each head against its own Top-k; k of all rows, or of each [B], output as `judge` takes it.

        Raises: as `judged`.
        """
        scores = self._scores
        if output is None and self._softmax.sinks is not None and self.values is not None:
            output = self._attended(selection)
        one = judge(
            self.truth,
            self.queries,
            self.keys,
            self.values,
            selection,
            k,
            scores=scores,
            output=output,
            name=name,
        )
        return _with_costs("head", "head", one, selection)

    def units(self, selection: Selection, k: int | Tensor, name: str = "the selection") -> Judged:
        """Lists that a group or the layer shares, each against its unit's Top-k.

        Raises: as `judged`.
        """
        lists = selection.indices.shape[1]
        best, level = self._unit(lists), self._level(lists)
        known: dict[str, Any] = {"scores": self._scores, "name": name}
        shared = judge_units(self.truth, best, self.queries, self.keys, selection, k, **known)
        return _with_costs(level, level, shared, selection)

    def found(self, selection: Selection, slots: Tensor, heads: Judged) -> dict[str, Tensor]:
        """ANSWER_KEY of what `heads` was judged of, for the slots [B, Tq] that the queries are to find."""
        sinks = self._softmax.sinks
        return answer_key(
            self.truth,
            self.queries,
            self.keys,
            selection,
            slots,
            scores=self._scores,
            sinks=None if sinks is None else self._softmax.of_heads(self.truth.scores)[..., 0],
            weighed=(heads.columns["mass"], heads.columns["mass_estimate"]),
        )

    def overlap(self, selection: Selection, k: int, other: Selection, name: str) -> Judged:
        """The share of another indexer's keys that were chosen too, as recall; `name` is the other's.

        Raises: InputError as `judged`, for the other's selection.
        """
        require_valid(other.indices, self.truth.start, self.truth.stop, k, name)
        recall = overlap(selection.indices, other.indices)
        visible = self.truth.visible[:, None].expand_as(recall)
        columns = dict.fromkeys(METRICS, torch.full_like(recall, nan))
        columns |= {"visible": visible, "trivial": visible <= k, "recall": recall}
        return _with_costs(self._level(recall.shape[1]), name, columns, selection)

    def _attended(self, selection: Selection) -> Tensor:
        """The output over a selection, where sinks take their part of it."""
        keys, values, rest = self.keys, self.values, selection.rest
        assert keys is not None and values is not None
        return gather_attention(
            self.queries.float(),
            keys,
            values,
            selection.indices,
            scaling=self.truth.scaling,
            log_weights=selection.log_weights,
            rest_values=None if rest is None else rest.values,
            rest_logits=None if rest is None else rest.logits,
            rest_share=None if rest is None else rest.share,
            softmax=self._softmax,
            backend="torch",
        )

    def _level(self, lists: int) -> str:
        if lists == self.queries.shape[1]:
            return "head"
        return "layer" if lists == 1 else "group"

    def _unit(self, units: int) -> UnitTruth:
        if units not in self._units:
            self._units[units] = unit_truth(
                self.truth, self.queries, self.keys, self.k, units, scores=self._scores
            )
        return self._units[units]


def _with_costs(
    level: str, reference: str, columns: Mapping[str, Tensor], selection: Selection
) -> Judged:
    recall = columns["recall"]
    costs: dict[str, Tensor] = {}
    for name in COSTS:
        cost = torch.as_tensor(getattr(selection, name), device=recall.device)
        # A number, or one a query [B or 1, Tq]: the same for all heads.
        costs[name] = (cost if cost.ndim == 0 else cost[:, None]).expand(recall.shape)
    return Judged(level, reference, {**columns, **costs})

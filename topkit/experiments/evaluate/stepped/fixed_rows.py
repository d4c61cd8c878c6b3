"""Rows whose recipes are `fixed`, stepped one token at a time at shapes and addresses that stay.

Each row has a cache of its own with room for all that is to come, so that slots count through and a CUDA
graph can repeat the step. Nothing of a haystack is a constant of the step: what is written where, and the
seed, stand on the device. What was written behind the slot of a step is never seen, so that going back is
to count from an earlier slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.decode.driver import Driver
from topkit.experiments.decode.graph_capture import side_by_side
from topkit.experiments.evaluate.built import Built
from topkit.experiments.evaluate.stepped.fixed_layer import Layer
from topkit.experiments.evaluate.stepped.groups import Group, Way, packed, rows_of
from topkit.experiments.evaluate.streams import Prefix
from topkit.experiments.model.attention_call import AttentionCall
from topkit.indexers.base import Cache, Index, Selection, seen_of
from topkit.indexers.degraded import degraded, floors_named, floors_of, most_named, most_of
from topkit.indexers.exact import best_of, exact, norms_of, true_scores_of
from topkit.indexers.roomy import refill, roomy
from topkit.kernels.precision import full_precision
from topkit.kernels.rounding import Rounding
from topkit.kernels.score_keys import score_keys
from topkit.kernels.select_topk import select_topk

# Recipes that read keys ranked by their true scores.
RANKED = exact, degraded
# Keys scored and bytes read, of some rows.
Costs = tuple[Tensor, Tensor]


class FixedRows:
    """The rows of some recipes behind one prefix after another; full attention's come first.

    Shapes: at [1], the slot of the next token; place [1], where its step is noted; read [R, room], the
    tokens of all rows by slot.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        prefix: Mapping[int, Prefix],
        built: Built,
        room: int,
        steps: int,
    ) -> None:
        self.groups, self.room, self.steps = groups, room, steps
        self.count = groups[-1].rows.stop
        self.device = next(iter(prefix.values())).cache.keys.device
        self.at, self.place = torch.zeros(2, 1, dtype=torch.long, device=self.device)
        self.seed = torch.zeros((), dtype=torch.long, device=self.device)
        self.read = torch.zeros(self.count, room, dtype=torch.long, device=self.device)
        wide = max([min(k, room) for group in groups for k in group.ks], default=0)
        # How many keys are ranked by their true scores, once for all recipes that read them so.
        ranked = (max(g.ks) + 1 for g in groups if isinstance(g.indexer, RANKED))
        self.ranked = max(ranked, default=0)
        self.none = torch.zeros(1, device=self.device)
        # Of all that came to attention, by layer: not finite where something was not.
        self.sums = torch.zeros(len(prefix), device=self.device)
        self.numbers = {number: n for n, number in enumerate(prefix)}
        self.layers = {n: Layer.of(x, self.count, room, wide, steps) for n, x in prefix.items()}
        # What groups that read upstream selected in each layer of the step that is made, at each k.
        self.chosen = dict[tuple[int, int], dict[int, Selection]]()
        for number, layer in self.layers.items():
            layer.indices = {} if layer.dense else self._indices(number, built)

    def _indices(self, number: int, built: Built) -> dict[int, Index]:
        """An index of each group, with room, in a layer."""
        indices = dict[int, Index]()
        for n, group in enumerate(self.groups):
            if group.indexer is not None:
                index = roomy(built.of(group.indexer)[number], group.count, self.room, self.device)
                if index is None:
                    raise InputError(f"{group.indexer} has an index of a kind of its own")
                indices[n] = index
        return indices

    def begin(self, prefix: Mapping[int, Prefix], built: Built) -> None:
        """Write a haystack to all rows."""
        self.seed.fill_(built.seed)
        self.sums.zero_()
        for number, layer in self.layers.items():
            layer.begin(prefix[number])
            for n, index in layer.indices.items():
                indexer = self.groups[n].indexer
                assert indexer is not None
                refill(index, built.of(indexer)[number])

    @contextmanager
    def idle(self) -> Iterator[None]:
        """A graph is made in here, of a step that comes again."""
        yield

    def stand(self, streams: Sequence[Any], slot: int) -> None:
        """Tell whose step comes, and at which slot, to what the device does not do."""

    @full_precision()
    def attend(self, call: AttentionCall, way: Way) -> Tensor:
        """The output [R, 1, Hq, Dv] of a layer's attention in a step.

        In shadow all rows have read the same, and attend as full attention's do; what is noted as output is that
        over what they select.
        """
        call, stop = packed(call), self.at[None] + 1
        layer, queries = self.layers[call.layer], call.queries
        scores = self.scores(call, stop)
        if layer.dense:
            output = layer.attend_all(scores, slice(None), stop)
            return output.to(queries.dtype).transpose(1, 2)
        selects = way is not Way.DENSE
        memo = self._memo(layer, queries, scores, stop) if selects else {}
        calls = [
            partial(self._step, n, call, scores, stop, memo, selects)
            for n, group in enumerate(self.groups)
            if group.indexer is not None
        ]
        costs = [cost for some in side_by_side(calls, self.device) for cost in some]
        dense = self.groups[0].rows if selects else slice(0, self.count)
        full = output = layer.attend_all(scores, dense, stop)
        if costs:
            output = torch.cat([output, layer.attend_lists(scores, dense.stop)])
            none = self.none.expand(dense.stop)
            every = [x for kind in zip((none, none), *costs, strict=True) for x in kind]
            layer.note(self.place, queries=queries, output=output, costs=torch.cat(every))
        if way is Way.SHADOW:
            output = full.repeat(self.count // len(full), 1, 1, 1)
        return output.to(queries.dtype).transpose(1, 2)

    def scores(self, call: AttentionCall, stop: Tensor) -> Tensor:
        """Append a step's keys and values to a layer, and score all keys [R, Hq, 1, room], -inf from `stop` on."""
        layer, parts = self.layers[call.layer], (call.queries, call.keys, call.values)
        self.sums[self.numbers[call.layer]] += sum(x.sum(dtype=torch.float32) for x in parts)
        layer.append(call.keys, call.values, self.at)
        return score_keys(call.queries, layer.keys, stop=stop)

    def require_finite(self) -> None:
        """Require that nothing came to attention that is not.

        Raises: InputError.
        """
        if not self.sums.isfinite().all():
            raise InputError("queries, keys or values hold NaN or infinity")

    def _memo(
        self, layer: Layer, queries: Tensor, scores: Tensor, stop: Tensor
    ) -> dict[str, Tensor]:
        """What is computed once for the rows of all recipes; see Step.memo."""
        memo = {
            seen_of(self.room): stop.float(),
            true_scores_of(self.room): scores,
            norms_of(self.room): layer.norms,
        }
        if self.ranked:
            best = select_topk(scores, self.ranked, check=False)
            rounding = Rounding.of_norms(queries, layer.norms)
            memo[best_of(self.room)] = best
            memo[most_named(self.room)] = most_of(scores, rounding)
            memo[floors_named(self.room, self.ranked)] = floors_of(scores, best, rounding)
        return memo

    def _step(
        self,
        n: int,
        call: AttentionCall,
        scores: Tensor,
        stop: Tensor,
        memo: Mapping[str, Tensor],
        selects: bool,
    ) -> list[Costs]:
        """Append a group's key; if it `selects`, put that in its rows' lists, and say what it costs."""
        group, layer = self.groups[n], self.layers[call.layer]
        rows, index, indexer = group.rows, layer.indices[n], group.replayed
        assert indexer is not None
        cache = Cache(layer.keys[rows], layer.values[rows])
        inputs = {name: rows_of(x, rows) for name, x in call.inputs.items()}
        ordered, heads = len(group.ks) > 1, call.keys.shape[1]
        driver = Driver(
            indexer,
            call.layer,
            layer.scaling,
            heads,
            self.seed,
            ordered=ordered,
            softmax=layer.softmax,
        )
        if not selects:
            step = driver.step({"cache": cache, **inputs}, stop, self.at, room=self.room)
            index.append(call.keys[rows], step)
            return []
        own = {name: x if len(x) < self.count else x[rows] for name, x in memo.items()}
        given = (call.queries[rows], cache, call.keys[rows], self.at, stop)
        chosen, costs = dict[int, Selection](), list[Costs]()
        for ks, above in self._upstream(n, call.layer):
            chosen |= driver.select_at(index, ks, *given, {**inputs, **above}, own, counted=True)
        if "upstream" in indexer.needs:
            self.chosen[n, call.layer] = chosen
        for among, k in group.runs:
            one = chosen[k]
            if one.rest is not None:
                raise InputError(f"{indexer} gives pseudo-keys")
            layer.units[n], layer.weighted[n] = one.indices.shape[1], one.log_weights is not None
            place = slice(rows.start + among.start, rows.start + among.stop)
            logs = None if one.log_weights is None else one.log_weights[among]
            layer.put(place, one.indices[among], logs)
            costs.append(self._costs(one, among))
        return costs

    def _upstream(self, n: int, layer: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """The budgets that a group selects at together, and what it reads of an earlier layer at these."""
        group = self.groups[n]
        assert group.replayed is not None
        reads = "upstream" in group.replayed.needs
        source = group.replayed.upstream_layer(layer) if reads else None
        if source is None:
            yield group.ks, {}
            return
        for k in group.ks:
            above = self.chosen[n, source][k]
            yield [k], {"upstream": Selection(above.indices, above.log_weights)}

    def _costs(self, chosen: Selection, among: slice) -> Costs:
        """Keys scored and bytes read [b] by some rows of a group."""
        both = []
        for cost in (chosen.keys_scored, chosen.bytes_read):
            if not isinstance(cost, Tensor):
                cost = self.none if cost == 0 else torch.full_like(self.none, cost)
            cost = cost[among] if len(cost) > 1 else cost
            both.append(cost.float().view(-1).expand(among.stop - among.start))
        return both[0], both[1]

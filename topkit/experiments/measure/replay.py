"""Fidelity rows of captured tensors: an indexer is built on the prefix and asked as decoding would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.decode.driver import Driver, Memo, QuerySlots, piece, tokens
from topkit.experiments.measure.index_exact import IndexExact, require_index
from topkit.experiments.runs.cells import alone
from topkit.experiments.runs.judged import Exact
from topkit.indexers.base import Cache, Indexer, Rest, Selection
from topkit.indexers.exact import true_scores_of
from topkit.kernels.score import score

# Inputs that have an entry for each token.
_TOKENS = ("values", "hidden", "latent", "rope", "index_keys")


class Replay:
    """Drives recipes through one layer's captured tensors, and keeps the exact rows to judge them by.

    `load` gives the tensors of another layer of the sample, for recipes that read what was selected there.
    """

    def __init__(
        self,
        tensors: LayerTensors,
        k: int,
        seed: int,
        device: torch.device,
        load: Callable[[int], LayerTensors] | None = None,
    ) -> None:
        self.tensors = t = _moved(tensors, device)
        self.seed, self.load = seed, load
        self.stop = t.positions[None] + 1
        self.memo: Memo = {}
        self.exact: Exact | IndexExact
        if t.index_only:
            self.exact = IndexExact(t, k, self.stop)
            return
        length, scores = t.keys.shape[2], None
        if piece(t.queries, length) >= t.queries.shape[2]:
            scores = score(t.queries, t.keys)
            self.memo[true_scores_of(length)] = scores
        self.exact = Exact(
            t.queries,
            t.keys,
            t.values,
            k,
            scaling=t.scaling,
            stop=self.stop,
            layer=t.layer,
            scores=scores,
            softmax=t.softmax,
        )

    def select(
        self, recipe: Indexer, ks: Sequence[int]
    ) -> tuple[dict[int, Selection], dict[int, int]]:
        """One selection for all captured positions at each k, and the bytes the index held."""
        chosen, held = dict[int, Selection](), dict[int, int]()
        for some in [[k] for k in ks] if alone(recipe) else [ks]:
            own, index_bytes = self._select(recipe, some)
            chosen |= own
            held |= dict.fromkeys(some, index_bytes)
        return chosen, held

    def _select(self, recipe: Indexer, ks: Sequence[int]) -> tuple[dict[int, Selection], int]:
        upstream = self._upstream(recipe, ks, self.tensors.layer)
        return selected(self.tensors, recipe, ks, self.seed, self.memo, upstream)

    def _upstream(self, recipe: Indexer, ks: Sequence[int], layer: int) -> Selection | None:
        """What the recipe reads in a layer of the selection in another."""
        source = recipe.upstream_layer(layer) if "upstream" in recipe.needs else None
        if source is None:
            return None
        assert self.load is not None
        tensors = _moved(self.load(source), self.tensors.keys.device)
        if not tensors.positions.equal(self.tensors.positions):
            raise InputError(f"layers {source} and {layer} of the capture have other positions")
        above = self._upstream(recipe, ks, source)
        chosen = selected(tensors, recipe, ks, self.seed, {}, above)[0][ks[0]]
        return Selection(chosen.indices, chosen.log_weights)


def selected(
    t: LayerTensors,
    recipe: Indexer,
    ks: Sequence[int],
    seed: int,
    memo: Memo,
    upstream: Selection | None,
) -> tuple[dict[int, Selection], int]:
    """What the queries of a layer select at each k, and the bytes the index held."""
    slots = t.positions.tolist()
    driver = Driver(recipe, t.layer, t.scaling, t.keys.shape[1], seed, softmax=t.softmax)
    # What a later key may change, in codes or in how they are made, is built as decoding would.
    traits = recipe.traits()
    at_once = traits.causal_codes and not (traits.drifts or "prefill_queries" in recipe.needs)
    built = t.keys.shape[2] if at_once else max(slots[0], 1)
    inputs = {name: x for name in _TOKENS if (x := getattr(t, name)) is not None}
    of_keys = {name: tokens(x, slice(0, built)) for name, x in inputs.items()}
    index = driver.build(_cache(t, built), of_keys | _of_sample(t))
    end = t.keys.shape[2] if traits.causal_codes else slots[-1] + 1
    later = {name: tokens(x, slice(built, None)) for name, x in inputs.items()}
    where = QuerySlots(slots, _of_queries(t), memo)
    cache = _cache(t, end)
    choices = list(driver.select(index, ks, t.queries, cache, later, where, upstream))
    chosen = {k: joined([choice.by_budget[k] for choice in choices]) for k in ks}
    return chosen, index.nbytes


def _of_sample(t: LayerTensors) -> dict[str, Any]:
    """Inputs that an index is built with once."""
    own = {"prefill_queries": t.prefill_queries, "sample": t.sample}
    return {name: x for name, x in own.items() if x is not None}


def _of_queries(t: LayerTensors) -> dict[str, Any]:
    """Inputs that have an entry for each query."""
    of_token = {name: getattr(t, name) for name in ("hidden", "latent", "rope")}
    inputs = {n: _at(x, t.positions) for n, x in of_token.items() if x is not None}
    own = {
        "values": None if t.values is None else t.values[:, :, t.positions],
        "index_queries": t.index_queries,
        "index_weights": t.index_weights,
        "native": t.native,
    }
    return inputs | {name: x for name, x in own.items() if x is not None}


def _cache(t: LayerTensors, length: int) -> Cache:
    values = None if t.values is None else t.values[:, :, :length]
    return Cache(t.keys[:, :, :length], values)


def joined(parts: Sequence[Selection]) -> Selection:
    """Selections of some queries each as one of all; narrow ones are filled up with -1."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.indices.shape[-1] for part in parts)

    def wide(x: Tensor, fill: float) -> Tensor:
        return pad(x, (0, width - x.shape[-1]), value=fill)

    def cost(name: str) -> Tensor:
        """[1, Tq] of numbers, or of tensors [1, n]."""
        costs = [torch.as_tensor(getattr(p, name), dtype=torch.float64).cpu() for p in parts]
        each = zip(costs, parts, strict=True)
        return torch.cat([c.expand(1, p.indices.shape[2]) for c, p in each], -1)

    first = parts[0]
    weights = None
    if first.log_weights is not None:
        weights = torch.cat(
            [wide(p.log_weights, 0.0) for p in parts if p.log_weights is not None], 2
        )
    return Selection(
        torch.cat([wide(p.indices, -1) for p in parts], 2),
        weights,
        _joined_rest(parts),
        cost("keys_scored"),
        cost("bytes_read"),
    )


def _joined_rest(parts: Sequence[Selection]) -> Rest | None:
    """The pseudo-keys of some queries each, of all; those with fewer, or none, get some that weigh nothing."""
    rests = [part.rest for part in parts if part.rest is not None]
    if not rests:
        return None
    width = max(rest.values.shape[3] for rest in rests)
    rows, heads, _, _, size = rests[0].values.shape

    def wide(name: str, fill: float) -> Tensor | None:
        if getattr(rests[0], name) is None:
            return None
        tail = (size,) if name == "values" else ()
        filled = list[Tensor]()
        for part in parts:
            shape = (rows, heads, part.indices.shape[2], width, *tail)
            room = rests[0].values.new_full(shape, fill)
            if part.rest is not None:
                own = getattr(part.rest, name)
                room[:, :, :, : own.shape[3]] = own
            filled.append(room)
        return torch.cat(filled, 2)

    values = wide("values", 0.0)
    assert values is not None
    return Rest(values, wide("logits", -torch.inf), wide("share", 0.0))


def _at(x: Any, positions: Tensor) -> Any:
    """The entries of some tokens [1, T, ...], or of a pair of such."""
    return tuple(_at(y, positions) for y in x) if isinstance(x, tuple) else x[:, positions]


def _moved(tensors: LayerTensors, device: torch.device) -> LayerTensors:
    moved: dict[str, Any] = {
        name: x.to(device)
        for name in (f for f in tensors.__dataclass_fields__ if f != "rope")
        if isinstance(x := getattr(tensors, name), Tensor)
    }
    if tensors.rope is not None:
        moved["rope"] = tuple(angle.to(device) for angle in tensors.rope)
    return replace(tensors, **moved)


def require_inputs(recipe: Indexer, tensors: LayerTensors) -> None:
    """Refuse a recipe whose inputs were not captured.

    Raises: InputError that says how to capture them.
    """
    names = (*_TOKENS, "index_queries", "index_weights", "prefill_queries", "native")
    have = {name for name in names if getattr(tensors, name) is not None}
    if tensors.index_only:
        require_index(recipe)
    lacking = sorted(recipe.needs - have - {"cache", "upstream", "sample"})
    if "native" in lacking:
        raise InputError(
            f"{recipe} keeps what a model's own indexer chose, and layer {tensors.layer} of the capture has "
            "none; capture a model that has one (docs/models.md), or leave the layer out by layers="
        )
    if lacking:
        how = "--prefill-queries" if lacking == ["prefill_queries"] else "--hidden"
        raise InputError(
            f"{recipe} needs {', '.join(lacking)}, which the capture does not hold; "
            f"capture with {how}, or give the tensors to Capture.from_tensors"
        )

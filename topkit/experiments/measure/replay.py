"""Fidelity rows of captured tensors: an indexer is built on the prefix and asked as decoding would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.experiments.capture.tensors import LayerTensors
from topkit.fidelity import Truth, judge, judge_units, overlap, truth, unit_truth
from topkit.indexers.base import Cache, Index, Indexer, Rest, Selection, Step

_TOKENS = ("hidden", "latent", "index_keys")


class Driver:
    """Feeds one layer's captured tensors to recipes, and keeps the exact rows to judge them by."""

    def __init__(self, tensors: LayerTensors, k: int, seed: int, device: torch.device) -> None:
        self.tensors = _moved(tensors, device)
        self.seed = seed
        self.stop = self.tensors.positions[None] + 1
        t = self.tensors
        self.exact: Truth = truth(
            t.queries, t.keys, t.values, k, scaling=t.scaling, stop=self.stop, layer=t.layer
        )

    def select(self, recipe: Indexer, ks: Sequence[int]) -> tuple[dict[int, Selection], int]:
        """One selection for all captured positions at each k, and the bytes the index held."""
        if recipe.traits().remembers:
            each = [self._select(recipe, [k]) for k in ks]
            return {k: found[k] for k, (found, _) in zip(ks, each, strict=True)}, each[0][1]
        return self._select(recipe, ks)

    def _select(self, recipe: Indexer, ks: Sequence[int]) -> tuple[dict[int, Selection], int]:
        traits = recipe.traits()
        if traits.causal_codes and not traits.drifts:
            length = self.tensors.keys.shape[2]
            index = self._build(recipe, length)
            every = slice(0, len(self.tensors.positions))
            step = self._step(recipe, every, length, self.stop)
            return {k: index.select(self.tensors.queries, k, step) for k in ks}, index.nbytes
        return self._one_by_one(recipe, ks)

    def _one_by_one(self, recipe: Indexer, ks: Sequence[int]) -> tuple[dict[int, Selection], int]:
        """Build on what comes before the first query; then append up to each query, and ask it."""
        positions = self.tensors.positions.tolist()
        index = self._build(recipe, max(positions[0], 1))
        found: dict[int, list[Selection]] = {k: [] for k in ks}
        for i, position in enumerate(positions):
            if index.length < position + 1:
                span = slice(index.length, position + 1)
                index.append(self.tensors.keys[:, :, span], self._keys_step(recipe, span))
            step = self._step(recipe, slice(i, i + 1), position + 1, None)
            for k in ks:
                found[k].append(index.select(self.tensors.queries[:, :, i : i + 1], k, step))
        return {k: joined(parts) for k, parts in found.items()}, index.nbytes

    def _build(self, recipe: Indexer, length: int) -> Index:
        span = slice(0, length)
        return recipe.build(self.tensors.keys[:, :, span], self._keys_step(recipe, span))

    def _keys_step(self, recipe: Indexer, span: slice) -> Step:
        """The step at which the keys of `span` come."""
        t = self.tensors
        inputs: dict[str, Any] = {
            "cache": self._cache(span.stop),
            "values": None if t.values is None else t.values[:, :, span],
        }
        inputs |= {name: _cut(getattr(t, name), span, name) for name in _TOKENS}
        if t.rope is not None:
            inputs["rope"] = tuple(angle[:, span] for angle in t.rope)
        return self._given(recipe, inputs, None)

    def _step(self, recipe: Indexer, asked: slice, length: int, stop: Tensor | None) -> Step:
        """The step at which the queries number `asked` are asked."""
        t = self.tensors
        at = t.positions[asked]
        inputs: dict[str, Any] = {"cache": self._cache(length)}
        inputs |= {
            n: None if (x := getattr(t, n)) is None else x[:, at] for n in ("hidden", "latent")
        }
        if t.rope is not None:
            inputs["rope"] = tuple(angle[:, at] for angle in t.rope)
        if t.index_queries is not None:
            inputs["index_queries"] = t.index_queries[:, :, asked]
        if t.index_weights is not None:
            inputs["index_weights"] = t.index_weights[:, asked]
        return self._given(recipe, inputs, stop)

    def _cache(self, length: int) -> Cache:
        t = self.tensors
        values = None if t.values is None else t.values[:, :, :length]
        return Cache(t.keys[:, :, :length], values)

    def _given(self, recipe: Indexer, inputs: dict[str, Any], stop: Tensor | None) -> Step:
        t = self.tensors
        step = Step(
            layer=t.layer,
            scaling=t.scaling,
            seed=self.seed,
            stop=stop,
            kv_heads=t.keys.shape[1],
            inputs=inputs,
        )
        return step.given_to(recipe)

    def columns(
        self, selection: Selection, k: int, reference: Selection | None = None
    ) -> Iterable[tuple[str, str, dict[str, Tensor]]]:
        """(reference, level, columns [1, heads or units, Tq]) of one selection."""
        t, s = self.tensors, selection
        yield "head", "head", judge(self.exact, t.queries, t.keys, t.values, s, k)
        units = s.indices.shape[1]
        if units < t.queries.shape[1]:
            level = "layer" if units == 1 else "group"
            best = unit_truth(self.exact, t.queries, t.keys, k, units, stop=self.stop)
            yield level, level, judge_units(self.exact, best, t.queries, t.keys, s, k)
        if reference is not None:
            found = overlap(s.indices, reference.indices)
            visible = self.exact.visible[:, None].expand_as(found)
            yield "other", "head", {"recall": found, "visible": visible, "trivial": visible <= k}


def joined(parts: Sequence[Selection]) -> Selection:
    """Selections of one query each as one of many; narrow ones are filled up with -1."""
    width = max(part.indices.shape[-1] for part in parts)

    def wide(x: Tensor, fill: float) -> Tensor:
        return pad(x, (0, width - x.shape[-1]), value=fill)

    def cost(name: str) -> Tensor:
        costs = [torch.as_tensor(getattr(p, name), dtype=torch.float64) for p in parts]
        return torch.cat([c.reshape(1, 1).cpu() if c.dim() == 0 else c.cpu() for c in costs], -1)

    first = parts[0]
    weights = None
    if first.log_weights is not None:
        weights = torch.cat(
            [wide(p.log_weights, 0.0) for p in parts if p.log_weights is not None], 2
        )
    rest = None
    if first.rest is not None:
        rests = [p.rest for p in parts if p.rest is not None]
        both = {
            name: None
            if getattr(first.rest, name) is None
            else torch.cat([getattr(r, name) for r in rests], 2)
            for name in ("values", "logits", "share")
        }
        rest = Rest(**both)  # type: ignore[arg-type]
    return Selection(
        torch.cat([wide(p.indices, -1) for p in parts], 2),
        weights,
        rest,
        cost("keys_scored"),
        cost("bytes_read"),
    )


def _cut(x: Tensor | None, span: slice, name: str) -> Tensor | None:
    if x is None:
        return None
    return x[:, :, span] if name == "index_keys" else x[:, span]


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
    have = {name for name in ("values", *_TOKENS, "rope", "index_queries", "index_weights")}
    have = {name for name in have if getattr(tensors, name) is not None} | {"cache"}
    lacking = sorted(recipe.needs - have)
    if lacking:
        raise InputError(
            f"{recipe} needs {', '.join(lacking)}, which the capture does not hold; "
            "capture with --hidden, or give the tensors to Capture.from_tensors"
        )

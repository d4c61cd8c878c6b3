# pyright: strict
"""The family "score every key cheaply, keep the best k"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.candidates import Candidates
from topkit.indexers.cost import cost_at
from topkit.indexers.growing import Growing
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.score import reference, score_codes
from topkit.kernels.score_select import score_select
from topkit.kernels.select_topk import select_topk

Codes = dict[str, Tensor]


class Scored(Indexer):
    """A recipe that writes how keys are encoded and how codes are scored, and nothing else."""

    def traits(self) -> Traits:
        return Traits(score_all=True)

    def code_bytes(self, shape: Shape) -> float:
        """Bytes of one key's codes, over all heads of the layer."""
        raise InputError(f"{self} does not state what it costs: it has no `code_bytes`")

    def costs(self, shape: Shape) -> Cost:
        s, code = shape, self.code_bytes(shape)
        # The mean key of those that are encoded about it stands beside the codes.
        mean = 4 * s.Hk * s.D / s.T if getattr(self, "center", False) else 0
        return Cost(
            index=code + mean,
            read=code * s.T,
            operations=s.Hq * s.T * s.D,
            build=s.Hk * s.T * s.D,
            append=s.Hk * s.D,
            lists=s.Hq,
            kept=s.kept,
        )

    def encode(self, keys: Tensor, step: Step) -> Codes:
        """Codes of keys [B, Hk, t, D]: named tensors [B, Hc, t, ...]."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        """Scores [B, Hs, Tq, T] of all codes for queries [B, Hq, Tq, D]."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def write(self, keys: Tensor, codes: Codes, at: int | Tensor, step: Step) -> None:
        """Encode keys [B, Hk, t, D] into codes at the slots `at`, `at` + 1, ...: one launch may do it.

        A tensor `at` [1] comes to recipes that are `fixed`.
        """
        new = encoded(self, keys, step)
        if isinstance(at, Tensor):
            for name, code in codes.items():
                code.index_copy_(2, at, new[name])
            return
        places = {name: code[:, :, at : at + keys.shape[2]] for name, code in codes.items()}
        shapes, due = ({n: list(x.shape) for n, x in some.items()} for some in (new, places))
        if shapes != due:
            raise InputError(
                f"{type(self).__name__}: encode gave {shapes}; expected {due} as before"
            )
        for name, place in places.items():
            place.copy_(new[name])

    def pick(
        self, queries: Tensor, codes: Codes, k: int, step: Step, pool: str | None = None
    ) -> Tensor:
        """Slots of the k best visible keys, of scores pooled over a group's heads where `pool` says how."""
        scores = pooled(scored(self, queries, codes, step), step.kv_heads, pool)
        return select_topk(masked(scores, step), k, **waiting(step))

    def visible_scores(
        self, queries: Tensor, codes: Codes, step: Step, pool: str | None = None
    ) -> Tensor:
        """`score`, pooled over a group's heads where `pool` says how, -inf where a query sees no key.

        Contiguous float32, and the caller's own.
        """
        scores = pooled(scored(self, queries, codes, step), step.kv_heads, pool)
        visible = step.visible(scores.shape[-1], scores.shape[-2], scores.device)
        assert visible is not None
        return scores.masked_fill(~visible, float("-inf")).contiguous()

    def build(self, keys: Tensor, step: Step) -> Index:
        index = ScoredIndex(self)
        index.append(keys, step)
        return index


def waiting(step: Step) -> dict[str, Any]:
    """How scores are selected from: at a step of fixed shapes nothing may wait for the GPU."""
    if step.at is None:
        return {}
    return {"check": step.checks, "backend": step.backend}


def encoded(recipe: Scored, keys: Tensor, step: Step) -> Codes:
    """The codes that a recipe makes of keys [B, Hk, t, D].

    Raises: InputError where they are not one a key.
    """
    codes = recipe.encode(keys, step)
    rows, count, name = keys.shape[0], keys.shape[2], type(recipe).__name__
    if not codes:
        raise InputError(f"{name}: encode gave no codes for {count} keys")
    for part, code in codes.items():
        if code.dim() < 3 or (code.shape[0], code.shape[2]) != (rows, count):
            raise InputError(
                f"{name}: encode gave {part!r} {list(code.shape)} for {count} keys in {rows} rows; "
                f"expected one code a key, [{rows}, H, {count}, ...]"
            )
    return codes


def scored(recipe: Scored, queries: Tensor, codes: Codes, step: Step) -> Tensor:
    """The scores [B, Hs, Tq, T] that a recipe gives to its codes.

    Raises: InputError where they are not one a key.
    """
    scores = recipe.score(queries, codes, step)
    count = next(iter(codes.values())).shape[2]
    rows, asked = queries.shape[0], queries.shape[2]
    if scores.dim() != 4 or (scores.shape[0], *scores.shape[2:]) != (rows, asked, count):
        raise InputError(
            f"{type(recipe).__name__}: score gave {list(scores.shape)} for {asked} queries and {count} "
            f"keys in {rows} rows; expected one score a key, [{rows}, H, {asked}, {count}]"
        )
    return scores


def pick_codes(
    queries: Tensor,
    codes: Tensor,
    k: int,
    step: Step,
    pool: str | None,
    *,
    dtype: str,
    scale: Tensor | None = None,
) -> Tensor:
    """`Scored.pick` of keys that topkit.kernels.codes encoded."""
    count, length = queries.shape[2], codes.shape[2]
    stop = step.stop
    if stop is None and count > 1:
        stop = step.stops(length, count, queries.device)
    seen: dict[str, Any] = {"start": step.start, "stop": stop}
    # A check for NaN would wait for the GPU; unchecked, a list with NaN is all -1.
    how: dict[str, Any] = {"order": "score" if step.ordered else None, "backend": step.backend}
    how["check"] = step.checks
    coding: dict[str, Any] = {"dtype": dtype, "scale": scale}
    if pool is None and queries.shape[1] != codes.shape[1]:
        scores = score_codes(queries, codes, **coding, **seen, backend=step.backend)
        return select_topk(scores, k, **how)
    return score_select(queries, codes, k, pool=pool, **coding, **seen, **how)


def score_visible_codes(
    queries: Tensor,
    codes: Tensor,
    step: Step,
    pool: str | None,
    *,
    dtype: str,
    scale: Tensor | None = None,
) -> Tensor:
    """`Scored.visible_scores` of keys that topkit.kernels.codes encoded."""
    seen: dict[str, Any] = {"start": step.start, "stop": step.stop, "backend": step.backend}
    return score_codes(queries, codes, dtype=dtype, scale=scale, pool=pool, **seen)


def pooled(scores: Tensor, units: int, pool: str | None) -> Tensor:
    """Scores [B, Hs, Tq, T] as one of each unit of their heads; of lists that are fewer, as they are."""
    return reference.pooled(scores.float(), min(units, scores.shape[1]), pool)


def best(scores: Tensor, k: int, step: Step, bytes_per_key: float) -> Selection:
    """The k best visible keys of scores [B, Hs, Tq, T], with the cost of having scored all."""
    slots = select_topk(masked(scores, step), k, **waiting(step))
    if not step.counted:
        return Selection(slots)
    seen = step.seen(scores.shape[-1], scores.shape[-2], scores.device)
    return Selection(slots, keys_scored=seen, bytes_read=seen * bytes_per_key)


def gathered(codes: Tensor, slots: Tensor) -> Tensor:
    """Codes [B, Hc, T, W] of slots [B, Hc, n]."""
    kind = codes.dtype
    if kind == torch.float8_e4m3fn:  # torch gathers none
        codes = codes.view(torch.uint8)
    return codes.gather(2, slots[..., None].expand(-1, -1, -1, codes.shape[3])).view(kind)


def cut_each(chosen: Selection, ks: Sequence[int]) -> dict[int, Selection]:
    """The selection of the largest of `ks`, best first, as those of all of them."""
    return {k: chosen.cut(k) for k in ks}


def masked(scores: Tensor, step: Step) -> Tensor:
    """Scores [B, Hs, Tq, T], -inf where a query does not see the slot."""
    length, count = scores.shape[-1], scores.shape[-2]
    if step.start is None and step.stop is None and count == 1:
        return scores
    stops = step.stops(length, count, scores.device)
    return reference.masked(scores.clone(), step.start, stops)


@dataclass
class ScoredIndex(Index):
    """Codes of every key, in buffers of its own that have room for more.

    No slot is ever overwritten: an index that shares its buffers, forked, moves to new ones.
    """

    recipe: Scored
    codes: Codes = field(default_factory=Codes)
    slots: int = 0
    growing: dict[str, Growing] = field(default_factory=dict[str, Growing])

    @property
    def length(self) -> int:
        return self.slots

    @property
    def nbytes(self) -> int:
        """The room that codes keep behind them counts."""
        stored = {code.untyped_storage().data_ptr(): code for code in self.codes.values()}
        return sum(code.untyped_storage().nbytes() for code in stored.values())

    @property
    def earliest(self) -> Codes:
        """The codes of the first slots, of some rows; there are any."""
        return self.codes

    def whole(self) -> Codes:
        """The codes of all slots and rows."""
        return self.codes

    def since(self, first: int) -> Codes:
        """The codes of the slots from `first` on, of every row."""
        return {name: code[:, :, first:] for name, code in self.codes.items()}

    def of_slots(self, slots: Tensor) -> Codes:
        """The codes [B, Hc, n, W] of slots [B, Hc, n], of every row."""
        return {name: gathered(code, slots) for name, code in self.codes.items()}

    def of_codes(self, make: Callable[[Codes], Tensor]) -> Tensor:
        """What `make` makes of codes, of each slot for itself, slots along the last dimension."""
        return make(self.codes)

    def append(self, keys: Tensor, step: Step) -> None:
        if step.at is not None:
            self.recipe.write(keys, self._roomy(), step.at, step)
            return
        if not self.codes:
            self.codes = encoded(self.recipe, keys, step)
        else:
            grown: Codes = {}
            for name, code in self.codes.items():
                growing = self.growing.setdefault(name, Growing())
                grown[name] = growing.extended(code, code, keys.shape[2])
            self.recipe.write(keys, grown, self.slots, step)
            self.codes = grown
        self.slots += keys.shape[2]

    def truncate(self, length: int, step: Step) -> None:
        self.codes = {name: code[:, :, :length] for name, code in self.codes.items()}
        self.slots = length

    def reorder(self, rows: Tensor) -> None:
        self.codes = {name: code[rows] for name, code in self.codes.items()}

    def fork(self) -> Index:
        self.growing = {}
        return replace(self, codes=dict(self.codes), growing={})

    def room(self) -> Codes | None:
        roomy: Codes = {}
        for name, code in self.codes.items():
            whole = self.growing[name].whole(code) if name in self.growing else None
            if whole is None:
                return None
            roomy[name] = whole
        return roomy

    def reveal(self, length: int) -> None:
        self.codes = {name: self.growing[name].until(length) for name in self.codes}
        self.slots = length

    def _roomy(self) -> Codes:
        codes = self.room()
        assert codes is not None
        return codes

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return self.of_codes(lambda codes: scored(self.recipe, queries, codes, step))

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.chosen(queries, k, step)

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        # The best keys at the largest budget hold the best at the others.
        ordered = replace(step, ordered=step.ordered or len(ks) > 1)
        return cut_each(self.select(queries, max(ks), ordered), ks)

    def candidates(self, queries: Tensor, k: int, step: Step) -> Candidates:
        scores = self.visible_scores(queries, step)
        return Candidates(scores, **cost_at(self, step))

    def visible_scores(self, queries: Tensor, step: Step, pool: str | None = None) -> Tensor:
        return self.recipe.visible_scores(queries, self._roomy(), step, pool)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        """The selection, of scores pooled over a group's heads where `pool` says how."""
        codes = self.codes if step.at is None else self._roomy()
        slots = self.recipe.pick(queries, codes, k, step, pool)
        if not step.counted:
            return Selection(slots)
        seen = step.seen(step.slots(self.slots), queries.shape[2], queries.device)
        cost = self.bytes_per_key(step)
        return Selection(slots, keys_scored=seen, bytes_read=seen * cost)

    def bytes_per_key(self, step: Step) -> float:
        return sum(code[0, :, 0].numel() * code.element_size() for code in self.earliest.values())

# pyright: strict, reportUnknownMemberType=false
"""Twilight: a base proposes freely, and int4 keys say how many of its keys hold the mass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import share
from topkit.indexers.combinator import Combinator
from topkit.indexers.min_max import MinMax, estimates
from topkit.indexers.quest import quest
from topkit.indexers.scored import ScoredIndex, cut_each
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.select_mass import select_mass


@dataclass(frozen=True)
class twilight(Combinator):
    """Keeps the fewest of base's keys that hold `mass` of their softmax by int4 keys, and at most k.

    Base proposes the share `candidates` of the keys that a query sees, whatever k is. int4 is between the
    least and the largest number of each key. Each query head has a list of its own.
    Source: arXiv 2502.02770, section 4; mass and candidates of its public runs with Quest.
    """

    base: Indexer = quest()  # noqa: RUF009 (a frozen value)
    mass: float = 0.85
    # Its index is its own, and never asks a combinator for the candidates of a captured step.
    candidates: float = 0.25  # pyright: ignore[reportIncompatibleMethodOverride]

    family: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv 2502.02770"
    cost: ClassVar[str] = "as base, and reads 1/2 byte a dimension and two numbers of a candidate"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"candidates": [n / 100 for n in range(1, 101)]}
    examples: ClassVar[tuple[str, ...]] = (
        "twilight(quest(page_size=4))",
        "twilight(shared(sign(), per='layer'), mass=0.6, candidates=0.5)",
        "twilight(refine(sign()), candidates=1.0)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "mass")
        share(self, "candidates")
        if self.candidates == 0:
            raise InputError("twilight: candidates must be above 0; got 0: base proposes nothing")

    def traits(self) -> Traits:
        return replace(super().traits(), exhaustive=False, may_come_short=True)

    def costs(self, shape: Shape) -> Cost:
        s, width = shape, self.candidates * shape.T
        base, code = self.base.costs(replace(s, k=width)), math.ceil(s.D / 2) + 8
        return replace(
            base.besides(read=s.Hq * base.kept * code, operations=s.Hq * base.kept * s.D),
            index=base.index + s.Hk * code,
            build=base.build + s.Hk * s.T * s.D,
            append=base.append + s.Hk * s.D,
            lists=s.Hq,
            kept=least(s.k, width),
            estimated=True,
        )

    def builds_as(self) -> Indexer:
        return replace(self, candidates=1.0)

    def build(self, keys: Tensor, step: Step) -> Index:
        codes = ScoredIndex(MinMax())
        codes.append(keys, step)
        return TwilightIndex(self, self.base.build(keys, step.given_to(self.base)), codes)


@dataclass
class TwilightIndex(Index):
    """Base's index, and the codes of every key."""

    recipe: twilight
    base: Index
    codes: ScoredIndex

    @property
    def length(self) -> int:
        return self.base.length

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.codes.nbytes

    def append(self, keys: Tensor, step: Step) -> None:
        self.base.append(keys, step.given_to(self.recipe.base))
        self.codes.append(keys, step)

    def truncate(self, length: int, step: Step) -> None:
        self.base.truncate(length, step.given_to(self.recipe.base))
        self.codes.truncate(length, step)

    def reorder(self, rows: Tensor) -> None:
        self.base.reorder(rows)
        self.codes.reorder(rows)

    def fork(self) -> Index:
        codes = self.codes.fork()
        assert isinstance(codes, ScoredIndex)
        return replace(self, base=self.base.fork(), codes=codes)

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        proposal = self._proposal(queries, step)
        times = queries.shape[1] // proposal.indices.shape[1]
        # Ascending, so that equal estimates go to the lower slot.
        slots = proposal.indices.repeat_interleave(times, 1).sort(-1).values
        scores = estimates(self.codes, queries, slots, step)
        how: Any = {"mass": self.recipe.mass, "scaling": step.scaling, "backend": "torch"}
        places = select_mass(step.capped(scores), k, **how)
        chosen = slots.gather(-1, places.clamp_min(0)).masked_fill(places < 0, -1)
        read = (slots >= 0).sum(-1).float()
        each = self.codes.bytes_per_key(step) / step.kv_heads
        short = min(k, self.length) - chosen.shape[-1]
        return Selection(
            torch.nn.functional.pad(chosen, (0, short), value=-1),
            keys_scored=proposal.keys_scored + read.mean(1),
            bytes_read=proposal.bytes_read + read.sum(1) * each,
        )

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return cut_each(self.select(queries, max(ks), step), ks)

    def _proposal(self, queries: Tensor, step: Step) -> Selection:
        """What base chooses for each query, at the share of what that query sees."""
        inner = replace(step.given_to(self.recipe.base), ordered=False)
        budgets = self._budgets(queries, step)
        several = cast(list[int], budgets.flatten().tolist())
        widths = sorted(set(several))
        proposals = self.base.select_many(queries, widths, inner)
        if len(widths) == 1:
            return proposals[widths[0]]
        widest = proposals[widths[-1]]
        slots = torch.full_like(widest.indices, -1)
        costs = {"keys_scored": torch.zeros(1), "bytes_read": torch.zeros(1)}
        for width, one in proposals.items():
            own = (budgets == width).to(slots.device)
            part = slots[..., : one.indices.shape[-1]]
            part.copy_(one.indices.where(own[:, None, :, None], part))
            for name, cost in costs.items():
                there = torch.as_tensor(getattr(one, name), device=slots.device)
                costs[name] = there.where(own, cost.to(slots.device, there.dtype))
        return replace(widest, indices=slots, **costs)

    def _budgets(self, queries: Tensor, step: Step) -> Tensor:
        """How many keys base proposes for each query [B or 1, Tq], counted on the host where it can be."""
        device = None if step.start is None and step.stop is None else queries.device
        seen = step.stops(self.length, queries.shape[2], device).clamp_max(self.length)
        seen = (seen - step.starts(device)[:, None]).clamp_min(0)
        # A tenth of 30 is 3, whatever the float product says.
        budgets = (seen.double() * self.recipe.candidates).sub(1e-6).ceil()
        return budgets.clamp_min(1).long()

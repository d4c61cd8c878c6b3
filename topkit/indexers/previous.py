# pyright: strict
"""One step's list as the candidates of the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import whole
from topkit.indexers.combinator import Combinator, Wrapped
from topkit.indexers.exact import chosen_scores
from topkit.indexers.refine import cost_in_full
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.compact import compact
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class previous(Combinator):
    """Chooses among the best factor * k keys of the last step and those since, by their exact scores.

    Base proposes anew after every `every` keys, for a budget that was not asked for at the last step, and
    behind a cut. Source: the reused selections of LServe, arXiv 2502.14866, section 3.5, whose interval is
    the default; that a step's list foretells the next one's, arXiv 2604.22312.
    """

    every: int = 4
    factor: int = 2

    family: ClassVar[str] = "steps"
    source: ClassVar[str] = "arXiv 2502.14866"
    cost: ClassVar[str] = "as base in one step of `every`, and reads factor * k keys"
    reads: ClassVar[frozenset[str]] = frozenset({"cache"})
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"factor": range(1, 1025)}
    examples: ClassVar[tuple[str, ...]] = (
        "previous(sign())",
        "previous(quest(page_size=4), every=2, factor=1)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "every", 1)
        whole(self, "factor", 1)

    def traits(self) -> Traits:
        return replace(super().traits(), causal_codes=False, remembers=True)

    def remembered_from(self, steps: int) -> int:
        # What base proposes anew knows nothing of the lists before.
        return 0 if self.base.traits().remembers else max(steps - 1, 0) // self.every * self.every

    def costs(self, shape: Shape) -> Cost:
        s, width = shape, least(self.factor * shape.k, shape.T)
        base = self.base.costs(replace(s, k=width))
        return replace(
            base,
            index=base.index + 8 * s.Hq * width / s.T,
            read=base.read / self.every + s.Hq * width * s.D * s.e,
            operations=base.operations / self.every + s.Hq * width * s.D,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        return PreviousIndex(self, self.base.build(keys, step.given_to(self.base)))


@dataclass(frozen=True)
class Listed:
    """The slots of a step's best keys [B, Hs, 1, n], how many keys there were then, and when base proposed."""

    slots: Tensor
    stop: int
    proposed: int


@dataclass
class PreviousIndex(Wrapped):
    """Base's index, and the last list of each budget."""

    last: dict[int, Listed] = field(default_factory=dict[int, Listed])

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(
            listed.slots.untyped_storage().nbytes() for listed in self.last.values()
        )

    def truncate(self, length: int, step: Step) -> None:
        super().truncate(length, step)
        self.last = {k: listed for k, listed in self.last.items() if listed.stop <= length}

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.last = {k: replace(one, slots=one.slots[rows]) for k, one in self.last.items()}

    def fork(self) -> Index:
        return replace(self, base=self.base.fork(), last=dict(self.last))

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        if queries.shape[2] != 1:
            raise InputError(f"{self.recipe} answers one query at a time; got {queries.shape[2]}")
        before, self.last = self.last, {}
        return {k: self._among(before.get(k), queries, k, step) for k in ks}

    def _among(self, last: Listed | None, queries: Tensor, k: int, step: Step) -> Selection:
        """The k best of the last list and what came since, or of a proposal of base."""
        recipe = self.recipe
        assert isinstance(recipe, previous)
        width = recipe.factor * k
        if last is None or self.length - last.proposed >= recipe.every:
            inner = replace(step.given_to(recipe.base), ordered=False)
            proposal = self.base.select(queries, width, inner)
            proposed = self.length
        else:
            proposal, proposed = self._since(last, step), last.proposed
        slots, heads = proposal.indices, queries.shape[1]
        scores = chosen_scores(queries, slots, step, self.length)
        each = slots.repeat_interleave(heads // slots.shape[1], 1)
        best = select_topk(scores, width, slots=each, backend="torch")
        self.last[k] = Listed(best, self.length, proposed)
        chosen = compact(best, min(k, self.length))
        return Selection(chosen, **cost_in_full(proposal, step))

    def _since(self, last: Listed, step: Step) -> Selection:
        """The last list and the keys since, as a proposal that cost nothing."""
        new = torch.arange(last.stop, self.length, device=last.slots.device)
        starts = step.starts(last.slots.device)[:, None, None, None]
        new = new.where(new >= starts, -1).expand(*last.slots.shape[:3], -1)
        return Selection(torch.cat([last.slots, new], -1))

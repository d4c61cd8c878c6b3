"""A recipe that chooses as another does, and notes what that one's scores say of its lists and of others."""

# pyright: strict
from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from topkit.experiments.compare.lists import Compared, Scores, compared, spread
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.combinator import Combinator
from topkit.indexers.scored import masked


class Note(NamedTuple):
    """Of some queries: ties at the end of the baseline's lists, its lists' mass by its scores, and of other lists.

    Shapes: tied [1, H, n], mass [1, H, n]; of each of the others, what is compared, and their mass [1, Ho, n].
    """

    tied: Tensor
    mass: Tensor
    compared: tuple[Compared, ...]
    masses: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, repr=False)
class noting(Combinator):
    """Chooses as base does; `others` are lists [1, Ho, Tq, w] of all queries, in whose order `notes` come."""

    others: tuple[Tensor, ...] = ()
    notes: list[Note] = field(default_factory=list[Note])

    def __repr__(self) -> str:
        return repr(self.base)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        inner = step.given_to(self.base)
        chosen = index.select(queries, k, inner)
        scores = Scores.of(masked(index.score(queries, inner).float(), step), chosen.indices)
        first = sum(note.tied.shape[2] for note in self.notes)
        place = slice(first, first + queries.shape[2])
        others = [other[:, :, place].to(chosen.indices.device) for other in self.others]
        self.notes.append(
            Note(
                scores.tied,
                scores.mass(chosen.indices),
                tuple(compared(chosen.indices, other, scores) for other in others),
                tuple(_mass(scores, other) for other in others),
            )
        )
        return chosen

    def noted(self) -> Note:
        """What was noted of all queries."""
        notes = self.notes
        return Note(
            torch.cat([note.tied for note in notes], 2),
            torch.cat([note.mass for note in notes], 2),
            tuple(
                Compared(*(torch.cat(parts, 2) for parts in zip(*each, strict=True)))
                for each in zip(*(note.compared for note in notes), strict=True)
            ),
            tuple(
                torch.cat(each, 2) for each in zip(*(note.masses for note in notes), strict=True)
            ),
        )


def has_scores(recipe: Indexer) -> bool:
    """Whether a recipe keeps the best of scores that it has of every key."""
    traits = recipe.traits()
    return traits.score_all and not (traits.weighted or traits.rest or "upstream" in recipe.needs)


def _mass(scores: Scores, lists: Tensor) -> Tensor:
    return scores.mass(spread(lists, max(scores.lse.shape[1], lists.shape[1])))

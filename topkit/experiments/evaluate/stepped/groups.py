"""Which cells go together, in what way, and whether that is worth a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from typing import Any
from weakref import WeakSet

from torch import Tensor
from transformers import PreTrainedModel

from topkit.experiments.evaluate.streams import Prefix
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.runs.cells import Cell, alone
from topkit.experiments.runs.identity import within
from topkit.experiments.tasks import Prompt
from topkit.indexers.base import Indexer
from topkit.indexers.budget import UNCAPPED
from topkit.indexers.faiss_probed import replayed
from topkit.kernels.backend import resolve

# The inputs that a step of fixed shapes has.
OFFERED = frozenset({"cache", "hidden", "latent", "rope", "upstream"})
# The inputs of a step that a graph of it keeps, and those of build alone.
_SEEN = OFFERED | {"values", "upstream", "prefill_queries"}
# Tokens of a question and its answer from which on whole passes cost less than their steps.
MOST = 128


class Way(Enum):
    """How rows go through a step: by what they select; dense, selecting nothing; or dense, and selecting beside it."""

    SPARSE = auto()
    DENSE = auto()
    SHADOW = auto()


def is_fixed(cell: Cell) -> bool:
    """Whether a cell's steps have shapes that stay; full attention's have."""
    if cell.indexer is None:
        return True
    traits = replayed(cell.indexer).traits()
    # What others choose is looked at when it is chosen, which only a host can do.
    if not all(type(one).__module__.startswith("topkit.") for one in within(cell.indexer)):
        return False
    reads_little = cell.indexer.needs <= OFFERED and cell.budget != UNCAPPED
    return traits.fixed and not traits.remembers and reads_little


@dataclass(frozen=True)
class Group:
    """The rows of one recipe, or of full attention, and of these the runs of one budget each."""

    indexer: Indexer | None
    rows: slice
    runs: tuple[tuple[slice, int], ...] = ()

    @cached_property
    def replayed(self) -> Indexer | None:
        """The recipe that chooses at steps of fixed shapes."""
        return None if self.indexer is None else replayed(self.indexer)

    @property
    def ks(self) -> list[int]:
        return sorted({k for _, k in self.runs})

    @property
    def count(self) -> int:
        return self.rows.stop - self.rows.start


def is_hosted(cell: Cell, sparse_from: str) -> bool:
    """Whether a cell's recipe can choose between graphs; after a question that is read dense, of keys alone."""
    if cell.indexer is None or is_fixed(cell) or cell.budget == UNCAPPED:
        return False
    if cell.indexer.traits().rest:  # a graph of a step attends to keys alone
        return False
    seen = _SEEN if sparse_from == "question" else _SEEN - {"hidden", "latent", "rope"}
    return cell.indexer.needs <= seen


def together(cell: Cell) -> tuple[Any, ...]:
    """Cells of one recipe are rows of one stream; at each budget alone, if it reads or remembers its choice."""
    own = cell.indexer is not None and alone(cell.indexer)
    return cell.indexer, cell.budget if own else None


def in_turn(cells: list[Cell], sparse_from: str) -> None:
    """Sort cells as streams come: the fixed ones, those whose hosts choose, the others."""
    cells.sort(key=lambda cell: (not is_fixed(cell), not is_hosted(cell, sparse_from)))


def groups_of(cells: Sequence[Cell], context: int) -> tuple[Group, ...]:
    """The groups of rows that are of these cells, one after the other."""
    groups, first = list[Group](), 0
    while first < len(cells):
        indexer, stop = cells[first].indexer, first
        runs = list[tuple[slice, int]]()
        while stop < len(cells) and cells[stop].indexer == indexer:
            begin, cell = stop, cells[stop]
            while stop < len(cells) and cells[stop] == cell:
                stop += 1
            k = cell.k(context)
            if k is not None:
                runs.append((slice(begin - first, stop - first), k))
        groups.append(Group(indexer, slice(first, stop), tuple(runs)))
        first = stop
    return tuple(groups)


# Models of which no graph could be made.
refused: WeakSet[PreTrainedModel] = WeakSet()


def worthwhile(
    model: PreTrainedModel, prefix: Mapping[int, Prefix], cells: Sequence[Cell], prompt: Prompt
) -> bool:
    """Whether steps are worth a graph: on a GPU with Triton, if recipes are fixed and texts short."""
    keys = next(iter(prefix.values())).cache.keys
    read = max(len(q.ids) + len(q.answer_ids) for q in prompt.questions)
    # A model's own lists come with the call, and are no part of a step.
    plain = not any(past.listed for past in prefix.values()) and model not in refused
    together = len({past.cache.keys.device for past in prefix.values()}) == 1
    able = _can_capture(keys) and plain and together
    return able and read <= MOST and sum(map(is_fixed, cells)) > 1


def _can_capture(keys: Tensor) -> bool:
    return keys.is_cuda and resolve("auto", keys) == "triton"


def packed(call: AttentionCall) -> AttentionCall:
    """A call whose rows lie one behind the other, so that none of them is copied again."""
    queries, keys, values = (x.contiguous() for x in (call.queries, call.keys, call.values))
    return replace(call, queries=queries, keys=keys, values=values)


def rows_of(x: Any, rows: slice | Tensor) -> Any:
    """Some rows of an input; angles that are the same for all rows have one row."""
    if isinstance(x, tuple):
        return tuple(rows_of(part, rows) for part in x)
    return x if x.shape[0] == 1 else x[rows]

# pyright: strict, reportUnknownMemberType=false
"""Searches of the FAISS indexes of all heads, once for all rows that share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from topkit.indexers.faiss_base import FaissRecipe, Hits
from topkit.indexers.faiss_best import Asked
from topkit.indexers.faiss_threads import each
from topkit.indexers.faiss_ties import BEYOND, ordered, settled

# Held while FAISS's own counter tells what one row's searches compared.
COUNTING = Lock()
# A FAISS index for each KV head of a row.
Graphs = tuple[Any, ...]


@dataclass(frozen=True)
class Alike:
    """Rows that share their graphs, which hold the slots before `stop`."""

    graphs: Graphs
    rows: list[int]
    stop: int

    def place(self, count: int) -> Any:
        """The rows as an index of so many."""
        return slice(None) if len(self.rows) == count else self.rows


def alike_of(
    graphs: Sequence[Graphs | None], stops: Sequence[int], rows: Sequence[int]
) -> list[Alike]:
    """Some rows, those that share their graphs together; none that has none."""
    groups: dict[int, Alike] = {}
    for row in rows:
        own = graphs[row]
        if own is not None:
            groups.setdefault(id(own), Alike(own, [], stops[row])).rows.append(row)
    return list(groups.values())


def searched(
    recipe: FaissRecipe, faiss: Any, groups: Sequence[Alike], asked: Asked, k: int, counted: bool
) -> Iterator[tuple[Alike, list[Hits]]]:
    """What the graphs of each head say, of all rows together where FAISS need not count for each."""
    if recipe.counter(faiss) is None or not counted:
        yield from _together(recipe, faiss, groups, asked, k)
        return
    for alone in (replace(alike, rows=[row]) for alike in groups for row in alike.rows):
        with COUNTING:
            before = recipe.counter(faiss) or 0
            ((_, hits),) = _together(recipe, faiss, [alone], asked, k)
            compared = (recipe.counter(faiss) or 0) - before
        each_query = compared / (asked.vectors.shape[1] * asked.vectors.shape[2])
        yield alone, [replace(one, compared=each_query) for one in hits]


def _together(
    recipe: FaissRecipe, faiss: Any, groups: Sequence[Alike], asked: Asked, k: int
) -> list[tuple[Alike, list[Hits]]]:
    vectors = asked.vectors
    heads = vectors.shape[1]

    def search(job: tuple[Alike, int]) -> Hits:
        alike, head = job
        graph = alike.graphs[head]
        own = vectors[alike.place(len(vectors)), head].flatten(0, 1)
        # As many more as there are that some query does not see yet.
        n = min(k + asked.unseen(alike.stop), graph.ntotal)
        if recipe.on_gpu:
            return recipe.search(faiss, graph, own, n)
        if recipe.counter(faiss) is not None:  # a second search would be counted
            return ordered(recipe.search(faiss, graph, own, min(n + BEYOND, graph.ntotal)), n)
        return settled(lambda n: recipe.search(faiss, graph, own, n), n, graph.ntotal)

    jobs = [(alike, head) for alike in groups for head in range(heads)]
    reach = max((recipe.reach(alike.graphs[0]) for alike in groups), default=0)
    done = each(faiss, search, jobs, 0 if recipe.on_gpu else vectors.numel() * reach)
    return [(alike, done[n * heads : (n + 1) * heads]) for n, alike in enumerate(groups)]

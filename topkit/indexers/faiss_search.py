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

# The lock of FAISS's counter of distances, which is one for the whole process.
COUNTING = Lock()
# A FAISS index for each KV head of a row.
Graphs = tuple[Any, ...]


@dataclass(frozen=True)
class Alike:
    """Rows with the same graphs, which index the slots before `stop`."""

    graphs: Graphs
    rows: list[int]
    stop: int

    def place(self, count: int) -> Any:
        """What picks these rows out of a tensor of `count` rows."""
        return slice(None) if len(self.rows) == count else self.rows


def alike_of(
    graphs: Sequence[Graphs | None], stops: Sequence[int], rows: Sequence[int]
) -> list[Alike]:
    """Rows grouped by the graphs that they share; rows without graphs are left out."""
    groups: dict[int, Alike] = {}
    for row in rows:
        own = graphs[row]
        if own is not None:
            groups.setdefault(id(own), Alike(own, [], stops[row])).rows.append(row)
    return list(groups.values())


def searched(
    recipe: FaissRecipe, faiss: Any, groups: Sequence[Alike], asked: Asked, k: int, counted: bool
) -> Iterator[tuple[Alike, list[Hits]]]:
    """The hits of each head: all rows in one search, or a search a row where distances must be counted."""
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
        # Hits that a query does not see are dropped afterwards: so many more are searched for.
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

"""The indexes of one haystack: of every recipe and layer, built once, and the rows that begin with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard

import torch

from topkit.experiments.decode.driver import Driver
from topkit.experiments.evaluate.streams import Prefix, Stream
from topkit.experiments.runs.cells import Cell
from topkit.indexers.base import Index, Indexer
from topkit.indexers.branched import branched
from topkit.indexers.combinator import Combinator, Wrapped

# Elements of a layer's keys, in all rows of a recipe, whose codes are copied for each row, to be appended
# to in place. Of more of them the prefix's codes are held once, and appended to apart.
COPIED = 1 << 26


class Built:
    """What recipes built of a prefix, by layer; those that choose from the same codes share them."""

    def __init__(self, prefix: Mapping[int, Prefix], seed: int) -> None:
        self.prefix, self.seed = prefix, seed
        self._indices: dict[Indexer, dict[int, Index]] = {}

    def stream(self, cells: Sequence[Cell], questions: int, context: int) -> Stream:
        """The rows of one recipe at its budgets, or of full attention: `questions` for each cell."""
        rows = [cell for cell in cells for _ in range(questions)]
        indices, indexer = dict[int, Index](), cells[0].indexer
        if indexer is not None:
            for layer, index in self.of(indexer).items():
                indices[layer] = self.rows(index, layer, len(rows))
        return Stream(rows, context, indices, self.seed)

    def of(self, indexer: Indexer) -> dict[int, Index]:
        if indexer not in self._indices:
            like = indexer.builds_as()
            if wraps(indexer):
                base = self.of(indexer.base)
                indices: dict[int, Index] = {n: Wrapped(indexer, one) for n, one in base.items()}
            elif like != indexer:
                indices = {n: one.read_as(indexer) for n, one in self.of(like).items()}
            else:
                indices = self._built(indexer)
            self._indices[indexer] = indices
        return self._indices[indexer]

    def _built(self, indexer: Indexer) -> dict[int, Index]:
        """An index of each layer; those that hosts make, in as many threads as torch uses."""
        unlisted = "native" not in indexer.needs
        layers = {n: past for n, past in self.prefix.items() if past.listed or unlisted}
        workers = torch.get_num_threads() if indexer.requires == "faiss" else 1
        if workers == 1:
            return {n: self._build(indexer, n, past) for n, past in layers.items()}
        with ThreadPoolExecutor(workers) as pool:
            made = pool.map(lambda one: self._build(indexer, *one), layers.items())
            return dict(zip(layers, made, strict=True))

    def _build(self, indexer: Indexer, layer: int, prefix: Prefix) -> Index:
        heads, softmax = prefix.cache.heads, prefix.softmax
        driver = Driver(indexer, layer, prefix.scaling, heads, self.seed, softmax=softmax)
        return driver.build(prefix.cache, prefix.inputs)

    def rows(self, index: Index, layer: int, rows: int) -> Index:
        """An index of `rows` streams behind the prefix."""
        keys = self.prefix[layer].cache.keys
        if keys.numel() * rows > COPIED:
            return branched(index, rows)
        twin = index.fork()
        twin.reorder(torch.zeros(rows, dtype=torch.long, device=keys.device))
        return twin


def wraps(indexer: Indexer) -> TypeGuard[Combinator]:
    """Whether a recipe builds nothing beside what its base builds."""
    plain = isinstance(indexer, Combinator) and type(indexer).build is Combinator.build
    return plain and not indexer.traits().remembers

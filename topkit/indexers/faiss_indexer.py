# pyright: strict
"""The family of recipes that fill one FAISS index for each row and KV head."""

from __future__ import annotations

from torch import Tensor

from topkit.indexers.base import Index, Step
from topkit.indexers.faiss_base import FaissRecipe
from topkit.indexers.faiss_index import FaissIndex
from topkit.indexers.mean_key import mean_key


class FaissIndexer(FaissRecipe):
    """A recipe that says how an index of one head is made, filled and searched, and nothing else."""

    def build(self, keys: Tensor, step: Step) -> Index:
        index = FaissIndex(self, keys.shape[1], mean_key(keys, step) if self.center else None)
        index.append(keys, step)
        return index

"""What earlier layers of a pass selected, for recipes that read it in later ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.indexers.base import Indexer, Selection


class Upstream(threading.local):
    """The selections of this thread's pass by layer, for recipes that read them; for others it is empty."""

    def __init__(self, recipe: Indexer) -> None:
        self._recipe, self._read = recipe, "upstream" in recipe.needs
        self._by_layer: dict[int, Selection] = {}

    def of(self, layer: int) -> Selection | None:
        """What the recipe reads at `layer`. Raises: InputError where its source selected nothing."""
        source = self._recipe.upstream_layer(layer) if self._read else None
        if source is None:
            return None
        if source not in self._by_layer:
            raise InputError(
                f"{self._recipe} reads in layer {layer} what layer {source} selected, which selected "
                "nothing in this pass"
            )
        return self._by_layer[source]

    def keep(self, layer: int, parts: Sequence[Selection]) -> None:
        """Keep the selections of all queries of a call, which come in pieces."""
        if self._read:
            self._by_layer[layer] = _joined(parts)


def _joined(parts: Sequence[Selection]) -> Selection:
    """The slots of some queries each, and their weights, as one of all; narrow lists are filled with -1."""
    width = max(part.indices.shape[-1] for part in parts)

    def wide(lists: Sequence[Tensor], fill: float) -> Tensor:
        return torch.cat([pad(x, (0, width - x.shape[-1]), value=fill) for x in lists], 2)

    weights = [part.log_weights for part in parts if part.log_weights is not None]
    return Selection(wide([p.indices for p in parts], -1), wide(weights, 0.0) if weights else None)

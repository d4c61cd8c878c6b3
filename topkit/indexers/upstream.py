# pyright: strict
"""Which layers a recipe reads the selections of, and whether they select."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from topkit.errors import InputError
from topkit.indexers.base import Indexer


def upstream_layers(recipe: Indexer, layer: int) -> list[int]:
    """The layers that a selection in `layer` is made from, the one that is read first; mostly none.

    Raises: InputError by the recipe's name for a layer that is no earlier one.
    """
    layers: list[int] = []
    while "upstream" in recipe.needs:
        above = recipe.upstream_layer(layer)
        if above is None:
            break
        if not 0 <= above < layer:
            raise InputError(
                f"{recipe}.upstream_layer({layer}) must be an earlier layer, or None; got {above}"
            )
        layers.append(above)
        layer = above
    return layers


def without_source(
    recipe: Indexer, layers: Iterable[int], selecting: Collection[int], where: str
) -> str:
    """Which of some layers reads what no layer of `where` selects, as a sentence; "" where none does."""
    for layer in sorted(layers):
        for source in upstream_layers(recipe, layer):
            if source not in selecting:
                return (
                    f"{recipe} reads in layer {layer} what layer {source} selected, which is none of the "
                    f"layers that {where} selects in, {sorted(selecting)}; name source layers that are"
                )
    return ""

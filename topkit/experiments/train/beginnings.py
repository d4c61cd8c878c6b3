"""What index weights begin as: drawn, or those of a file."""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.lightning_weights import Weights


def fresh(width: int, heads: int, dim: int, random: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * width**-0.5

    return {
        "wq": normal(heads * dim, width),
        "wk": normal(dim, width),
        "norm": torch.ones(dim),
        "norm_bias": torch.zeros(dim),
        "gates": normal(heads, width),
    }


def from_file(tensors: dict[str, Tensor], begin: Weights, layer: int, heads: int) -> None:
    """Put the weights of a file over fresh ones; heads beyond its own have gates of zero."""
    own = begin.layer(layer)
    # A score is divided by the root of the number of heads, of which there may be more now.
    factor = (heads / begin.heads) ** 0.5
    for name, x in own.tensors.items():
        place = tensors[name]
        if x.shape[1:] != place.shape[1:] or len(x) > len(place) or (name != "wq" and name != "gates" and len(x) != len(place)):  # fmt: skip
            raise InputError(
                f"{begin.path} is of another shape: {layer}.{name} is {tuple(x.shape)}, of {tuple(place.shape)} "
                "asked for; begin from a file of this model with as many dimensions and no more heads"
            )
        if name == "gates":
            place.zero_()
        place[: len(x)] = x.cpu() * (factor if name == "gates" else 1)

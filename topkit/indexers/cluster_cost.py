# pyright: strict
"""What clusters of keys cost, spread evenly."""

from __future__ import annotations

from typing import ClassVar, Protocol

from topkit.indexers.stated_cost import Cost, Shape, least


class Clustering(Protocol):
    """What the costs of a recipe's clusters depend on."""

    sink: int
    window: int
    update: int
    iterations: int

    valued: ClassVar[bool]
    grouped: ClassVar[bool]

    @property
    def ratio(self) -> float: ...


def cluster_costs(recipe: Clustering, shape: Shape) -> Cost:
    """The costs of clusters, a `ratio` of the keys between sinks and window in number."""
    s, keys = shape, shape.T - least(shape.T, recipe.sink + recipe.window)
    clusters, lists = recipe.ratio * keys, s.Hk if recipe.grouped else s.Hq
    centroid, mean = s.D * s.e + 8, s.Dv * s.e if recipe.valued else 0
    products = s.Hk * recipe.iterations * recipe.ratio * s.D
    return Cost(
        index=s.Hk * (4 * keys + clusters * (centroid + mean)) / s.T,
        read=s.Hk * clusters * centroid + 4 * lists * least(s.k, keys),
        operations=s.Hq * clusters * s.D,
        build=products * keys * keys,
        append=products * recipe.update,
        lists=lists,
        kept=s.kept,
        estimated=True,
    )

"""Indexers mended in one KV group at a time, of the groups that a model has."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from topkit.errors import InputError
from topkit.experiments.model.compatibility import no_group, probe
from topkit.experiments.model.load import load_once
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.kinds import kind_of
from topkit.indexers import exact_group
from topkit.indexers.base import Indexer
from topkit.indexers.budget import Budget

Indexers = tuple[tuple[Indexer, tuple[Budget, ...] | None], ...]
# Layer, and KV group of it.
Group = tuple[int, int]


def in_each_group(
    indexers: Indexers, wanted: Sequence[Group], model: str, device: str | None, dtype: str | None
) -> Indexers:
    """The indexers, and those that are no oracles with exact selection in one group each; none named: all groups.

    Raises: InputError for a group that the model has not.
    """
    groups = groups_of(model, tuple(wanted), device, dtype)
    mended = [
        (exact_group(base, layer, group), own)
        for base, own in indexers
        if kind_of(Cell(base)) != "oracle" and not isinstance(base, exact_group)
        for layer, group in groups
    ]
    return tuple(dict.fromkeys((*indexers, *mended)))


@lru_cache(maxsize=16)
def groups_of(
    model: str, wanted: tuple[Group, ...], device: str | None, dtype: str | None
) -> tuple[Group, ...]:
    """The groups of a model in which something is selected, or those of them that are wanted."""
    records = probe(load_once(model, device, dtype)[0], purpose="evaluated", softmax=True)
    for layer, group in wanted:
        if reason := no_group(records, layer, group):
            raise InputError(f"groups: {layer}/{group}: {model} has none: {reason}")
    every = [(n, g) for n, one in records.items() for g in range(one.keys.shape[1])]
    return wanted or tuple(one for one in sorted(every) if not no_group(records, *one))

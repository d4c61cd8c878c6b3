# pyright: strict
"""The law of what a recipe states that it costs."""

from __future__ import annotations

import math

import torch

from topkit.contract.draw import RANDOM, Draw
from topkit.contract.memory import bytes_in_reach, tensors_in_reach
from topkit.contract.reads import Reads
from topkit.contract.streams import Stream
from topkit.indexers.base import Index, Indexer, Selection
from topkit.indexers.stated_cost import Cost, Shape, stated

# Where costs depend on the keys: the most that one may differ, as a factor, from that of evenly spread keys.
_FAR = 4


def stated_costs(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """The index's bytes, the bytes read and the lists are those that the recipe states, if it states any.

    Reads are counted operation by operation, unless the index is a library's own.
    """
    if "upstream" in indexer.needs and indexer.upstream_layer(draw.layer) is not None:
        return
    half = draw(indexer, length=97, heads=(4, 1)).to(torch.bfloat16)
    for one, k in ((draw(indexer, length=65, heads=(6, 2)), 5), (half, 3)):
        shape = _shape(one, k)
        cost = stated(indexer, shape)
        if cost is None:
            return
        index, last = one.build(indexer), slice(one.length - 1, one.length)
        step = one.step(indexer, last, one.length)
        inputs = [one.keys, one.values]
        if indexer.traits().remembers:  # its first step still chooses among the whole prompt
            index.select(one.queries[:, :, last], k, step)
        with Reads([*tensors_in_reach(index), *inputs]) as reads:
            selection = index.select(one.queries[:, :, last], k, step)
        _compare(indexer, one, index, selection, cost, reads.total)


def _compare(
    indexer: Indexer, one: Stream, index: Index, chosen: Selection, cost: Cost, read: int
) -> None:
    rows = one.keys.shape[0]
    near = cost.estimated or indexer.traits().may_come_short
    _require("holds", index.nbytes / rows, cost.index * one.length, cost.estimated)
    reported = torch.as_tensor(chosen.bytes_read).double().mean()
    _require("reports that it reads", float(reported), cost.read, near)
    _, opaque = bytes_in_reach(index, set())
    if not opaque:
        # Long lists are read by a product over all keys, each key once.
        real = cost.read if cost.read / _FAR <= read / rows < cost.read else read / rows
        _require("reads", real, cost.read, near)
    lists = max(chosen.indices.shape[1], one.keys.shape[1])
    assert lists == cost.lists, f"it states {cost.lists:g} lists; its selections have {lists}"
    longest = int((chosen.indices >= 0).sum(-1).max())
    most = cost.kept * (_FAR if cost.estimated else 1)
    assert longest <= most, f"it states {cost.kept:g} keys a list; one has {longest}"
    for name in ("operations", "build", "append"):
        value = getattr(cost, name)
        assert math.isfinite(value) and value >= 0, f"it states {name} of {value}"


def _require(does: str, real: float, said: float, near: bool) -> None:
    """Require two numbers of bytes to be the same, or near where they depend on the keys."""
    far = _FAR if near else 1 + 1e-6
    same = real <= far * said and said <= far * real
    assert same, f"it {does} {real:g} bytes a row; it states {said:g}"


def _shape(one: Stream, k: int) -> Shape:
    (_, heads, length, width), values = one.keys.shape, one.values.shape[3]
    size = one.keys.element_size()
    return Shape(one.queries.shape[1], heads, width, values, length, k, size)

# pyright: strict
"""Indexes whose buffers have room for all slots to come: they keep their addresses and are filled anew."""

from __future__ import annotations

from dataclasses import replace

import torch

from topkit.indexers.base import Index
from topkit.indexers.channels import ChannelIndex
from topkit.indexers.combinator import Wrapped
from topkit.indexers.faiss_index import FaissIndex
from topkit.indexers.faiss_probed import ProbedIndex
from topkit.indexers.growing import Growing
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.scored import ScoredIndex
from topkit.indexers.stateless import SlotCount
from topkit.indexers.tensor_scale import ScaledIndex


def roomy(index: Index, rows: int, room: int, device: torch.device) -> Index | None:
    """An index of `rows` copies of another's one row, with buffers of `room` slots; None for other kinds of index.

    device: where its steps are.
    """
    if isinstance(index, Wrapped):
        base = roomy(index.base, rows, room, device)
        return None if base is None else replace(index, base=base)
    if isinstance(index, FaissIndex):
        return ProbedIndex.of(index, rows, room, device)
    # Subclasses from elsewhere may have tensors that are not known here.
    if isinstance(index, SlotCount) and type(index).__module__.startswith("topkit."):
        return index.fork()
    if type(index) not in (ScoredIndex, MeanIndex, ChannelIndex, ScaledIndex, PagedIndex):
        return None
    twin = index.fork()
    twin.reorder(torch.zeros(rows, dtype=torch.long))
    if isinstance(twin, PagedIndex):
        twin.pages, twin.growing = _grown(twin.pages, -(-room // twin.recipe.page_size) + 1)
    elif isinstance(twin, ScoredIndex):
        twin.codes, twin.growing = _grown(twin.codes, room)
    if isinstance(twin, ScaledIndex):  # its rows are one until they are written to
        twin.scale = twin.scale.clone()
        twin.mean = None if twin.mean is None else twin.mean.clone()
    return twin


def refill(index: Index, other: Index) -> None:
    """Copy the tensors of an index of one row into every row of one that is `roomy`."""
    if isinstance(index, Wrapped) and isinstance(other, Wrapped):
        refill(index.base, other.base)
    if isinstance(index, ProbedIndex) and isinstance(other, FaissIndex):
        index.refill(other)
    if isinstance(index, PagedIndex) and isinstance(other, PagedIndex):
        _put(index.room(), other.pages)
    if isinstance(index, ScoredIndex) and isinstance(other, ScoredIndex):
        _put(index.room(), other.codes)
    if isinstance(index, MeanIndex) and isinstance(other, MeanIndex):
        index.mean.copy_(other.mean)
    if isinstance(index, ChannelIndex) and isinstance(other, ChannelIndex):
        index.table.copy_(other.table)
    if isinstance(index, ScaledIndex) and isinstance(other, ScaledIndex):
        index.scale.copy_(other.scale)
        if index.mean is not None and other.mean is not None:
            index.mean.copy_(other.mean)


def _grown(
    tensors: dict[str, torch.Tensor], room: int
) -> tuple[dict[str, torch.Tensor], dict[str, Growing]]:
    """Tensors as the beginnings of buffers of `room` slots, and these buffers."""
    shown, growing = dict[str, torch.Tensor](), dict[str, Growing]()
    for name, tensor in tensors.items():
        growing[name] = Growing(share=0.0, multiple=1)
        growing[name].extended(tensor, tensor, room - tensor.shape[2])
        shown[name] = growing[name].until(tensor.shape[2])
    return shown, growing


def _put(room: dict[str, torch.Tensor] | None, tensors: dict[str, torch.Tensor]) -> None:
    assert room is not None
    for name, tensor in tensors.items():
        room[name][:, :, : tensor.shape[2]] = tensor

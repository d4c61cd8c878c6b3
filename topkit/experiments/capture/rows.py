"""One layer's tensors as samples: rows of a batch, sequences end to end, or those of a block table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.layout import arranged, form_of, require_layout, require_likely
from topkit.experiments.capture.lengths import Bounds, packed, padded, positions_of, whole_numbers
from topkit.experiments.capture.paged_cache import FORMATS, pages_of, require_table, unpacked
from topkit.experiments.capture.scaling import scaling_of
from topkit.experiments.capture.stored import FP8, floats, scales_like
from topkit.experiments.capture.tensors import SHAPES, LayerTensors


@dataclass(frozen=True)
class Said:
    """What is said of all layers of a dump, beside their tensors; None where it is not."""

    layout: str | None = None
    scaling: Any = None
    lengths: Any = None
    positions: Any = None
    cu_seqlens: Any = None
    cu_seqlens_q: Any = None
    block_table: Any = None


@dataclass(frozen=True)
class Sample:
    """One sample of a layer as it lies in the dump: views of tensors and of scales, pages of a cache."""

    number: int
    layer: int
    tensors: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    positions: Tensor
    length: int
    scaling: Any = None
    cache: Tensor | None = None
    pages: Tensor | None = None

    def tensors_of(self, meta: bool = False) -> LayerTensors:
        """What attention saw; with meta, its shapes alone.

        Raises: InputError for shapes that do not fit each other, and for scales that are none.
        """
        device = torch.device("meta") if meta else None
        made: dict[str, Tensor] = {}
        for name, x in self.tensors.items():
            scale = self.scales.get(name)
            codes = x.to(device) if meta else x
            scale = scale.to(device) if meta and scale is not None else scale
            if scale is None and name == "index_queries" and x.dtype in (*FP8, torch.uint8):
                # Engines multiply the weights by it: DeepGEMM's kernels take no scale of queries in fp8.
                scale = codes.new_ones(*x.shape[:-1], 1, dtype=torch.float32)
            made[name] = _plain(name, floats(name, codes, scale))
        if self.cache is not None:
            made["index_keys"] = self._from_pages(meta)
        made["positions"] = self.positions
        if "queries" in made:
            made["scaling"] = torch.tensor(scaling_of(self.scaling, made), dtype=torch.float64)
        return LayerTensors.from_tensors(self.number, self.layer, made)

    def _from_pages(self, meta: bool) -> Tensor:
        assert self.cache is not None and self.pages is not None
        if meta:
            width = FORMATS[self.cache.shape[2]]
            return torch.empty(1, 1, self.length, 128 if width == 64 else width, device="meta")
        return unpacked(self.cache, self.pages, self.length)


def samples_of(
    layer: int, named: Mapping[str, Tensor], scales: Mapping[str, Tensor], said: Said
) -> Iterator[Sample]:
    """The samples of one layer, padding cut off. Raises: InputError for what does not fit."""
    layout = require_layout(said.layout)
    tensors, scales = dict(named), _of_vectors(named, scales)
    cache = tensors.pop("index_cache", None)
    if (cache is None) != (said.block_table is None):
        one, other = (
            ("block_table", "index_cache") if cache is None else ("index_cache", "block_table")
        )
        raise InputError(f"{one} goes with {other}: give both, with lengths")
    table = None
    if cache is not None:
        cache, table, layout = pages_of(cache), _table(said), said.layout or "bthd"
        tensors, scales = (_by_sequence(group, len(table), layout) for group in (tensors, scales))
    tensors, scales = (_one_token(group, tensors, layout) for group in (tensors, scales))
    tensors, scales = _arranged(layer, tensors, scales, layout)
    require_likely(tensors, layout, said.layout is not None)
    bounds = _bounds(tensors, said, layout, table)
    if cache is not None and table is not None:
        require_table(table, [one.length for one in bounds], *cache.shape[:2])
    if len(bounds) > 1 and layout == "thd" and "prefill_queries" in tensors:
        raise InputError("prefill_queries are of one sequence; give each sequence for itself")
    for number, one in enumerate(bounds):
        own = {name: one.cut(name, x) for name, x in tensors.items()}
        yield Sample(
            number,
            layer,
            own,
            {name: one.cut(name, x) for name, x in scales.items()},
            positions_of(said.positions, one, len(bounds), _count(own)),
            one.length,
            said.scaling,
            cache,
            None
            if table is None or cache is None
            else table[number, : -(-one.length // cache.shape[1])],
        )


def _of_vectors(named: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in scales:
        if name not in named:
            raise InputError(f"there are scales of {name}, and no {name}")
    return {name: scales_like(name, x, named[name]) for name, x in scales.items()}


def _table(said: Said) -> Tensor:
    if said.lengths is None:
        raise InputError(
            "a paged index_cache wants lengths (seq_lens), the tokens of each sequence"
        )
    table = whole_numbers("block_table", said.block_table)
    return table[None] if table.ndim == 1 else table


def _by_sequence(group: dict[str, Tensor], rows: int, layout: str) -> dict[str, Tensor]:
    """Queries [B, H, D] of one decoding step as [B, 1, H, D], weights [B n, H] of some as [B, n, H]."""
    made = dict(group)
    if layout == "bthd":
        for name, x in group.items():
            if name in ("queries", "index_queries") and x.ndim == 3 and len(x) == rows:
                made[name] = x[:, None]
            if name in ("index_weights", "native") and x.ndim == 2 and len(x) % rows == 0:
                made[name] = x.unflatten(0, (rows, -1))
    return made


def _one_token(
    group: dict[str, Tensor], tensors: Mapping[str, Tensor], layout: str
) -> dict[str, Tensor]:
    """Queries [B, H, D] beside keys [B, ...] of a batch, of one decoding step: with a dimension of one token."""
    made = dict(group)
    for asks, keeps in (("queries", "keys"), ("index_queries", "index_keys")):
        x, y = made.get(asks), tensors.get(keeps)
        if x is None or y is None or (x.ndim, y.ndim) != (3, 4) or len(x) != len(y):
            continue
        made[asks] = x.unsqueeze(2 if layout == "bhtd" else 1)
        if asks == "index_queries" and made.get("index_weights", x).ndim == 2:
            made["index_weights"] = made["index_weights"].unsqueeze(1)
    return made


def _arranged(
    layer: int, named: Mapping[str, Tensor], scales: Mapping[str, Tensor], layout: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    asked = named.get("queries", named.get("index_queries"))
    assert asked is not None
    batched = layout != "thd" and asked.ndim == 4
    try:
        tensors = {name: arranged(name, x, layout, batched) for name, x in named.items()}
        scales = {name: arranged(name, x, layout, batched) for name, x in scales.items()}
    except InputError as error:
        raise InputError(f"layer {layer}: {error}") from None
    rows = len(tensors["queries" if "queries" in tensors else "index_queries"])
    for name, x in tensors.items():
        if len(x) != rows:
            form = form_of(name, "bhtd")
            raise InputError(
                f"layer {layer}: {name} must be [{', '.join(['B', *form[1:]])}] with the batch of the "
                f"queries {list(asked.shape)}; got {list(named[name].shape)}"
            )
    return tensors, scales


def _bounds(
    tensors: Mapping[str, Tensor], said: Said, layout: str, table: Tensor | None
) -> list[Bounds]:
    keys = tensors.get("keys", tensors.get("index_keys"))
    width = None if keys is None else keys.shape[2]
    count = _count(tensors)
    if layout == "thd":
        return packed(said.lengths, said.cu_seqlens, said.cu_seqlens_q, width, count)
    if said.cu_seqlens is not None or said.cu_seqlens_q is not None:
        raise InputError(
            f"cu_seqlens is of sequences end to end, layout=thd; in layout {layout} give lengths, the real "
            "keys of each row"
        )
    rows = len(tensors.get("queries", tensors.get("index_queries", ())))
    return padded(said.lengths, rows, width if table is None or width is not None else None)


def _count(tensors: Mapping[str, Tensor]) -> int:
    name = "queries" if "queries" in tensors else "index_queries"
    return tensors[name].shape[SHAPES[name].split().index("Tq")]


def _plain(name: str, x: Tensor) -> Tensor:
    if name == "native":
        return x.int()
    return x.float() if x.dtype == torch.float64 else x

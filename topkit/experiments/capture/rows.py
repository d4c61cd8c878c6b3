"""One layer's tensors as samples: rows of a batch, sequences end to end, or those of a block table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.layout import arranged, form_of, require_layout, require_likely
from topkit.experiments.capture.lengths import Bounds, packed, padded, positions_of, whole_numbers
from topkit.experiments.capture.one_step import by_sequence, one_token
from topkit.experiments.capture.paged_cache import pages_of, require_table
from topkit.experiments.capture.sample import Sample
from topkit.experiments.capture.stored import scales_like
from topkit.experiments.capture.tensors import SHAPES


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


def samples_of(
    layer: int, named: Mapping[str, Tensor], scales: Mapping[str, Tensor], said: Said
) -> Iterator[Sample]:
    """The samples of one layer, padding cut off. Raises: InputError for what does not fit."""
    layout = require_layout(said.layout)
    tensors, scales = dict(named), _of_vectors(named, scales)
    cache = tensors.pop("index_cache", None)
    asked = named["queries" if "queries" in named else "index_queries"]
    if (cache is None) != (said.block_table is None):
        one, other = (
            ("block_table", "index_cache") if cache is None else ("index_cache", "block_table")
        )
        raise InputError(f"{one} goes with {other}: give both, with lengths")
    table = None
    if cache is not None:
        cache, table, layout = pages_of(cache), _table(said), said.layout or "bthd"
        rows = len(asked) if asked.ndim else 0
        tensors, scales = (by_sequence(group, max(rows, 1), layout) for group in (tensors, scales))
    tensors, scales = (one_token(group, tensors, layout) for group in (tensors, scales))
    tensors, scales = _arranged(layer, tensors, scales, layout)
    require_likely(tensors, layout, said.layout is not None, asked.ndim == 4)
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
    return padded(said.lengths, rows, width, count)


def _count(tensors: Mapping[str, Tensor]) -> int:
    name = "queries" if "queries" in tensors else "index_queries"
    return tensors[name].shape[SHAPES[name].split().index("Tq")]

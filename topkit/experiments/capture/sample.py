"""One sample of a layer as it lies in a dump, and as attention saw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topkit.experiments.capture.lengths import require_slots
from topkit.experiments.capture.paged_cache import FORMATS, unpacked
from topkit.experiments.capture.scaling import scaling_of
from topkit.experiments.capture.stored import FP8, floats
from topkit.experiments.capture.tensors import LayerTensors


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
        if "native" in made and not meta:
            require_slots(made["native"], self.positions, self.length)
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


def _plain(name: str, x: Tensor) -> Tensor:
    if name == "native":
        return x.int()
    return x.float() if x.dtype == torch.float64 else x

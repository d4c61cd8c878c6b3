"""Dense attention in the place of an indexer: the baseline of steps that read few keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.experiments.decode.layer_index import LayerIndex
from topkit.experiments.decode.reader import Call, Reader
from topkit.indexers.base import Index, Step
from topkit.kernels.gather_attention import attend_all
from topkit.kernels.precision import full_precision

# Its name where an indexer's is expected.
DENSE = "dense"


@dataclass(frozen=True)
class DenseReader(Reader):
    """Reads every key by the same cache, room and graph as an indexer's steps.

    Its indexer has no state and never selects.
    """

    @full_precision()
    def read(
        self,
        layer: LayerIndex,
        call: Call,
        prompt: int,
        inside: Tensor | None = None,
        answer: bool = True,
    ) -> Tensor | None:
        assert layer.index is not None
        layer.index.append(call.keys[:, :, layer.index.length :], Step())
        stops = torch.arange(call.cached + prompt, call.keys.shape[2], device=call.keys.device) + 1
        return self._attend(call, call.queries[:, :, prompt:], stops[None]) if answer else None

    @full_precision()
    def read_at(self, index: Index, call: Call, new: Tensor, at: Tensor, stop: Tensor) -> Tensor:
        return self._attend(call, call.queries, stop)

    def _attend(self, call: Call, queries: Tensor, stop: Tensor) -> Tensor:
        how = {"scaling": call.scaling, "start": call.start, "stop": stop, "softmax": call.softmax}
        return attend_all(queries, call.keys, call.values, **how, backend=self.backend)  # type: ignore[arg-type]

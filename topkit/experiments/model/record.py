"""What attention sees while a transformers model runs, recorded, and checked to be all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topkit.errors import InputError
from topkit.experiments.model.attention import switched_attention
from topkit.experiments.model.attention_call import AttentionCall
from topkit.experiments.model.own_indexer import undriven
from topkit.kernels.gather_attention import PLAIN, Softmax

# Rows that the check recomputes, at most: their scores are one row of T floats a head each.
CHECKED = 32
NOT_SWITCHED = "it does not attend through transformers' AttentionInterface"


@dataclass
class LayerRecord:
    """One layer's call of attention: queries at the positions that are wanted, all keys and values.

    `output` [1, Tq, Hq, Dv] is what attention gave there; `window` the width of the sliding window;
    `softmax` its sinks and softcap; `chosen` [1, Tq, k] the slots that the model's own indexer let through; `hidden`, `latent` and
    `rope` the layer's other inputs, where they are recorded.
    """

    module: nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    output: Tensor
    window: int | None = None
    softmax: Softmax = PLAIN
    chosen: Tensor | None = None
    hidden: Tensor | None = None
    latent: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None


class Recorder:
    """Keeps a record of each of `layers` (None: every one) during one forward of one sequence."""

    def __init__(
        self, positions: Tensor, layers: Sequence[int] | None, softmax: bool = False
    ) -> None:
        self.positions, self.layers, self.softmax = positions, layers, softmax
        self.records: dict[int, LayerRecord] = {}
        # The modules that were handed a list by the model's own indexer.
        self.listed: set[nn.Module] = set()
        self._passed: set[int] = set()

    def attend(self, call: AttentionCall) -> Tensor:
        """The model's own output, while the call is recorded."""
        if call.indices is not None:
            self.listed.add(call.module)
        call.require_plain(indices=True, softmax=self.softmax)
        layer, output = call.layer, call.dense()
        if layer in self._passed:
            name = type(call.module).__name__
            raise InputError(f"layer {layer} ({name}) attended twice in one pass")
        self._passed.add(layer)
        if self.layers is None or layer in self.layers:
            at = self.positions.to(output.device)
            self.records[layer] = LayerRecord(
                call.module,
                call.queries.index_select(2, at),
                call.keys,
                call.values,
                call.scaling,
                output.index_select(1, at),
                call.window,
                call.softmax.detached(),
                None if call.indices is None else call.indices.index_select(1, at),
                **call.inputs,
            )
        return output


def record(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    layers: Sequence[int] | None = None,
    inputs: bool = False,
    purpose: str = "captured",
    softmax: bool = False,
) -> dict[int, LayerRecord]:
    """Run the model once over ids [1, T] and return what attention saw, by layer.

    `inputs`: hidden states, query latent and RoPE are recorded as well. `softmax`: it may have sinks and a
    softcap.
    Raises: InputError naming the model that cannot be captured (or what `purpose` says), and why.
    """
    name, recorder = type(model).__name__, Recorder(positions, layers, softmax)
    # Weights that are offloaded say that they are nowhere; what loads them moves the tokens as well.
    device = "cpu" if model.device.type == "meta" else model.device
    with switched_attention(model, recorder.attend, inputs=inputs):
        try:
            # The decoder alone: logits of every token would cost more than all that is kept.
            model.base_model(input_ids=ids.to(device), use_cache=False)
        except InputError as error:
            # What an indexer of its own does to attention is said of the indexer.
            why = "" if recorder.listed else undriven(model, ())
            raise InputError(f"{name} cannot be {purpose}: {why or error}") from None
    if not recorder.records:
        raise InputError(f"{name} cannot be {purpose}: {NOT_SWITCHED}")
    if why := undriven(model, recorder.listed):
        raise InputError(f"{name} cannot be {purpose}: {why}")
    return recorder.records


def check(model: PreTrainedModel, layer: int, record: LayerRecord, positions: Tensor) -> float:
    """How far the softmax of what was recorded is from what the model computed (relative L2).

    The worst head counts, over at most CHECKED of the positions, in float32.
    Raises: InputError when it is more than rounding explains: 1e-5, or 4 epsilon of the dtype.
    """
    rows = torch.linspace(0, len(positions) - 1, min(CHECKED, len(positions))).round().long()
    rows = rows.unique().to(record.keys.device)
    slots = torch.arange(record.keys.shape[2], device=rows.device)
    visible = slots <= positions.to(rows.device)[rows, None]
    if record.chosen is not None:
        visible &= torch.zeros_like(visible).scatter_(-1, record.chosen[0, rows].long(), True)
    worst = max(_error(record, head, rows, visible) for head in range(record.queries.shape[1]))
    bound = max(1e-5, 4 * torch.finfo(record.queries.dtype).eps)
    if not worst <= bound:
        raise InputError(
            f"{type(model).__name__} cannot be captured: in layer {layer} softmax over all earlier "
            f"keys is {worst:.1e} off its attention output (at most {bound:.1e} is rounding); its "
            "attention is of another kind"
        )
    return worst


def _error(record: LayerRecord, head: int, rows: Tensor, visible: Tensor) -> float:
    """The relative L2 error of one head's output at some rows, which see `visible` [rows, T]."""
    group = head // (record.queries.shape[1] // record.keys.shape[1])
    keys, values = record.keys[0, group].float(), record.values[0, group].float()
    scores = record.queries[0, head, rows].float() @ keys.T * record.scaling
    softmax = record.softmax.at(slice(head, head + 1))
    logits = softmax.capped(scores).masked_fill(~visible, -torch.inf)
    output = softmax.weights(logits[None, None])[0, 0] @ values
    real = record.output[0, rows, head].float()
    return float((output - real).norm() / real.norm().clamp_min(1e-30))

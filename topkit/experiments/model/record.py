"""Recording what attention sees while a transformers model runs, and checking that it is all of it.

The attention function is found by the name that transformers' AttentionInterface keeps; it returns
what scaled_dot_product_attention returns, so that the model computes its own output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from topkit.errors import InputError
from topkit.experiments.model.attention import Inputs, attending_through, inputs_of

NAME = "topkit_capture"
# Rows that the check recomputes, at most: their scores are one row of T floats a head each.
CHECKED = 32
# Tensors that attention functions are given beside q, k and v: those that change nothing, and those
# that make of it something else than softmax(q k) v.
HARMLESS = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
REASONS = {
    "s_aux": "its attention has sinks (learned logits that belong to no key)",
    "sinks": "its attention has sinks (learned logits that belong to no key)",
    "softcap": "its attention scores are softcapped",
    "position_bias": "its attention scores have a position bias",
    "block_indices": "its attention keeps blocks of keys of its own choice",
    "indices": "its attention keeps keys of its own choice",
}


@dataclass
class Seen:
    """One layer's call of the attention function: queries at the asked positions, all keys.

    `output` [1, Tq, Hq, Dv] is what the function returned there; `window` the sliding window;
    `chosen` [1, Tq, k] the slots that the model's own indexer let through.
    """

    module: nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    output: Tensor
    window: int | None = None
    chosen: Tensor | None = None
    hidden: Tensor | None = None
    latent: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None


class Recorder:
    """Collects a Seen for each of `layers` (None: every one) during one forward of one sequence."""

    def __init__(self, positions: Tensor, layers: Sequence[int] | None, inputs: Inputs) -> None:
        self.positions = positions
        self.layers = layers
        self.inputs = inputs
        self.seen: dict[int, Seen] = {}

    def note(self, module: nn.Module, seen: Seen) -> None:
        layer = getattr(module, "layer_idx", None)
        if layer is None or not getattr(module, "is_causal", True):
            raise InputError(f"{type(module).__name__} is not a decoder's causal self-attention")
        if layer in self.seen:
            raise InputError(f"layer {layer} ({type(module).__name__}) attended twice in one pass")
        if self.layers is None or layer in self.layers:
            at = self.positions.to(seen.queries.device)
            self.seen[layer] = replace(
                seen,
                queries=seen.queries.index_select(2, at),
                output=seen.output.index_select(1, at),
                chosen=None if seen.chosen is None else seen.chosen.index_select(1, at),
                **self.inputs.get(layer, {}),
            )


_recorder: ContextVar[Recorder] = ContextVar("recorder")


def require_plain(given: Mapping[str, Any]) -> None:
    """Refuse what an attention function is given if that makes it other than softmax(q k) v.

    Raises: InputError with the reason.
    """
    for name, x in given.items():
        foreign = isinstance(x, Tensor) and name not in HARMLESS
        if x is not None and (name in REASONS or foreign):
            raise InputError(
                REASONS.get(name, f"its attention takes a tensor {name!r} beside q, k, v")
            )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    indices: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    require_plain(kwargs)
    mask = attention_mask if indices is None else within(indices, attention_mask, key.shape[2])
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = kwargs.get("sliding_window")
    seen = Seen(module, query, key, value, scale, output, window, indices)
    _recorder.get().note(module, seen)
    return output, None


def within(indices: Tensor, mask: Tensor | None, length: int) -> Tensor:
    rows, count, _ = indices.shape
    chosen = torch.zeros(rows, count, length, dtype=torch.bool, device=indices.device)
    chosen = chosen.scatter_(-1, indices.long(), True)[:, None]
    if mask is None:
        mask = torch.ones(count, length, dtype=torch.bool, device=indices.device)
        mask = mask.tril(length - count)
    if mask.dtype == torch.bool:
        return mask & chosen
    return mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def record(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    layers: Sequence[int] | None = None,
    inputs: dict[int, nn.Module] | None = None,
    purpose: str = "captured",
) -> dict[int, Seen]:
    """Run the model once over ids [1, T] and return what attention saw, by layer.

    `inputs`: the attention modules, by layer, whose inputs (hidden states, query latent, RoPE)
    are wanted as well.
    Raises: InputError naming the model that cannot be captured (or what `purpose` says), and why.
    """
    name = type(model).__name__
    with ExitStack() as stack:
        given = stack.enter_context(inputs_of((inputs or {}).values()))
        recorder = Recorder(positions, layers, given)
        token = _recorder.set(recorder)
        stack.callback(_recorder.reset, token)
        stack.enter_context(attending_through(model, NAME, _attend))
        try:
            # The decoder alone: logits of every token would cost more than all that is kept.
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
        except InputError as error:
            raise InputError(f"{name} cannot be {purpose}: {error}") from None
    if not recorder.seen:
        raise InputError(
            f"{name} cannot be {purpose}: it does not attend through transformers' "
            "AttentionInterface"
        )
    return recorder.seen


def check(model: PreTrainedModel, layer: int, seen: Seen, positions: Tensor) -> float:
    """How far softmax(q k) v of what was recorded is from what the model computed (relative L2).

    The worst head counts, over at most CHECKED of the positions, in float32.
    Raises: InputError when it is more than rounding explains: 1e-5, or 4 epsilon of the dtype.
    """
    rows = torch.linspace(0, len(positions) - 1, min(CHECKED, len(positions))).round().long()
    rows = rows.unique().to(seen.keys.device)
    slots = torch.arange(seen.keys.shape[2], device=rows.device)
    visible = slots <= positions.to(rows.device)[rows, None]
    if seen.chosen is not None:
        picked = torch.zeros_like(visible).scatter_(-1, seen.chosen[0, rows].long(), True)
        visible &= picked
    group = seen.queries.shape[1] // seen.keys.shape[1]
    worst = 0.0
    for head in range(seen.queries.shape[1]):
        keys, values = seen.keys[0, head // group].float(), seen.values[0, head // group].float()
        scores = seen.queries[0, head, rows].float() @ keys.T * seen.scaling
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        real = seen.output[0, rows, head].float()
        worst = max(worst, float((weights @ values - real).norm() / real.norm().clamp_min(1e-30)))
    bound = max(1e-5, 4 * torch.finfo(seen.queries.dtype).eps)
    if not worst <= bound:
        raise InputError(
            f"{type(model).__name__} cannot be captured: in layer {layer} softmax over all earlier "
            f"keys is {worst:.1e} off its attention output (at most {bound:.1e} is rounding); its "
            "attention is of another kind"
        )
    return worst

"""Recording what attention sees while a transformers model runs, and checking that it is all of it.

The attention function is found by the name that transformers' AttentionInterface keeps; it returns
what scaled_dot_product_attention returns, so that the model computes its own output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from topkit.errors import InputError
from topkit.experiments.layer_tensors import LayerTensors

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

    def tensors(self, sample: int, layer: int, positions: Tensor) -> LayerTensors:
        """What is kept of it, on the CPU."""
        hidden = None if self.hidden is None else self.hidden.cpu()
        latent = None if self.latent is None else self.latent.cpu()
        rope = None if self.rope is None else (self.rope[0].cpu(), self.rope[1].cpu())
        return LayerTensors(
            sample,
            layer,
            self.queries.cpu(),
            self.keys.cpu(),
            self.values.cpu(),
            positions,
            self.scaling,
            hidden,
            latent,
            rope,
        )


class Recorder:
    """Collects a Seen for each of `layers` (None: every one) during one forward of one sequence."""

    def __init__(self, positions: Tensor, layers: Sequence[int] | None = None) -> None:
        self.positions = positions
        self.layers = layers
        self.seen: dict[int, Seen] = {}
        self.inputs: dict[int, dict[str, Any]] = {}

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
    for name, given in kwargs.items():
        foreign = isinstance(given, Tensor) and name not in HARMLESS
        if given is not None and (name in REASONS or foreign):
            raise InputError(
                REASONS.get(name, f"its attention takes a tensor {name!r} beside q, k, v")
            )
    mask = attention_mask if indices is None else _within(indices, attention_mask, key.shape[2])
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = kwargs.get("sliding_window")
    seen = Seen(module, query, key, value, scale, output, window, indices)
    _recorder.get().note(module, seen)
    return output, None


def _within(indices: Tensor, mask: Tensor | None, length: int) -> Tensor:
    rows, count, _ = indices.shape
    chosen = torch.zeros(rows, count, length, dtype=torch.bool, device=indices.device)
    chosen = chosen.scatter_(-1, indices.long(), True)[:, None]
    if mask is None:
        mask = torch.ones(count, length, dtype=torch.bool, device=indices.device)
        mask = mask.tril(length - count)
    if mask.dtype == torch.bool:
        return mask & chosen
    return mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


@contextmanager
def _attention(model: PreTrainedModel, recorder: Recorder) -> Iterator[None]:
    """The model attends through `_attend` in here, and as before afterwards, whatever happens."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    training = model.training
    token = _recorder.set(recorder)
    try:
        model.eval()
        model.set_attn_implementation(NAME)
        yield
    finally:
        _recorder.reset(token)
        model.train(training)
        for config, name in before:
            config._attn_implementation = name


def record(
    model: PreTrainedModel,
    ids: Tensor,
    positions: Tensor,
    layers: Sequence[int] | None = None,
    inputs_of: dict[int, nn.Module] | None = None,
) -> dict[int, Seen]:
    """Run the model once over ids [1, T] and return what attention saw, by layer.

    `inputs_of`: the attention modules, by layer, whose inputs (hidden states, query latent, RoPE)
    are wanted as well.
    Raises: InputError naming the model that cannot be captured, and why.
    """
    recorder = Recorder(positions, layers)
    name = type(model).__name__
    with ExitStack() as stack:
        for layer, module in (inputs_of or {}).items():
            for handle in _hook(module, recorder.inputs.setdefault(layer, {})):
                stack.callback(handle.remove)
        stack.enter_context(_attention(model, recorder))
        stack.enter_context(torch.no_grad())
        try:
            # The decoder alone: logits of every token would cost more than all that is kept.
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
        except InputError as error:
            raise InputError(f"{name} cannot be captured: {error}") from None
    if not recorder.seen:
        raise InputError(
            f"{name} cannot be captured: it does not attend through transformers' "
            "AttentionInterface"
        )
    return recorder.seen


def _hook(module: nn.Module, found: dict[str, Any]) -> Iterator[Any]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found["hidden"] = args[0] if args else kwargs["hidden_states"]
        rope = kwargs.get("position_embeddings")
        if isinstance(rope, tuple) and all(isinstance(x, Tensor) and x.ndim == 3 for x in rope):
            found["rope"] = rope

    def latent(_: nn.Module, __: Any, output: Tensor) -> None:
        found["latent"] = output

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    norm = getattr(module, "q_a_layernorm", None)
    if norm is not None:
        yield norm.register_forward_hook(latent)


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

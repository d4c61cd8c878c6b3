"""A model's call of its attention, and whether that is softmax(q k) v."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from topkit.errors import InputError
from topkit.kernels.gather_attention import Softmax
from topkit.kernels.score import score

# Tensors that attention functions take beside q, k and v: those that change nothing, and those
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
# Those that `Softmax` holds.
SOFTMAX = {"s_aux", "sinks", "softcap"}
# Bytes of the logits of some queries, at a time.
LOGITS = 1 << 28


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of attention, as its model makes it.

    Shapes: queries [B, Hq, t, D]; keys [B, Hk, T, D] and values [B, Hk, T, Dv], those of the t newest
    tokens last; mask [B or 1, 1 or Hq, t, T], bool or additive (None: causal); `indices` [B, t, k],
    the slots that the model's own indexer lets through. `options` is all else that it was called with.
    `inputs`, where the switch notes them, are the module's own beside q, k and v:
    hidden [B, t, C]; rope, cos and sin [1 or B, t, r]; latent [B, t, R]; and `cache` is its cache.
    """

    module: nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    scaling: float
    indices: Tensor | None
    options: dict[str, Any]
    inputs: dict[str, Any]
    cache: Any = None

    @property
    def layer(self) -> int:
        """The number of the layer.

        Raises: InputError where the module is no decoder's.
        """
        layer = getattr(self.module, "layer_idx", None)
        if layer is None or not getattr(self.module, "is_causal", True):
            name = type(self.module).__name__
            raise InputError(f"{name} is not a decoder's causal self-attention")
        return layer

    @property
    def window(self) -> int | None:
        """The width of the layer's sliding window."""
        return self.options.get("sliding_window")

    @property
    def softmax(self) -> Softmax:
        """The sinks and the softcap of the model's softmax.

        Raises: InputError for sinks that are not one a query head.
        """
        sinks = self.options.get("s_aux", self.options.get("sinks"))
        softmax = Softmax(sinks, self.options.get("softcap"))
        return softmax.require_heads(self.queries.shape[1])

    def given(self, needs: Collection[str]) -> dict[str, Any]:
        """Those of `needs` that the call brings beside q, k and v: its module's inputs, and the list of its indexer."""
        brought = {**self.inputs, "native": self.indices}
        return {name: x for name, x in brought.items() if name in needs and x is not None}

    def require_plain(self, indices: bool = False, softmax: bool = False) -> None:
        """Refuse what is other than softmax(q k) v: of all earlier keys or, by leave, of `indices`.

        By leave the `softmax` may have sinks and a softcap.

        Raises: InputError with the reason.
        """
        own = None if indices else self.indices
        for name, x in {**self.options, "indices": own}.items():
            foreign = isinstance(x, Tensor) and name not in HARMLESS
            if x is None or (softmax and name in SOFTMAX):
                continue
            if name in REASONS or foreign:
                raise InputError(
                    REASONS.get(name, f"its attention takes a tensor {name!r} beside q, k, v")
                )

    def dense(self) -> Tensor:
        """The output [B, t, Hq, Dv] of the model's own attention: by SDPA, where that has its softmax."""
        mask = self.mask if self.indices is None else self._mask_of_indices(self.indices)
        if not self.softmax.plain:
            return self._by_definition(mask)
        return sdpa_attention_forward(
            self.module,
            self.queries,
            self.keys,
            self.values,
            mask,
            scaling=self.scaling,
            **self.options,
        )[0]

    def _by_definition(self, mask: Tensor | None) -> Tensor:
        """Attention with the model's softmax, some queries at a time; a mask [B or 1, 1 or Hq, t, T]."""
        (rows, heads, count, _), (_, groups, length, _) = self.queries.shape, self.keys.shape
        if mask is None:
            mask = torch.ones(count, length, dtype=torch.bool, device=self.keys.device)
            mask = mask.tril(length - count)[None, None]
        step = max(1, LOGITS // (4 * rows * heads * length))
        outputs: list[Tensor] = []
        for part in (slice(at, at + step) for at in range(0, count, step)):
            scores = score(self.queries[:, :, part], self.keys)
            logits = self.softmax.capped(self.scaling * scores)
            own = mask[:, :, part, :length]
            logits = (
                logits.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else logits + own
            )
            weights = self.softmax.weights(logits).unflatten(1, (groups, -1)).flatten(2, 3)
            outputs.append((weights @ self.values.float()).view(*logits.shape[:3], -1))
        return torch.cat(outputs, 2).to(self.queries.dtype).transpose(1, 2).contiguous()

    def _mask_of_indices(self, indices: Tensor) -> Tensor:
        rows, count, _ = indices.shape
        length, device = self.keys.shape[2], indices.device
        visible = torch.zeros(rows, count, length, dtype=torch.bool, device=device)
        visible = visible.scatter_(-1, indices.long(), True)[:, None]
        mask = self.mask
        if mask is None:
            mask = torch.ones(count, length, dtype=torch.bool, device=device)
            mask = mask.tril(length - count)
        if mask.dtype == torch.bool:
            return mask & visible
        return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)

# pyright: strict
"""The softmax of attention, and what some models make of it: sinks and softcaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkit.errors import InputError


@dataclass(frozen=True, eq=False)
class Softmax:
    """What a model does between scaled scores and weights, the same for chosen keys as for all.

    sinks [Hq]: a logit a query head that belongs to no key; it takes its weight, and gives no value.
    softcap c: scaled scores x become c tanh(x / c), which keeps their order.
    Source: gpt-oss (arXiv 2508.10925, section 2.3); Gemma 2 (arXiv 2408.00118, section 2).
    """

    sinks: Tensor | None = None
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        return self.sinks is None and self.softcap is None

    def require_heads(self, heads: int) -> Softmax:
        """Require one sink a query head, and a softcap above zero."""
        if self.sinks is not None and tuple(self.sinks.shape) != (heads,):
            raise InputError(
                f"sinks must be a logit for each of {heads} query heads; got {list(self.sinks.shape)}"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise InputError(f"softcap must be above 0; got {self.softcap}")
        return self

    def detached(self) -> Softmax:
        """The same, whose sinks are no parameters."""
        return self if self.sinks is None else Softmax(self.sinks.detach(), self.softcap)

    def on(self, device: torch.device) -> Softmax:
        """The same on a device."""
        return self if self.sinks is None else Softmax(self.sinks.to(device), self.softcap)

    def at(self, heads: slice) -> Softmax:
        """That of some query heads."""
        return self if self.sinks is None else Softmax(self.sinks[heads], self.softcap)

    def capped(self, logits: Tensor) -> Tensor:
        """Scaled scores as the softmax takes them; what is -inf stays so."""
        if self.softcap is None:
            return logits
        capped = self.softcap * torch.tanh(logits / self.softcap)
        return capped.masked_fill(logits == float("-inf"), float("-inf"))

    def capped_scores(self, scores: Tensor, scaling: float) -> Tensor:
        """Scores whose scaled ones are what the softmax takes: a cap brings them nearer, and keeps their order."""
        return scores if self.softcap is None else self.capped(scaling * scores) / scaling

    def weights(self, logits: Tensor) -> Tensor:
        """The weights of capped logits [B, Hq, ..., n] of the keys; zeros where there is nothing to see."""
        if self.sinks is not None:
            return self.weights_of_seen(logits)
        nothing = (logits == float("-inf")).all(-1, keepdim=True)
        return logits.softmax(-1).masked_fill(nothing, 0.0)

    def weights_of_seen(self, logits: Tensor) -> Tensor:
        """As `weights`, of queries that see some key: where there is none it is NaN, unless there is a sink."""
        if self.sinks is None:
            return logits.softmax(-1)
        sinks = self.of_heads(logits)
        return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]

    def of_heads(self, logits: Tensor) -> Tensor:
        """The sinks beside logits [B, Hq, ..., n], as [B, Hq, ..., 1]."""
        assert self.sinks is not None
        sinks = self.sinks.to(logits.dtype).view(-1, *[1] * (logits.dim() - 2))
        return sinks.expand(*logits.shape[:-1], 1)


PLAIN = Softmax()

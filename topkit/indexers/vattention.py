# pyright: strict
"""vAttention: the best keys as they are, and a sample of the others as large as an error bound asks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Indexer, Selection, Step
from topkit.indexers.checks import share, whole
from topkit.indexers.combinator import Combinator
from topkit.indexers.exact import chosen_scores, exact
from topkit.indexers.forced import say_full
from topkit.indexers.noise import noise
from topkit.indexers.sampled import others, sampled
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.force_ends import ends_first
from topkit.kernels.select_topk import select_topk

_SAMPLE = 7  # salt
_RENAMED = (
    "vattention of topkit 0.1, a fixed split, is now sampled(base, top=0.5); vattention(base, epsilon=..., "
    "delta=...) is the paper's rule"
)


@dataclass(frozen=True)
class vattention(Combinator):
    """Samples as many keys as keep the softmax sum within epsilon, with probability 1 - delta.

    Kept as they are: the first `sink`, the newest `window`, and base's best share `heavy` of the others. What
    is left, n keys, is sampled uniformly: first max(2, sample * n), whose standard deviation sd of exp(score)
    and mean give the sum D of all, then (z sd n / (epsilon D))^2 in all, z the normal quantile of
    1 - delta / 2; each of b drawn keys stands for n / b. k caps the list: where it holds no such sample, the
    bound is not kept. The theorem counts errors to both sides, as here; the authors' code takes the quantile of
    1 - delta, and its delta is twice as large here. Source: arXiv 2510.05688, section 4 (the bound of the denominator).
    """

    base: Indexer = exact()  # noqa: RUF009 (a frozen value)
    epsilon: float = field(default=0.05, kw_only=True)
    delta: float = field(default=0.05, kw_only=True)
    heavy: float = field(default=0.05, kw_only=True)
    sample: float = field(default=0.05, kw_only=True)
    sink: int = field(default=128, kw_only=True)
    window: int = field(default=128, kw_only=True)

    family: ClassVar[str] = "sampling"
    source: ClassVar[str] = "arXiv 2510.05688"
    cost: ClassVar[str] = "as base, and reads the kept keys and the first sample"
    reads: ClassVar[frozenset[str]] = frozenset({"cache"})
    examples: ClassVar[tuple[str, ...]] = (
        "vattention(epsilon=0.3, delta=0.2, heavy=0.1, sample=0.2, sink=1, window=2)",
        "vattention(epsilon=0.05)",
        "vattention(shared(quantized(), per='layer'), delta=0.5, heavy=0.2, sink=0, window=1)",
    )

    def __new__(cls, *values: Any, **more: Any) -> Any:
        if len(values) > 1 or "top" in more:
            warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
            return sampled(*values, **more)
        return super().__new__(cls)

    @classmethod
    def meant(cls, keys: Sequence[str]) -> type[Any]:
        old = "top" in keys or list(keys[1:2]) == [""]
        # Without a parameter of either a text may be of 0.1, too.
        if old or not set(keys) - {"", "base"}:
            warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        return sampled if old else cls

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epsilon", "delta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < 1:
                raise InputError(
                    f"vattention: {name} must be a number above 0 and below 1; got {value!r}"
                )
        share(self, "heavy")
        share(self, "sample")
        whole(self, "sink", 0)
        whole(self, "window", 0)

    def traits(self) -> Traits:
        own = {"weighted": True, "exhaustive": False, "may_come_short": True}
        return replace(super().traits(), **own)

    def costs(self, shape: Shape) -> Cost:
        s = shape
        most = least(self.sink + self.window + self.heavy * s.T, s.T)
        base = self.base.costs(replace(s, k=most))
        read = least(most, s.k) + least(self.sample * s.T, s.k)
        cost = base.besides(read=s.Hq * read * s.D * s.e, operations=s.Hq * (read * s.D + s.T))
        return replace(cost, lists=s.Hq, kept=s.kept, estimated=True)

    def choose(self, index: Index, queries: Tensor, k: int, step: Step) -> Selection:
        length, width = index.length, min(k, index.length)
        proposal, kept = self._kept(index, queries, width, step)
        left = others(kept, step, length)
        draws = noise(step, length, queries, salt=_SAMPLE).masked_fill(~left, -torch.inf)
        drawn = select_topk(draws, width, check=False)
        number = left.sum(-1, keepdim=True)
        begun = (self.sample * number).ceil().clamp_min(2).minimum(number).long()
        read = torch.cat([kept, cut_to(drawn[..., : self._most(length)], begun)], -1)
        wanted = self._wanted(queries, read, kept.shape[-1], number, step, length)
        room = width - (kept >= 0).sum(-1, keepdim=True)
        wanted = wanted.maximum(begun).minimum(number).minimum(room.clamp_min(0))
        weight = (number / wanted.clamp_min(1)).log()
        slots = torch.cat([kept, cut_to(drawn, wanted)], -1)
        weights = torch.cat(
            [torch.zeros_like(kept, dtype=weight.dtype), weight.expand_as(drawn)], -1
        )
        order = (slots < 0).sort(dim=-1, stable=True).indices[..., :width]
        slots, weights = slots.gather(-1, order), weights.gather(-1, order)
        cost = read_too(proposal, read, step)
        return Selection(slots, weights.masked_fill(slots < 0, 0), **cost)

    def _most(self, length: int) -> int:
        """Keys of the first sample, at most."""
        return max(2, math.ceil(self.sample * length))

    def _kept(
        self, index: Index, queries: Tensor, width: int, step: Step
    ) -> tuple[Selection, Tensor]:
        """Base's selection, and the ends with the best of the others [B, Hq, Tq, at most width]."""
        length, count = index.length, queries.shape[2]
        ends = self.sink + self.window
        if ends >= width and width < length:
            say_full(self, ends, width, "no other key is chosen")
        most = min(length, ends + math.ceil(self.heavy * length))
        proposal = index.select(queries, max(most, 1), step.given_to(self.base))
        slots = proposal.indices
        slots = slots.repeat_interleave(queries.shape[1] // slots.shape[1], 1)
        stop = step.stops(length, count, slots.device).clamp_max(length)
        first, last = step.starts(slots.device)[:, None, None, None], stop[:, None, :, None]
        inner = (slots >= first + self.sink) & (slots < last - self.window)
        seen = step.seen(length, count, slots.device)[:, None, :, None]
        best = inner & (inner.cumsum(-1) <= (self.heavy * seen).ceil())
        slots = slots.masked_fill(~best, -1)
        seen_by: dict[str, Any] = {"start": step.start, "stop": stop, "backend": "torch"}
        return proposal, ends_first(slots, min(most, width), self.sink, self.window, **seen_by)

    def _wanted(
        self, queries: Tensor, read: Tensor, kept: int, number: Tensor, step: Step, length: int
    ) -> Tensor:
        """The size of the sample [B, Hq, Tq, 1] by the true scores of the keys read, the first `kept` of them kept."""
        scores = chosen_scores(queries, read, step, length).double()
        logits, sinks = step.capped(scores) * step.scaling, step.softmax.sinks
        top = logits.amax(-1, keepdim=True).clamp_min(-1e30)
        if sinks is not None:
            top = top.maximum(step.softmax.of_heads(logits))
        weights = (logits - top).exp()
        first = read[..., kept:] >= 0
        drawn, count = weights[..., kept:], first.sum(-1, keepdim=True)
        mean = drawn.sum(-1, keepdim=True) / count.clamp_min(1)
        apart = (drawn - mean).square().masked_fill(~first, 0).sum(-1, keepdim=True)
        deviation = (apart / (count - 1).clamp_min(1)).sqrt()
        total = weights[..., :kept].sum(-1, keepdim=True) + number * mean
        if sinks is not None:  # it is of the sum that is kept within epsilon
            total = total + (step.softmax.of_heads(logits) - top).exp()
        quantile = NormalDist().inv_cdf(1 - self.delta / 2)
        size = quantile * deviation * number / (self.epsilon * total.clamp_min(1e-300))
        return size.square().ceil().clamp_max(2.0**31).long()


def cut_to(slots: Tensor, count: Tensor) -> Tensor:
    """The first `count` [..., 1] of each list, -1 in the other places."""
    return slots.masked_fill(torch.arange(slots.shape[-1], device=slots.device) >= count, -1)


def read_too(proposal: Selection, read: Tensor, step: Step) -> dict[str, Any]:
    """What a proposal cost, and reading keys [B, Hq, Tq, n], -1 for none."""
    if not step.counted:
        return {}
    cache, each = step.cache, (read >= 0).sum(-1).float()
    return {
        "keys_scored": proposal.keys_scored + each.mean(1),
        "bytes_read": proposal.bytes_read + each.sum(1) * (cache.key_bytes // cache.heads),
    }

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""RaBitQ: one bit a dimension of randomly turned keys, an estimate without bias, and its bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, cast

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import flag, whole
from topkit.indexers.exact import chosen_scores
from topkit.indexers.mean_key import MeanIndex, about_mean, mean_key
from topkit.indexers.scored import Codes, Scored, masked, scored
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.kernels.codes import signs
from topkit.kernels.score import score_codes
from topkit.kernels.select_topk import select_topk


@dataclass(frozen=True)
class rabitq(Scored):
    """Scores a float query against the signs of keys that a random rotation has turned, without bias.

    The mean of the keys at build, the centroid, is taken off for good. Of what is left, o turned by the
    rotation of `seed`, the signs s and |o|^2 / |o|_1 are kept, and q . s |o|^2 / |o|_1 is the
    estimate: within epsilon |q| |o| ((1 / a^2 - 1) / (D - 1))^1/2 for a = |o|_1 / (D^1/2 |o|), with a
    chance that depends on epsilon alone. rerank=True scores exactly the keys that may, by this bound, be
    among the k best, and keeps the best of these; how many they are, the host must know.
    The query stays in float, where the paper rounds it to 4 bits. Source: arXiv 2405.12497, section 3,
    theorem 3.2; its experiments have epsilon_0 = 1.9.
    """

    seed: int = 0
    rerank: bool = False
    epsilon: float = 1.9

    family: ClassVar[str] = "quantized"
    source: ClassVar[str] = "arXiv 2405.12497"
    cost: ClassVar[str] = "reads 1 bit a dimension and 4 bytes; rerank 4 more, and some keys"
    examples: ClassVar[tuple[str, ...]] = ("rabitq()", "rabitq(seed=1, rerank=True)")

    def __post_init__(self) -> None:
        whole(self, "seed", 0)
        flag(self, "rerank")
        if type(self.epsilon) not in (int, float) or not 0 <= self.epsilon < float("inf"):
            raise InputError(
                f"rabitq: epsilon must be a number of at least 0; got {self.epsilon!r}"
            )

    def traits(self) -> Traits:
        needs = frozenset({"cache"}) if self.rerank else frozenset[str]()
        return Traits(needs=needs, score_all=not self.rerank, drifts=True)

    def code_bytes(self, shape: Shape) -> float:
        return shape.Hk * (math.ceil(shape.D / 8) + (8 if self.rerank else 4))

    def costs(self, shape: Shape) -> Cost:
        s, cost = shape, super().costs(shape)
        turned = s.Hk * s.D * s.D
        cost = replace(
            cost, index=cost.index + 4 * s.Hk * s.D / s.T, build=s.T * turned, append=turned
        )
        cost = cost.besides(operations=s.Hq * s.D * s.D)
        if not self.rerank:
            return cost
        # How many keys the bound lets through depends on them.
        near = s.Hq * least(4 * s.k, s.T)
        return replace(cost.besides(read=near * s.D * s.e, operations=near * s.D), estimated=True)

    def build(self, keys: Tensor, step: Step) -> Index:
        if not self.rerank:
            return about_mean(self, keys, step)
        index = Reranked(self, mean=mean_key(keys, step))
        index.append(keys, step)
        return index

    def encode(self, keys: Tensor, step: Step) -> Codes:
        # In float64: a bit is then the same whatever stands beside the key.
        turned = keys.detach().double() @ rotation(keys.shape[-1], self.seed, keys.device)
        square = turned.square().sum(-1, keepdim=True)
        factor = (square / turned.abs().sum(-1, keepdim=True)).nan_to_num(0.0)
        codes = {"bits": signs(turned), "factor": factor.where(square.isfinite(), square).float()}
        if self.rerank:
            width = keys.shape[-1]
            left = (factor.square() * width - square).clamp_min(0) / max(width - 1, 1)
            codes["spread"] = left.sqrt().float()
        return codes

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        width, groups = queries.shape[-1], codes["bits"].shape[1]
        turned = (queries.double() @ rotation(width, self.seed, queries.device)).float()
        scores = score_codes(turned, codes["bits"], dtype="sign", backend=step.backend)
        return scores * codes["factor"].mT.repeat_interleave(queries.shape[1] // groups, 1)

    def bound(self, queries: Tensor, codes: Codes) -> Tensor:
        """How far the scores may be off [B, Hq, Tq, T], of codes that rerank."""
        spread = codes["spread"].mT.repeat_interleave(
            queries.shape[1] // codes["spread"].shape[1], 1
        )
        return self.epsilon * queries.float().square().sum(-1, keepdim=True).sqrt() * spread


@lru_cache(maxsize=64)
def rotation(width: int, seed: int, device: torch.device) -> Tensor:
    """A random orthogonal matrix [width, width] float64, uniform among all, of a seed."""
    drawn = torch.randn(
        width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q, r = cast(tuple[Tensor, Tensor], torch.linalg.qr(drawn))
    return (q * r.diagonal().sign()).to(device)


class Reranked(MeanIndex):
    """Codes whose bounds say which keys to score exactly."""

    def score(self, queries: Tensor, step: Step) -> Tensor:
        return Index.score(self, queries, step)

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        return Index.select_many(self, queries, ks, step)

    def chosen(self, queries: Tensor, k: int, step: Step, pool: str | None = None) -> Selection:
        recipe = self.recipe
        assert isinstance(recipe, rabitq)
        estimate = self.of_codes(lambda codes: scored(recipe, queries, codes, step))
        bound = self.of_codes(lambda codes: recipe.bound(queries, codes))
        least, most = (masked(x, step) for x in (estimate - bound, estimate + bound))
        kth = least.topk(min(k, self.slots)).values[..., -1:]
        near = most.masked_fill(most < kth, -torch.inf)
        slots = select_topk(near, max(int((near > -torch.inf).sum(-1).amax()), 1))
        exact = chosen_scores(queries, slots, step, self.slots)
        best = select_topk(exact, k, slots=slots, backend="torch")
        if not step.counted:
            return Selection(best)
        seen = step.seen(self.slots, queries.shape[2], queries.device)
        read = (slots >= 0).sum(-1).float()
        bytes_read = seen * self.bytes_per_key(step)
        bytes_read = bytes_read + read.sum(1) * (step.cache.key_bytes // step.cache.heads)
        return Selection(best, keys_scored=seen + read.mean(1), bytes_read=bytes_read)

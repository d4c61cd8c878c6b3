# pyright: strict
"""MagicPIG: a sample of keys by locality-sensitive hashing, each weighed by how probably it was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers.base import Index, Selection, Step
from topkit.indexers.checks import flag, whole
from topkit.indexers.exact import chosen_scores
from topkit.indexers.forced import say_full
from topkit.indexers.lsh import buckets, chance, collisions
from topkit.indexers.mean_key import MeanIndex, mean_key
from topkit.indexers.noise import noise
from topkit.indexers.scored import Codes, Scored
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.streaming_llm import ends
from topkit.indexers.traits import Traits
from topkit.kernels.score import score
from topkit.kernels.select_topk import select_topk

_CUT = 9  # salt


@dataclass(frozen=True)
class magicpig(Scored):
    """Samples the keys that fall together with the query in two hash tables, however many they are.

    `tables` tables of `bits` signs of random projections, of keys about their mean at build, without its ends.
    A sampled key has the log-weight -ln u, u = 1 - (1 - p^K)^L - L p^K (1 - p^K)^(L - 1) for K bits and L tables,
    p = 1 - angle / pi of query and centred key. The first `sink` and the newest `window` keys are kept as they are. Where k does
    not hold the m sampled keys, n that are drawn of them uniformly stay, with ln(m / n) more. Appended keys are
    hashed about the same mean. The paper keeps two layers of 32 dense. Source: arXiv 2410.16179, section 4.
    """

    bits: int = 10
    tables: int = 150
    sink: int = 4
    window: int = 64
    center: bool = True

    family: ClassVar[str] = "hashing"
    source: ClassVar[str] = "arXiv 2410.16179"
    cost: ClassVar[str] = "reads 2 bytes a table and key, and the sampled keys"
    tuned: ClassVar[Mapping[str, Sequence[Any]]] = {"tables": range(2, 1025)}
    examples: ClassVar[tuple[str, ...]] = (
        "magicpig(bits=2, tables=6, sink=1, window=2)",
        "magicpig(sink=2, window=3)",
        "magicpig(bits=3, tables=20, sink=0, window=0, center=False)",
    )

    def __post_init__(self) -> None:
        whole(self, "bits", 1, 15)
        whole(self, "tables", 2, 4096)
        whole(self, "sink", 0)
        whole(self, "window", 0)
        flag(self, "center")

    def traits(self) -> Traits:
        own: dict[str, bool] = {"exhaustive": False, "may_come_short": True, "weighted": True}
        return Traits(needs=frozenset({"cache"}), drifts=self.center, **own)

    def code_bytes(self, shape: Shape) -> float:
        return shape.Hk * (2 * self.tables + 4)

    def costs(self, shape: Shape) -> Cost:
        s, same = shape, 2**-self.bits  # of a key at a right angle
        drawn = s.T * (1 - (1 - same) ** self.tables * (1 + self.tables * same / (1 - same)))
        return Cost(
            index=self.code_bytes(s) + 4 * s.Hk * s.D / s.T,
            read=2 * s.Hk * s.T * self.tables + s.Hq * least(drawn, s.k) * (s.D * s.e + 4),
            operations=s.Hq * self.tables * (s.T + s.D * self.bits) + s.Hq * drawn * s.D,
            build=s.Hk * s.T * s.D * self.bits * self.tables,
            append=s.Hk * s.D * self.bits * self.tables,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def build(self, keys: Tensor, step: Step) -> Index:
        # What the ends have in common is not hashed.
        inner = replace(step, start=step.starts(keys.device) + self.sink)
        mean = mean_key(keys[:, :, : max(keys.shape[2] - self.window, 0)], inner)
        index = PigIndex(self, mean=mean if self.center else torch.zeros_like(mean))
        index.append(keys, step)
        return index

    def encode(self, keys: Tensor, step: Step) -> Codes:
        norms = keys.double().square().sum(-1, keepdim=True).sqrt()
        return {"buckets": buckets(keys, self.bits, self.tables, step), "norms": norms.float()}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        raise InputError(f"{self} does not score every key")


class PigIndex(MeanIndex):
    """Buckets and norms of keys about a mean."""

    @property
    def _recipe(self) -> magicpig:
        assert isinstance(self.recipe, magicpig)
        return self.recipe

    def select(self, queries: Tensor, k: int, step: Step) -> Selection:
        return self.select_many(queries, [k], step)[k]

    def select_many(self, queries: Tensor, ks: Sequence[int], step: Step) -> dict[int, Selection]:
        recipe, count = self._recipe, queries.shape[2]
        asked = buckets(queries, recipe.bits, recipe.tables, step)
        hit = self.of_codes(lambda codes: collisions(asked, codes["buckets"])) >= 2
        slots = torch.arange(self.slots, device=hit.device)
        first = step.starts(hit.device)[:, None, None, None] + recipe.sink
        stop = step.stops(self.slots, count, hit.device)[:, None, :, None] - recipe.window
        hit = hit & (slots >= first) & (slots < stop)
        draws = noise(step, self.slots, queries, salt=_CUT).masked_fill(~hit, -torch.inf)
        drawn = select_topk(draws, min(max(ks), self.slots), check=False)
        weights = self._weights(queries, drawn, step)
        number = hit.sum(-1, keepdim=True)
        return {k: self._at(k, drawn, weights, number, queries, step) for k in ks}

    def _weights(self, queries: Tensor, slots: Tensor, step: Step) -> Tensor:
        """The log-weights -ln u of sampled keys [B, Hq, Tq, n], 0 for none."""
        rows, groups = len(slots), self.mean.shape[1]
        products = chosen_scores(queries, slots, step, self.slots) - score(queries, self.mean)
        norms = self.of_codes(lambda codes: codes["norms"][..., 0].expand(rows, -1, -1))
        norms = norms.gather(2, slots.clamp_min(0).view(rows, groups, -1)).view_as(slots)
        lengths = norms.double() * queries.double().square().sum(-1, keepdim=True).sqrt()
        cosine = (products / lengths.clamp_min(1e-300)).masked_fill((slots < 0) | (lengths == 0), 0)
        chances = chance(cosine, self._recipe.bits, self._recipe.tables).clamp_min(1e-12)
        return -chances.log().masked_fill(slots < 0, 0)

    def _at(
        self, k: int, drawn: Tensor, weights: Tensor, number: Tensor, queries: Tensor, step: Step
    ) -> Selection:
        recipe, width, count = self._recipe, min(k, self.slots), queries.shape[2]
        both = min(width, recipe.sink + recipe.window)
        if both == width < self.slots:
            say_full(recipe, recipe.sink + recipe.window, k, "no key is sampled")
        kept = ends(step, self.slots, count, recipe.sink, recipe.window, both, queries.device)
        kept = kept.expand(*drawn.shape[:3], -1)
        room = width - (kept >= 0).sum(-1, keepdim=True)
        place = torch.arange(drawn.shape[-1], device=drawn.device)
        slots = torch.cat([kept, drawn.masked_fill(place >= room, -1)], -1)
        weights = weights + (number / room.clamp_min(1)).clamp_min(1).log()
        weights = torch.cat([torch.zeros_like(kept, dtype=weights.dtype), weights], -1).float()
        order = (slots < 0).sort(dim=-1, stable=True).indices[..., :width]
        slots, weights = slots.gather(-1, order), weights.gather(-1, order)
        weights = weights.masked_fill(slots < 0, 0)
        return Selection(slots, weights, **self._cost(number.clamp_max(width), count, step))

    def _cost(self, number: Tensor, count: int, step: Step) -> dict[str, Any]:
        """What comparing all buckets costs, and reading the sampled keys for their angles."""
        if not step.counted:
            return {}
        seen = step.seen(self.slots, count, number.device)
        groups, cache = self.mean.shape[1], step.cache
        own = number.squeeze(-1).float()
        each = cache.key_bytes // cache.heads + 4
        read = seen * (2.0 * self._recipe.tables * groups) + own.sum(1) * each
        return {"keys_scored": seen + own.mean(1), "bytes_read": read}

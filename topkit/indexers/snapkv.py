# pyright: strict
"""SnapKV: the prompt's last queries vote for its keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from topkit.errors import InputError
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import choice, whole
from topkit.indexers.scored import Codes, Scored, ScoredIndex
from topkit.indexers.stated_cost import Cost, Shape, least
from topkit.indexers.traits import Traits
from topkit.indexers.votes import prompt_votes

# A mean vote is at most 1; newer slots stand above, the newest highest.
_ABOVE, _NEWER = 2.0, 2.0**-22


@dataclass(frozen=True)
class snapkv(Scored):
    """Keeps the newest keys, and of earlier ones those that the prompt's last `window` queries voted for.

    A key's vote is its mean attention weight over these queries, averaged (pool="avg") or raised to the
    largest ("max") over `kernel` keys about it; each query head has its own, shared(snapkv()) one a group.
    k counts all keys: as keys are appended, the lowest votes fall out, and none comes back.
    Source: arXiv 2404.14469, section 4.1; defaults of SCBench.
    """

    window: int = 32
    kernel: int = 5
    pool: str = "avg"

    family: ClassVar[str] = "votes"
    source: ClassVar[str] = "arXiv 2404.14469"
    cost: ClassVar[str] = "reads one vote a key and query head"
    examples: ClassVar[tuple[str, ...]] = ("snapkv()", "snapkv(window=4, kernel=3, pool='max')")

    def __post_init__(self) -> None:
        whole(self, "window", 1)
        whole(self, "kernel", 1)
        choice(self, "pool", ("avg", "max"))
        if self.kernel % 2 == 0:
            raise InputError(f"snapkv: kernel must be odd, to have a middle; got {self.kernel}")

    def traits(self) -> Traits:
        needs = frozenset({"prefill_queries"})
        return Traits(needs=needs, drifts=True, score_all=True, fixed=True)

    def code_bytes(self, shape: Shape) -> float:
        return 4 * shape.Hq

    def costs(self, shape: Shape) -> Cost:
        s = shape
        build = s.Hq * least(self.window, s.T) * s.T * s.D
        return replace(super().costs(s), operations=s.Hq * s.T, build=build, append=s.Hq)

    def build(self, keys: Tensor, step: Step) -> Index:
        votes = self._votes(keys, step)[..., None]
        return Ballot(self, codes={"votes": votes}, slots=keys.shape[2])

    def encode(self, keys: Tensor, step: Step) -> Codes:
        """Of keys that their votes [B, Hq, t, 1] stand for."""
        return {"votes": keys}

    def score(self, queries: Tensor, codes: Codes, step: Step) -> Tensor:
        votes = codes["votes"].mT  # of a row for all, where rows begin alike
        return votes.repeat(len(queries) // len(votes), 1, queries.shape[2], 1)

    def _votes(self, keys: Tensor, step: Step) -> Tensor:
        """A score for each slot of a prompt [B, Hq, T]."""
        queries = step.prefill_queries[:, :, -self.window :]
        window, length = queries.shape[2], keys.shape[2]
        early = max(length - window, 0)
        votes = (prompt_votes(queries, keys, step) / window).float()
        votes[..., early:] = _newer(torch.arange(early, length, device=keys.device))
        if early:
            pool = avg_pool1d if self.pool == "avg" else max_pool1d
            votes[..., :early] = pool(votes[..., :early], self.kernel, 1, self.kernel // 2)
        return votes


class Ballot(ScoredIndex):
    """Votes of the prompt's keys; a key that is appended stands above them, the newest highest."""

    def append(self, keys: Tensor, step: Step) -> None:
        rows, _, count, _ = keys.shape
        at = self.slots if step.at is None else step.at
        newer = _newer(torch.arange(count, device=keys.device) + at)
        heads = self.earliest["votes"].shape[1]
        super().append(newer[None, None, :, None].expand(rows, heads, -1, -1), step)


def _newer(slots: Tensor) -> Tensor:
    return _ABOVE + slots * _NEWER

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""InfLLM: blocks judged by a few representative keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from topkit.errors import InputError
from topkit.indexers.base import Index, Step
from topkit.indexers.checks import whole
from topkit.indexers.fitted import of_rows
from topkit.indexers.local_queries import local_weights, mean_query
from topkit.indexers.paged import Paged, Pages
from topkit.indexers.paged_index import PagedIndex
from topkit.indexers.pages import by_page
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits
from topkit.kernels.score import score


@dataclass(frozen=True)
class infllm(Paged):
    """Keeps whole blocks by their representative keys, and gives up telling keys of a block apart.

    A block's score is the mean dot product with its representatives: the keys that the queries of the next
    `local` tokens score highest on average, for each query head. Only the queries handed over at build are
    known: keys that none of them follows within `local`, and keys that come later, are scored by the mean of
    them all. The paper's sinks and window are keep(infllm(), sink=128, window=4096), its one choice a layer
    shared(infllm(), per=layer, how=sum). Source: arXiv 2402.04617, section 3.2, equation 1.
    """

    page_size: int = 128
    representatives: int = 4
    local: int = 4096

    source: ClassVar[str] = "arXiv 2402.04617"
    cost: ClassVar[str] = "reads 4 keys a page, a query head"
    examples: ClassVar[tuple[str, ...]] = (
        "infllm(page_size=4, representatives=2)",
        "infllm()",
        "infllm(page_size=8, local=5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "representatives", 1)
        whole(self, "local", 1)
        if self.representatives > self.page_size:
            raise InputError(
                f"infllm: representatives must be at most page_size, {self.page_size}; got "
                f"{self.representatives}"
            )

    def traits(self) -> Traits:
        needs = frozenset({"cache", "prefill_queries"})
        return replace(super().traits(), needs=needs, drifts=True, fixed=False)

    def summary_bytes(self, shape: Shape) -> float:
        return shape.Hq * self.representatives * (shape.D * shape.e + 4)

    def costs(self, shape: Shape) -> Cost:
        cost, own = super().costs(shape), shape.Hq * (4 + 8 * shape.D / shape.T)
        operations = cost.operations * self.representatives
        return replace(cost, index=cost.index + own, operations=operations)

    def build(self, keys: Tensor, step: Step) -> Index:
        queries = step.prefill_queries.detach()
        index = RepresentedIndex(
            self,
            mean=mean_query(queries, keys.shape[2], step),
            weights=local_weights(queries, keys.detach(), self.local, step),
        )
        index.append(keys, step)
        return index

    def represent(self, keys: Tensor, weights: Tensor, real: Tensor) -> Pages:
        """The keys [B, Hk, P, size, D] of the greatest weights [B, Hq, P, size, 1], the lower slot first."""
        weights = weights.masked_fill(~real, -torch.inf)[..., 0]
        best, at = weights.sort(dim=-1, descending=True, stable=True)
        best, at = best[..., : self.representatives], at[..., : self.representatives]
        by_group = at.unflatten(1, (keys.shape[1], -1)).transpose(2, 3)  # [B, Hk, P, group, r]
        wanted = by_group.flatten(3)[..., None].expand(-1, -1, -1, -1, keys.shape[4])
        kept = keys.gather(3, wanted).unflatten(3, by_group.shape[3:]).transpose(2, 3).flatten(1, 2)
        kept = kept.masked_fill(best[..., None] == -torch.inf, 0)
        short = self.representatives - best.shape[-1]  # of a key alone
        weights = pad(best, (0, short), value=-torch.inf)
        return {"keys": pad(kept, (0, 0, 0, short)).flatten(3), "weights": weights.contiguous()}

    def join(self, a: Pages, b: Pages) -> Pages:
        weights = torch.cat([a["weights"], b["weights"]], -1)
        keys = torch.cat([a["keys"], b["keys"]], -1).unflatten(-1, (weights.shape[-1], -1))
        best, at = weights.sort(dim=-1, descending=True, stable=True)
        at = at[..., : self.representatives, None].expand(-1, -1, -1, -1, keys.shape[4])
        return {
            "keys": keys.gather(3, at).flatten(3),
            "weights": best[..., : self.representatives].contiguous(),
        }

    def score(self, queries: Tensor, pages: Pages, step: Step) -> Tensor:
        count = (pages["weights"] > -torch.inf).sum(-1)[:, :, None]
        total = pages["keys"].unflatten(-1, (self.representatives, -1)).float().sum(3)
        return score(queries, total) / count


@dataclass
class RepresentedIndex(PagedIndex):
    """Representatives of every block, and by what the keys of the build were and later ones are weighted.

    Shapes: mean [B, Hq, D] float64; weights [B, Hq, T] float32, of the keys at build.
    """

    mean: Tensor = field(kw_only=True)
    weights: Tensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        own = sum(x.numel() * x.element_size() for x in (self.mean, self.weights))
        return super().nbytes + own

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.mean, self.weights = (of_rows(x, rows) for x in (self.mean, self.weights))

    def summaries(self, keys: Tensor, begin: Tensor) -> Pages:
        assert isinstance(self.recipe, infllm)
        known = self.weights[:, :, self.slots : self.slots + keys.shape[2]]
        later = keys[:, :, known.shape[2] :].double()
        group = self.mean.shape[1] // keys.shape[1]
        by_mean = (self.mean.unflatten(1, (-1, group)) @ later.mT).flatten(1, 2).float()
        weights = torch.cat([known, by_mean], -1)[..., None]
        # One key is a page that begins with it, and not as long as that.
        one = keys.shape[2] == 1
        size, begin = (1, begin.clamp_min(0)) if one else (self.recipe.page_size, begin)
        (paged, real), (weighted, _) = by_page(keys, begin, size), by_page(weights, begin, size)
        return self.recipe.represent(paged, weighted, real)

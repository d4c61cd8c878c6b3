"""How far a lightning indexer's choice is from a layer's attention, a tile of queries at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topkit.kernels.score import score, score_lightning

# Numbers of a tile's largest tensor: 32 MiB of float32 on a CPU; a GPU is slow at many small ones.
TILE = {"cpu": 1 << 23, "cuda": 1 << 28}


@dataclass(frozen=True)
class Attended:
    """What some queries of a layer attend to.

    Shapes: queries [B, Hq, n, D]; keys [B, Hk, T, D]; positions [n], in order: query i sees the keys up to its own;
    counts [B, n]: how many times a query counts in a mean, None: once.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    positions: Tensor
    counts: Tensor | None = None

    def summed(self, part: slice, seen: int) -> Tensor:
        """The attention of the queries of a tile to the first keys, summed over heads and L1-normalised [B, t, seen].

        Heads are summed as they come: no two heads' weights are held at a time.
        """
        future, group = self.future(part, seen), self.queries.shape[1] // self.keys.shape[1]
        total: Tensor | None = None
        for head in range(self.queries.shape[1]):
            own = self.keys[:, head // group, None, :seen]
            logits = self.scaling * score(self.queries[:, head, None, part], own)[:, 0]
            weights = logits.masked_fill_(future, -math.inf).softmax(-1)
            total = weights if total is None else total.add_(weights)
        assert total is not None
        return total / self.queries.shape[1]

    def future(self, part: slice, seen: int) -> Tensor:
        """Which of the first keys the queries of a tile do not see [t, seen]."""
        slots = torch.arange(seen, device=self.keys.device)
        return slots > self.positions[part, None]

    def tiles(self, heads: int) -> Iterator[tuple[slice, int]]:
        """Tiles of the queries, and how many keys each sees at most; `heads` score a key."""
        count, length = len(self.positions), self.keys.shape[2]
        room = TILE["cuda" if self.keys.is_cuda else "cpu"]
        step, stops = room // (len(self.keys) * length * (heads + 2)) or 1, self.positions.tolist()
        for at in range(0, count, step):
            part = slice(at, min(at + step, count))
            yield part, stops[part.stop - 1] + 1


def divergence(
    queries: Tensor, keys: Tensor, gates: Tensor, attended: Attended, keep: int | None = None
) -> Tensor:
    """The mean over queries of KL(attention || softmax of the index scores), over all keys that a query sees.

    keep: both sides over the `keep` keys of the best index scores alone, of which the attention is normalised anew.
    Memory is linear in queries and keys: of a tile at a time the loss and its gradient are computed at once.
    Shapes: queries [B, H, n, d]; keys [B, 1, T, d]; gates [B, n, H] -> [].
    Source: DeepSeek-V3.2-Exp report, section 2.1 (arXiv 2512.02556): dense warm-up, and sparse training.
    """
    tiled: Any = _Tiled.apply  # of which torch says nothing
    return tiled(queries, keys, gates, attended, keep)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        gates: Tensor,
        attended: Attended,
        keep: int | None,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        grads = [torch.zeros_like(x) for x in (queries, keys, gates)]
        total, counts = queries.new_zeros(()), attended.counts
        count = len(keys) * len(attended.positions) if counts is None else counts.sum()
        for part, seen in attended.tiles(queries.shape[1]):
            places = (slice(None), slice(None), part), (slice(None), slice(None), slice(seen)), (slice(None), part)  # fmt: skip
            with torch.enable_grad():
                own = [x[at].detach().requires_grad_(wanted) for x, at in zip((queries, keys, gates), places, strict=True)]  # fmt: skip
                loss = _of_tile(own, attended, part, seen, keep) / count
            if wanted:
                for grad, at, more in zip(grads, places, torch.autograd.grad(loss, own), strict=True):  # fmt: skip
                    grad[at] += more
            total += loss.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * outputs[0] for grad in ctx.saved_tensors), None, None


def _of_tile(
    own: list[Tensor], attended: Attended, part: slice, seen: int, keep: int | None
) -> Tensor:
    """The sum over the queries of a tile."""
    future = attended.future(part, seen)
    with torch.no_grad():
        target = attended.summed(part, seen)
    scores = score_lightning(*own, backend="torch")[:, 0].masked_fill(future, -math.inf)
    if keep is not None and keep < seen:
        slots = scores.detach().topk(keep, sorted=False).indices
        scores, target = scores.gather(-1, slots), target.gather(-1, slots)
        future = scores == -math.inf
        target = target.masked_fill(future, 0)
        target = target / target.sum(-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
    logs = scores.log_softmax(-1).masked_fill(future, 0)
    lost = (torch.special.entr(target).neg() - target * logs).sum(-1)
    return (lost if attended.counts is None else lost * attended.counts[:, part]).sum()

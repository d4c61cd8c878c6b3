# pyright: strict
"""K-means of the keys of each row and head: one clustering, whatever stands beside it, on every device.

Distances are summed in float64 and compared in float32, so that ties stay ties; what is drawn is hashed from
the seed, the layer and the key's position, the same for all heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkit.indexers.base import Step
from topkit.indexers.noise import salt_of
from topkit.kernels.blocks import blocks
from topkit.kernels.counter_noise import counter_noise

_FIRST = 6  # salt


def kmeans(
    points: Tensor, counts: Tensor, first: Tensor, *, iterations: int, cosine: bool
) -> Tensor:
    """The cluster of each point, after so many assignments or once none moves; the lowest of equal ones.

    Shapes: points [B, H, n, D], of which each row's first `counts` [B] are there; first [B, 1 or H, C], the
    places of the points that centroids begin at, -1 for none -> [B, H, n], -1 where there is no point.
    cosine goes by the angle to the mean of a cluster, and else by the distance from it.
    """
    usable = (first >= 0).expand(-1, points.shape[1], -1)
    at = first.clamp_min(0).expand(-1, points.shape[1], -1)[..., None]
    centroids = points.gather(2, at.expand(-1, -1, -1, points.shape[3])).double()
    there = torch.arange(points.shape[2], device=points.device) < counts[:, None]
    labels = torch.full(points.shape[:3], -1, device=points.device)
    for _ in range(iterations if first.shape[2] else 0):
        before, labels = labels, nearest(points, centroids, usable, cosine=cosine)
        labels = labels.masked_fill(~there[:, None], -1)
        if torch.equal(labels, before):
            break
        means, sizes = means_of(points, labels, centroids.shape[2])
        centroids = means.where((sizes > 0)[..., None], centroids)
    return labels


def nearest(points: Tensor, centroids: Tensor, usable: Tensor, *, cosine: bool) -> Tensor:
    """The centroid [B, H, n] that each of points [B, H, n, D] is nearest to, of those that are usable [B, H, C]."""
    squares = centroids.square().sum(-1, keepdim=True)
    centroids = centroids / squares.sqrt().clamp_min(1e-30) if cosine else centroids
    halves = torch.zeros_like(squares.mT) if cosine else squares.mT / 2
    labels = torch.empty(points.shape[:3], dtype=torch.int64, device=points.device)
    each = centroids.shape[0] * centroids.shape[1] * centroids.shape[2]
    for part in blocks(points.shape[2], each, points.device):
        near = points[:, :, part].double() @ centroids.mT - halves
        near = near.float().masked_fill(~usable[:, :, None], -torch.inf)
        labels[:, :, part] = near.max(-1).indices
    return labels


def means_of(points: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The mean of each cluster's points, zeros of none, and their number.

    Shapes: points [B, H, n, D]; labels [B, H, n], -1 for none -> [B, H, C, D] float64, [B, H, C].
    """
    rows, heads, count, width = points.shape
    # Points of no cluster go to one more, which is cut off.
    of = labels.where(labels >= 0, clusters).flatten(0, 1)
    of = of + torch.arange(rows * heads, device=of.device)[:, None] * (clusters + 1)
    room = rows * heads * (clusters + 1)
    total = torch.zeros(room, width, dtype=torch.float64, device=points.device)
    for part in blocks(count, rows * heads * width, points.device):
        own = points[:, :, part].reshape(-1, width).double()
        total.index_add_(0, of[:, part].reshape(-1), own)
    sizes = torch.bincount(of.reshape(-1), minlength=room).view(rows, heads, -1)[..., :clusters]
    total = total.view(rows, heads, clusters + 1, width)[:, :, :clusters]
    return total / sizes.clamp_min(1)[..., None], sizes


def spread(counts: Tensor, clusters: Tensor) -> Tensor:
    """Places [B, 1, C] spread evenly over each row's `counts` [B] points, one for each of its `clusters` [B]."""
    place = torch.arange(_most(clusters), device=counts.device)
    at = ((2 * place + 1) * counts[:, None]) // (2 * clusters[:, None].clamp_min(1))
    return at.masked_fill(place >= clusters[:, None], -1)[:, None]


def drawn(positions: Tensor, counts: Tensor, clusters: Tensor, step: Step) -> Tensor:
    """Places [B, 1, C] of points drawn without regard to what they hold; positions [B, n] are hashed."""
    draws = draws_of(positions, step)
    place = torch.arange(positions.shape[1], device=positions.device)
    draws = draws.masked_fill(place >= counts[:, None], torch.inf)
    at = draws.sort(dim=-1, stable=True).indices[:, : _most(clusters)]
    own = torch.arange(at.shape[1], device=at.device) < clusters[:, None]
    return at.masked_fill(~own, -1)[:, None]


def plus_plus(
    points: Tensor, positions: Tensor, counts: Tensor, clusters: Tensor, step: Step
) -> Tensor:
    """Places [B, H, C] by k-means++: each drawn by its squared distance from the nearest one before it."""
    rows, heads, count, _ = points.shape
    there = (torch.arange(count, device=points.device) < counts[:, None])[:, None]
    draws = draws_of(positions, step)
    whole = points.double()
    squares = whole.square().sum(-1)
    weights = there.double().expand(rows, heads, -1)
    far = torch.full_like(squares, torch.inf)
    chosen: list[Tensor] = []
    for number in range(_most(clusters)):
        reached = weights.cumsum(-1)
        # Where all points are at a centroid, the last one is drawn again, and its cluster stays empty.
        at = torch.searchsorted(
            reached, draws[:, None, number : number + 1].double() * reached[..., -1:], right=True
        ).clamp_max(count - 1)
        at = torch.minimum(at, (counts - 1).clamp_min(0)[:, None, None])
        chosen.append(at.masked_fill((number >= clusters)[:, None, None], -1))
        one = whole.gather(2, at[..., None].expand(-1, -1, -1, whole.shape[3]))
        apart = squares + one.square().sum(-1) - 2 * (whole @ one.mT)[..., 0]
        # What rounding leaves of a point's distance from itself is none.
        apart = apart.masked_fill(apart < 1e-12 * squares.clamp_min(1e-30), 0)
        far = torch.minimum(far, apart)
        weights = far.masked_fill(~there, 0)
    return torch.cat(chosen, -1)


def draws_of(positions: Tensor, step: Step) -> Tensor:
    """Numbers in [0, 1) [B, n] of positions [B, n], the same for all heads."""
    slots = positions[:, None, None]
    stop = torch.zeros(1, 1, dtype=torch.int64, device=positions.device)
    return counter_noise(
        slots, stop, 1, seed=step.seed, salt=salt_of(step, _FIRST), per_query=False, backend="torch"
    )[:, 0, 0]


def _most(clusters: Tensor) -> int:
    return int(clusters.max()) if clusters.numel() else 0

"""The cuts of all queries: by kernels that write few scores, or of all scores in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.kernels.backend import resolve
from topkit.kernels.select_topk import select_topk
from topkit.kernels.topk_attention import sample
from topkit.kernels.topk_attention.cuts import (
    TILE_CUDA,
    Cuts,
    cuts_of_scores,
    cuts_of_slots,
    seen_scores,
    tiles,
)
from topkit.kernels.topk_attention.reference import products

NAN = "scores hold NaN; check the queries and keys that made them"
CAPTURED = "Top-k attention waits for the GPU, which a CUDA graph cannot hold; call it outside of the capture"


# Whether cuts that were begun changed when they were settled.
Settle = Callable[[], bool]


def cuts_of(
    queries: Tensor,
    keys: Tensor,
    kept: Tensor,
    start: Tensor | None = None,
    slack: float = 0.0,
    backend: str = "auto",
    most: int | None = None,
) -> Cuts:
    """The cuts of all queries, in memory that is linear in queries and keys.

    Shapes: as `topk_attention`, kept [B or 1, Tq]. slack: how far scores that are computed again may be off,
    relative to a score that is tied. backend: "triton" writes few scores, and takes half types; "torch" selects
    among all of a tile's. most: what no query keeps more than, where it is known.
    Raises: InputError for scores that hold NaN, for "triton" where it cannot run, and while a CUDA graph is captured.
    """
    cuts, settle = cuts_begun(queries, keys, kept, start, slack, backend, most)
    settle()
    return cuts


def cuts_begun(
    queries: Tensor,
    keys: Tensor,
    kept: Tensor,
    start: Tensor | None = None,
    slack: float = 0.0,
    backend: str = "auto",
    most: int | None = None,
) -> tuple[Cuts, Settle]:
    """As `cuts_of`, before a GPU is waited for: and what waits, raises, and cuts again, in place, what is left.

    What attends in between attends again where cuts changed, as where thousands of rows are tied. With `most` the
    host is ahead of the GPU all along.
    """
    # Before anything is launched: what is remembered would be of a graph that never runs.
    if queries.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(CAPTURED)
    with torch.no_grad():
        bound = max(1, int(kept.max())) if most is None else most
        own = sample.unsupported(queries, keys, bound)
        if resolve(backend, queries, own) == "torch":
            return _in_tiles(queries, keys, kept, start, slack), lambda: False
        from topkit.kernels.topk_attention import triton_impl

        cuts, left, state, _ = triton_impl.cut_rows(queries, keys, kept, start, bound, slack)
        told = _told_later(state)

    def settle() -> bool:
        count, nan = told()
        if nan:
            raise InputError(NAN)
        if count <= triton_impl.AGAIN:
            return False
        rest = left[triton_impl.AGAIN : count].long().sort().values
        with torch.no_grad():
            _cut_again(queries, keys, kept, start, slack, rest, cuts)
        return True

    return cuts, settle


def _told_later(numbers: Tensor) -> Callable[[], list[int]]:
    """What gives numbers of a GPU as they are now: it waits for what was launched before, not for what follows."""
    if not numbers.is_cuda:
        return numbers.tolist
    there = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
    with torch.cuda.device_of(numbers):
        there.copy_(numbers, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

    def wait() -> list[int]:
        done.synchronize()
        return there.tolist()

    return wait


def _in_tiles(
    queries: Tensor, keys: Tensor, kept: Tensor, start: Tensor | None, slack: float
) -> Cuts:
    """The cuts, of a tile of scores at a time."""
    made: list[Cuts] = []
    most = max(1, int(kept.max()))
    for part, seen in tiles(queries, keys):
        some, its = queries[:, :, part], kept[:, part]
        if not queries.is_cuda:
            made.append(cuts_of_scores(seen_scores(some, keys[:, :, :seen], start), its, slack))
            continue
        # What a query does not see is passed over by the selection, which is one pass less over the scores.
        scores = products(some, keys[:, :, :seen])
        if start is not None:
            hidden = torch.arange(seen, device=start.device) < start[:, None, None, None]
            scores.masked_fill_(hidden, float("-inf"))
        stop = torch.arange(seen - its.shape[1], seen, device=scores.device) + 1
        slots = select_topk(scores, min(most + 1, seen), stop=stop, check=False)
        made.append(cuts_of_slots(scores, slots, its[:, None], slack))
    cuts = Cuts(*(torch.cat([getattr(one, f.name) for one in made], 2) for f in fields(Cuts)))
    if queries.is_cuda:
        _require_numbers(cuts, kept, start, keys.shape[2])
    return cuts


def _require_numbers(cuts: Cuts, kept: Tensor, start: Tensor | None, length: int) -> None:
    """Refuse rows that should keep a key and were found none, as of NaN; the GPU is waited for once."""
    slots = torch.arange(length - kept.shape[1], length, device=kept.device)
    asked = (kept > 0) & (slots >= (0 if start is None else start[:, None]))
    if (asked[:, None] & (cuts.high == float("inf"))).any():
        raise InputError(NAN)


def _cut_again(
    queries: Tensor,
    keys: Tensor,
    kept: Tensor,
    start: Tensor | None,
    slack: float,
    left: Tensor,
    cuts: Cuts,
) -> None:
    """Find the cuts of the queries that are left [n], in order, from all of their scores, in place.

    They stand side by side as the queries of their KV head, which is scored at once.
    """
    (rows, heads, count, _), (_, groups, length, _) = queries.shape, keys.shape
    row, head, query = torch.unravel_index(left, queries.shape[:3])
    # As `left` is in order, so are the KV heads of it.
    pair = row * groups + head // (heads // groups)
    each = pair.bincount(minlength=rows * groups)
    nth = torch.arange(len(left), device=left.device) - (each.cumsum(0) - each)[pair]
    width = max(1, TILE_CUDA // (rows * groups * length))
    slots = torch.arange(length, device=left.device)
    most = max(1, int(kept.max()))
    for begin in range(0, int(each.max()), width):
        some = (nth >= begin) & (nth < begin + width)
        b, h, q, p, at = (x[some] for x in (row, head, query, pair, nth - begin))
        wide = queries.new_zeros(rows * groups, int(at.max()) + 1, queries.shape[3])
        wide[p, at] = queries[b, h, q]
        scores = products(wide.unflatten(0, (rows, groups)), keys).flatten(0, 1)[p, at]
        seen = slots <= (length - count + q)[:, None]
        if start is not None:
            seen &= slots >= start[b, None]
        scores.masked_fill_(~seen, float("-inf"))
        its = kept.expand(rows, -1)[b, q]
        chosen = select_topk(scores, min(most + 1, length))
        made = cuts_of_slots(scores, chosen, its, slack)
        for field in fields(Cuts):
            getattr(cuts, field.name)[b, h, q] = getattr(made, field.name)

# pyright: strict, reportUnknownMemberType=false
"""Laws of one selection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topkit.contract.agree import require_same_rest
from topkit.contract.draw import PADDED, RANDOM, Draw
from topkit.contract.streams import Stream, parts
from topkit.indexers.base import Index, Indexer, Selection

BUDGETS = (1, 5, 16, 40)


@dataclass(frozen=True)
class Answer:
    """One selection, and the call that it came of. Shapes: stop, first, visible [B, Tq]."""

    stream: Stream
    length: int
    count: int
    k: int
    index: Index
    selection: Selection

    @property
    def indices(self) -> Tensor:
        return self.selection.indices

    @property
    def stop(self) -> Tensor:
        stop = torch.arange(self.length - self.count + 1, self.length + 1)
        return stop.to(self.indices.device).expand(self.stream.keys.shape[0], -1)

    @property
    def first(self) -> Tensor:
        return self.stream.starts()[:, None].expand_as(self.stop)

    @property
    def visible(self) -> Tensor:
        return (self.stop - self.first).clamp_min(0)


def streams(indexer: Indexer, draw: Draw) -> list[Stream]:
    return [
        draw(indexer),
        draw(indexer, start=PADDED),
        draw(indexer, whole=True, heads=(6, 2)),
        draw(indexer, length=1),
        draw(indexer, length=3, heads=(3, 3)),
        draw(indexer, length=65, rows=1, heads=(4, 1)),
    ]


# The answers that the last recipe to be asked gave: seven laws look at the same ones.
_LAST: list[tuple[Indexer, Draw, list[Answer]]] = []


def answers(indexer: Indexer, draw: Draw) -> list[Answer]:
    """Selections over streams with and without padding, ties, groups, and few keys; asked once for all laws."""
    if not (_LAST and _LAST[0][0] is indexer and _LAST[0][1] is draw):
        _LAST.clear()  # nothing is kept of a recipe that raises
        _LAST.append((indexer, draw, list(answers_over(indexer, streams(indexer, draw)))))
    return _LAST[0][2]


def answers_over(indexer: Indexer, some: Sequence[Stream]) -> Iterator[Answer]:
    """Selections over some streams."""
    for one in some:
        cuts = [math.ceil(one.length / 2), one.length] if one.length > 1 else [1]
        index = one.build(indexer, cuts)
        assert index.length == one.length, f"length is {index.length} after {one.length} keys"
        for k in BUDGETS:
            for count in (1, 3) if indexer.traits().causal_codes and one.length >= 3 else (1,):
                selection = one.ask(indexer, index, k, count)
                yield Answer(one, one.length, count, k, index, selection)


def shape(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """indices is int64 [B, Hs, Tq, min(k, T)], with Hs in {Hq, Hk, 1}."""
    for a in answers(indexer, draw):
        rows, heads = a.stream.queries.shape[:2]
        shape = tuple(a.indices.shape)
        wanted = {(rows, h, a.count, min(a.k, a.length)) for h in (heads, a.stream.kv_heads, 1)}
        assert shape in wanted, f"indices are {shape}; expected one of {sorted(wanted)}"
        assert a.indices.dtype == torch.int64, f"indices are {a.indices.dtype}; expected int64"


def budgets_together(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """select_many chooses, at each budget and at the same cost, what select chooses at it alone."""
    if indexer.traits().remembers:
        return
    for one in streams(indexer, draw):
        index = one.build(indexer)
        for count in (1, 3) if indexer.traits().causal_codes and one.length >= 3 else (1,):
            tokens = slice(one.length - count, one.length)
            step = one.step(indexer, tokens, one.length)
            step = replace(step, memo={})
            together = index.select_many(one.queries[:, :, tokens], BUDGETS, step)
            for k in BUDGETS:
                alone, many = one.ask(indexer, index, k, count), together[k]
                assert torch.equal(many.indices, alone.indices), f"other keys at k = {k}"
                for name in ("keys_scored", "bytes_read"):
                    ours, other = (torch.as_tensor(getattr(s, name)) for s in (many, alone))
                    assert bool((ours == other).all()), f"{name} is another at k = {k}"
                if alone.log_weights is not None:
                    assert many.log_weights is not None
                    assert torch.allclose(many.log_weights, alone.log_weights)
                require_same_rest(many.rest, alone.rest, f"together with others, k = {k}")


def visible_slots_only(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Every slot is visible: neither padding, nor later than the query, nor out of range."""
    for a in answers(indexer, draw):
        real = a.indices != -1
        low = (a.indices >= a.first[:, None, :, None]) | ~real
        high = (a.indices < a.stop[:, None, :, None]) | ~real
        assert low.all(), f"a padded or negative slot was chosen: {_first(a, ~low)}"
        assert high.all(), f"a slot that is not there yet was chosen: {_first(a, ~high)}"


def unique(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """No slot is chosen twice."""
    for a in answers(indexer, draw):
        ordered = a.indices.sort(-1).values
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        assert not twice.any(), f"a slot was chosen twice: {ordered[twice.any(-1)][0].tolist()}"


def none_last(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """-1 stands last, with a log-weight of 0; other log-weights are finite."""
    for a in answers(indexer, draw):
        real = a.indices >= 0
        assert (real[..., :-1] | ~real[..., 1:]).all(), "a slot follows a -1"
        weights = a.selection.log_weights
        if weights is not None:
            assert weights.shape == a.indices.shape, "log_weights are not shaped as indices"
            assert weights.isfinite().all(), "a log-weight is not finite"
            assert (weights[~real] == 0).all(), "a -1 has a log-weight other than 0"


def estimates_declared(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Log-weights come only of what is `weighted`, a rest of what has a `rest`: values, and a logit or a share each."""
    traits = indexer.traits()
    for a in answers(indexer, draw):
        rest, (rows, heads) = a.selection.rest, a.stream.queries.shape[:2]
        assert traits.weighted or a.selection.log_weights is None, (
            "it gave log_weights, and its traits do not say weighted"
        )
        assert traits.rest or rest is None, "it gave a rest, and its traits do not say rest"
        if rest is None:
            continue
        each = rest.logits if rest.share is None else rest.share
        assert (rest.logits is None) != (rest.share is None), "a rest has logits or shares"
        assert each is not None and each.shape[:3] == (rows, heads, a.count), "a rest of other rows"
        assert rest.values.shape[:4] == each.shape, "a rest has other values than weights"
        assert rest.values.isfinite().all() and (each < math.inf).all(), "a rest is not finite"


def count(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """min(k, visible) slots are chosen; fewer only if the class may_come_short."""
    for a in answers(indexer, draw):
        kept = (a.indices >= 0).sum(-1)
        wanted = a.visible.clamp_max(a.k)[:, None].expand_as(kept)
        assert (kept <= wanted).all(), "more slots were chosen than k or than are visible"
        if not indexer.traits().may_come_short:
            short_of = kept < wanted
            assert not short_of.any(), (
                f"{kept[short_of][0]} of {wanted[short_of][0]} slots were chosen (k={a.k}), and the "
                "class does not say may_come_short"
            )


def exhaustive(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """k >= visible chooses every visible slot, for classes that are exhaustive."""
    if not indexer.traits().exhaustive:
        return
    for a in answers(indexer, draw):
        whole = (a.visible <= a.k)[:, None].expand(a.indices.shape[:-1])
        kept = (a.indices >= 0).sum(-1)
        missed = whole & (kept != a.visible[:, None])
        assert not missed.any(), (
            f"k={a.k} covers all visible slots, but {kept[missed][0]} were chosen"
        )


def half_precision(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """bfloat16 and float16 tensors give selections that keep the laws of float32's."""
    for dtype in (torch.bfloat16, torch.float16):
        for a in answers_over(indexer, [draw(indexer, start=PADDED).to(dtype)]):
            real = a.indices >= 0
            inside = (a.indices >= a.first[:, None, :, None]) & (
                a.indices < a.stop[:, None, :, None]
            )
            assert (inside | ~real).all(), f"{dtype}: a slot that is not visible was chosen"
            if not indexer.traits().may_come_short:
                kept = real.sum(-1)
                assert (kept == a.visible.clamp_max(a.k)[:, None]).all(), f"{dtype}: too few slots"


def bounded_cost(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """keys_scored and bytes_read are finite numbers, or tensors [B or 1, Tq], within reason.

    Within reason: each stage of a combinator scores a visible key at most twice (a graph meets some
    keys on two levels), and reads the index and the keys of every query head at most twice.
    """
    most = 2 * len(parts(indexer))
    for a in answers(indexer, draw):
        rows, heads = a.stream.queries.shape[:2]
        keys = heads * a.length * a.stream.keys.shape[3] * a.stream.keys.element_size()
        caps = {
            "keys_scored": most * a.visible.double(),
            "bytes_read": most * (a.index.nbytes + keys) * torch.ones_like(a.visible.double()),
        }
        for name, cap in caps.items():
            cost = torch.as_tensor(getattr(a.selection, name)).double()
            fits = cost.dim() == 0 or tuple(cost.shape) in {(rows, a.count), (1, a.count)}
            assert fits, f"{name} has shape {tuple(cost.shape)}; expected a number or [B, Tq]"
            assert cost.isfinite().all() and (cost >= 0).all(), f"{name} is {cost}"
            assert (cost <= cap + 1e-6).all(), f"{name} is {cost.max():g}; at most {cap.max():g}"


def _first(a: Answer, wrong: Tensor) -> str:
    row, head, query, _ = map(int, wrong.nonzero()[0])
    start, stop = int(a.first[row, query]), int(a.stop[row, query])
    return f"{a.indices[row, head, query].tolist()} where {start} <= slot < {stop} (k={a.k})"

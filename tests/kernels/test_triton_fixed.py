"""What steps of fixed shapes are made of: kernels, on a GPU or in Triton's interpreter, and definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device import DEVICE
from topkit.errors import InputError
from topkit.kernels.codes import hadamard_rotate
from topkit.kernels.force_ends import ends_first, force_ends
from topkit.kernels.gather_attention import attend_all, gather_attention, gather_scores
from topkit.kernels.hadamard import hadamard
from topkit.kernels.page_bounds import append_bounds, score_bounds
from topkit.kernels.score_keys import score_keys
from topkit.kernels.select_mass import select_mass
from topkit.kernels.select_pages import select_pages
from topkit.kernels.select_topk import select_topk

pytest.importorskip("triton")

ROWS, HEADS, GROUPS, LENGTH, STOP = 2, 6, 2, 70, 61
STARTS = [None, (0, 17)]
BACKENDS = ["torch", "triton"]


def drawn(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-2])
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def window(start: tuple[int, ...] | None) -> dict[str, Any]:
    first = None if start is None else torch.tensor(start, device=DEVICE)
    return {"start": first, "stop": torch.tensor([[STOP]], device=DEVICE)}


def seen(row: int, start: tuple[int, ...] | None) -> range:
    return range(0 if start is None else start[row], STOP)


def queries_and_keys(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    return drawn(ROWS, HEADS, 1, 64, dtype=dtype), drawn(ROWS, GROUPS, LENGTH, 64, dtype=dtype)


def lists(of_heads: int, count: int) -> Tensor:
    """Slots below STOP, each once, with two that are none [ROWS, of_heads, 1, count]."""
    generator = torch.Generator().manual_seed(3)
    each = [torch.randperm(STOP, generator=generator)[:count] for _ in range(ROWS * of_heads)]
    slots = torch.stack(each).view(ROWS, of_heads, 1, count).to(DEVICE)
    slots[..., 5] = slots[..., 9] = -1
    return slots


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keys_are_scored_where_they_are_seen(
    backend: str, start: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    queries, keys = queries_and_keys(dtype)
    ours = score_keys(queries, keys, **window(start), backend=backend)
    for row in range(ROWS):
        for head in range(HEADS):
            want = torch.full((LENGTH,), -torch.inf, dtype=torch.float64)
            for slot in seen(row, start):
                want[slot] = queries[row, head, 0].double() @ keys[row, head // 3, slot].double()
            close(ours[row, head, 0], want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", STARTS)
def test_attention_over_all_keys(backend: str, start: tuple[int, ...] | None) -> None:
    queries, keys = queries_and_keys()
    values = drawn(ROWS, GROUPS, LENGTH, 64) + 1
    values[:, :, STOP:] = torch.inf  # what nobody sees
    ours = attend_all(queries, keys, values, scaling=0.2, **window(start), backend=backend)
    for row in range(ROWS):
        slots = torch.tensor([*seen(row, start)], device=DEVICE)
        for head in range(HEADS):
            own = keys[row, head // 3, slots].double() @ queries[row, head, 0].double()
            want = (0.2 * own).softmax(-1) @ values[row, head // 3, slots].double()
            close(ours[row, head, 0], want, 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_attends_to_nothing(backend: str) -> None:
    queries, keys = queries_and_keys()
    nothing = {"start": None, "stop": torch.tensor([[0]], device=DEVICE)}
    assert not attend_all(queries, keys, keys, scaling=1.0, **nothing, backend=backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of_heads", [1, GROUPS, HEADS])
def test_chosen_keys_are_scored(backend: str, of_heads: int) -> None:
    queries, keys = queries_and_keys()
    slots = lists(of_heads, 40)
    ours = gather_scores(queries, keys, slots, backend=backend)
    whole = score_keys(queries, keys, backend="torch")
    named = slots.repeat_interleave(HEADS // of_heads, 1)
    want = whole.gather(-1, named.clamp_min(0)).masked_fill(named < 0, -torch.inf)
    close(ours, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 7, 39, 60])
def test_the_best_of_named_slots_tie_by_the_lowest(backend: str, k: int) -> None:
    slots = lists(HEADS, 40)
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(0, 6, slots.shape, generator=generator).float().to(DEVICE)
    scores = scores.masked_fill(slots < 0, -torch.inf)
    ours = select_topk(scores, k, slots=slots, backend=backend)
    for row in range(ROWS):
        for head in range(HEADS):
            pairs = zip(scores[row, head, 0].tolist(), slots[row, head, 0].tolist(), strict=True)
            want = [s for _, s in sorted((-x, s) for x, s in pairs if s >= 0)][:k]
            assert ours[row, head, 0].tolist() == want + [-1] * (min(k, 40) - len(want))


def test_named_slots_are_refused_with_a_stop_and_of_other_shapes() -> None:
    scores, slots = torch.zeros(2, 5), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(InputError, match="slots must be"):
        select_topk(scores, 2, slots=slots)
    with pytest.raises(InputError, match="stop is of slots that are places"):
        select_topk(scores[:, :4], 2, slots=slots, stop=torch.tensor([3]))


def forced(row: int, start: tuple[int, ...] | None, sink: int, newest: int) -> set[int]:
    visible = [*seen(row, start)]
    return {*visible[:sink], *visible[len(visible) - newest :]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("sink", "newest"), [(4, 16), (1, 0), (0, 3), (0, 0), (50, 20)])
def test_ends_are_forced(
    backend: str, start: tuple[int, ...] | None, sink: int, newest: int
) -> None:
    queries, keys = queries_and_keys()
    scores = score_keys(queries, keys, **window(start), backend="torch")
    ours, _ = force_ends(scores.clone(), sink, newest, **window(start), backend=backend)
    slots = lists(GROUPS, 40)
    own = gather_scores(queries, keys, slots)
    raised, named = force_ends(
        own.clone(), sink, newest, slots=slots, **window(start), backend=backend
    )
    assert named is not None
    named = named.repeat_interleave(HEADS // named.shape[1], 1)
    for row in range(ROWS):
        ends = forced(row, start, sink, newest)
        for head in range(HEADS):
            want = scores[row, head, 0].clone()
            want[[*ends]] = torch.inf
            assert torch.equal(ours[row, head, 0], want)
            pairs = zip(named[row, head, 0].tolist(), raised[row, head, 0].tolist(), strict=True)
            ours_named = {slot: score for slot, score in pairs if score > -torch.inf}
            theirs = zip(slots[row, head // 3, 0].tolist(), own[row, head, 0].tolist(), strict=True)
            by_slot = {slot: score for slot, score in theirs if slot >= 0 and slot not in ends}
            if sink + newest:
                first = 0 if start is None else start[row]
                by_slot = {s: x for s, x in by_slot.items() if s >= first + sink}
            assert ours_named == by_slot | dict.fromkeys(ends, float("inf"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [None, (0, 58)])
@pytest.mark.parametrize(("sink", "newest"), [(4, 16), (0, 3), (0, 0), (50, 20)])
@pytest.mark.parametrize(("width", "k"), [(40, 40), (40, 7), (0, 9), (12, 70)])
def test_ends_come_first(
    backend: str, start: tuple[int, ...] | None, sink: int, newest: int, width: int, k: int
) -> None:
    slots = lists(GROUPS, 40)[..., :width]
    ours = ends_first(slots, k, sink, newest, **window(start), backend=backend)
    for row in range(ROWS):
        visible = [*seen(row, start)]
        first, last = visible[:sink], visible[sink:][::-1][:newest]
        for head in range(GROUPS):
            others = [s for s in slots[row, head, 0].tolist() if s in visible[sink:]]
            want = (first + last + [s for s in others if s not in last])[:k]
            ours_here = ours[row, head, 0].tolist()
            assert ours_here == want + [-1] * (k - len(want))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("k", "mass"), [(5, 0.9), (30, 0.5), (30, 1.0), (20, 0.99)])
def test_as_many_keys_as_the_mass_needs(backend: str, k: int, mass: float) -> None:
    queries, keys = queries_and_keys()
    scores = score_keys(queries, keys, **window((0, 17)), backend="torch")
    ours = select_mass(scores, k, mass=mass, scaling=0.3, backend=backend)
    shares = (0.3 * scores.double()).softmax(-1)
    for row in range(ROWS):
        for head in range(HEADS):
            share, before, want = shares[row, head, 0].tolist(), 0.0, []
            for slot in sorted(seen(row, (0, 17)), key=lambda s: -share[s])[:k]:
                if want and before >= mass - 1e-6:
                    break
                want.append(slot)
                before += share[slot]
            kept = [slot for slot in ours[row, head, 0].tolist() if slot >= 0]
            assert kept == want[: len(kept)] and len(want) - len(kept) in (0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("size", [16, 7])
def test_pages_by_their_bounds(backend: str, start: tuple[int, ...] | None, size: int) -> None:
    queries, keys = queries_and_keys()
    room = LENGTH // size + 2
    low, high = (torch.full((ROWS, GROUPS, room, 64), torch.nan).half().to(DEVICE) for _ in "ab")
    first = window(start)["start"]
    # A page is right once its last key is there, whatever came between.
    ends = {STOP - 1, *(at for f in start or (0,) for at in range(f + size - 1, STOP, size))}
    for at in sorted(ends):
        place = torch.tensor([at], device=DEVICE)
        append_bounds(keys, low, high, place, page_size=size, start=first, backend=backend)
    own = {**window(start), "page_size": size, "backend": backend}
    scores = score_bounds(queries, low, high, **own)
    for row in range(ROWS):
        visible = [*seen(row, start)]
        pages = [visible[i : i + size] for i in range(0, len(visible), size)]
        for head in range(HEADS):
            query, want = queries[row, head, 0].double(), []
            for page in pages:
                there = keys[row, head // 3, page].double()
                bound = torch.maximum(query * there.amin(0), query * there.amax(0)).sum()
                want.append(float(bound))
            close(scores[row, head, 0, : len(pages)], torch.tensor(want).double())
            assert (scores[row, head, 0, len(pages) :] == -torch.inf).all()
    for k in (5, 33):
        slots = select_pages(scores, k, **own)
        for row in range(ROWS):
            visible = [*seen(row, start)]
            pages = [visible[i : i + size] for i in range(0, len(visible), size)]
            for head in range(HEADS):
                order = scores[row, head, 0, : len(pages)].argsort(descending=True, stable=True)
                chosen = [slot for page in order.tolist() for slot in reversed(pages[page])][:k]
                assert slots[row, head, 0].tolist() == chosen + [-1] * (k - len(chosen))


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotated_queries_have_the_bits_of_the_definition(dim: int, dtype: torch.dtype) -> None:
    vectors = drawn(2, 1, 3, dim, dtype=dtype).transpose(1, 2)
    ours = hadamard(vectors, backend="triton")
    assert torch.equal(ours, hadamard_rotate(vectors)) and ours.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_keys_named_are_attention_over_all(backend: str) -> None:
    queries, keys = queries_and_keys()
    slots = torch.arange(STOP, device=DEVICE).expand(ROWS, 1, 1, -1)
    ours = attend_all(queries, keys, keys, scaling=0.1, **window(None), backend=backend)
    close(ours, gather_attention(queries, keys, keys, slots, scaling=0.1, backend="torch"), 1e-2)


def close(ours: Tensor, want: Tensor, by: float = 2e-3) -> None:
    torch.testing.assert_close(ours.double(), want.double().to(ours.device), rtol=by, atol=by)

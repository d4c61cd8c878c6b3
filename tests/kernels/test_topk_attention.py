"""Top-k attention by its definition and by tiles, against a slow rendering in Python; on a GPU, by its kernels too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from device import gpu
from peak import peak
from topkit.errors import InputError
from topkit.kernels.topk_attention import cuts as tiling
from topkit.kernels.topk_attention import cuts_of, keys_kept, most_kept, topk_attention
from topkit.kernels.topk_attention.reference import best, products, visible

FORMS = ("torch", "tiled")


def drawn(
    rows: int = 2, heads: int = 4, groups: int = 2, count: int = 9, length: int = 9, dim: int = 8,
    seed: int = 0, ties: bool = False, dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    """Queries, keys and values; with ties, of small whole numbers."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [
        (rows, heads, count, dim),
        (rows, groups, length, dim),
        (rows, groups, length, dim + 1),
    ]
    if ties:
        return [torch.randint(-1, 2, shape, generator=draw).to(dtype) for shape in shapes]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def slow(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scaling: float, start: list[int]) -> Tensor:
    """A query at a time, by Python's sort."""
    rows, heads, count, _ = q.shape
    out = torch.zeros(rows, heads, count, v.shape[3], dtype=q.dtype)
    for b in range(rows):
        for h in range(heads):
            group = h * k.shape[1] // heads
            for i in range(count):
                stop = k.shape[2] - count + i + 1
                scores = {s: float(q[b, h, i] @ k[b, group, s]) for s in range(start[b], stop)}
                chosen = sorted(scores, key=lambda s: (-scores[s], s))[: int(kept[b, i])]
                if chosen:
                    most = max(scores[s] for s in chosen)
                    weights = [math.exp(scaling * (scores[s] - most)) for s in chosen]
                    for s, w in zip(chosen, weights, strict=True):
                        out[b, h, i] += w / sum(weights) * v[b, group, s]
    return out


def attended(inputs: Sequence[Tensor], kept: Tensor, **options: Any) -> Tensor:
    q, k, v = inputs
    return topk_attention(q, k, v, kept, **options)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ties": {"ties": True},
    "alone": {"heads": 2, "groups": 2, "rows": 1},
    "newest": {"count": 4, "length": 11},
    "one key": {"count": 1, "length": 1},
}


@pytest.mark.parametrize("tile", [1, 70, 1 << 24])
@pytest.mark.parametrize("case", CASES)
def test_all_forms_are_the_slow_rendering(
    case: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "TILE", tile)
    q, k, v = drawn(**CASES[case])
    rows, _, count, _ = q.shape
    start = [0, 3][:rows] if k.shape[2] > 5 else [0] * rows
    for kept in (torch.randint(0, 6, (rows, count)), torch.full((rows, count), 99)):
        expected = slow(q, k, v, kept, 0.3, start)
        for form in FORMS:
            out = topk_attention(
                q, k, v, kept, scaling=0.3, start=torch.tensor(start), backend=form
            )
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(
    form: str, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "TILE", 40)
    # Of ties a small step decides: the keys that are tied are then one and the same.
    q, k, v = drawn(rows=1, heads=2, groups=1, count=5, length=6, dim=3)
    k = k[:, :, [0, 1, 2, 3, 4, 4]] if ties else k
    inputs = [x.requires_grad_() for x in (q, k, v)]
    kept = torch.tensor([6, 1, 2, 3, 2])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return topk_attention(q, k, v, kept, backend=form, start=torch.tensor([1]))

    if not ties:
        assert torch.autograd.gradcheck(attend, inputs)
    want = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    grads = torch.autograd.grad(attend(*inputs), inputs, want)
    defined = torch.autograd.grad(
        attended(inputs, kept, backend="torch", start=torch.tensor([1])), inputs, want
    )
    for one, other in zip(grads, defined, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 1), (2, 2)])
def test_products_have_the_gradient_of_finite_differences(heads: int, groups: int) -> None:
    q, k, _ = drawn(2, heads, groups, 2, 3, 4)
    assert torch.autograd.gradcheck(products, [q.requires_grad_(), k.requires_grad_()])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([(1, 1), (4, 2), (3, 1)]), st.integers(1, 12), st.integers(0, 9),
    st.integers(1, 200), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_tiles_are_the_definition(
    rows: int, heads: tuple[int, int], count: int, more: int, tile: int, ties: bool, seed: int
) -> None:
    q, k, v = drawn(rows, *heads, count, count + more, 4, seed, ties, torch.float32)
    draw = torch.Generator().manual_seed(seed)
    kept = torch.randint(0, count + more + 2, (rows, count), generator=draw)
    start = torch.randint(0, count + more, (rows,), generator=draw)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    want = torch.randn(*q.shape[:3], v.shape[3], generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "TILE", tile)
        both = []
        for form in FORMS:
            out = attended(inputs, kept, start=start, backend=form)
            both.append((out, *torch.autograd.grad(out, inputs, want)))
        scores = products(q, k).detach()
        scores = scores.masked_fill(~visible(count, count + more, start, q.device), float("-inf"))
        cuts = cuts_of(q, k, kept, start)
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(cuts.keep(scores), best(scores, kept))


@pytest.mark.parametrize("slack", [0.0, tiling.SLACK])
@pytest.mark.parametrize(
    "row", ["i 1 i 2", "1 -i -i 2", "i i i i", "-i -i -i -i", "-h -h h h i", "h h h i i"]
)
def test_infinite_scores_are_cut_as_by_the_definition(row: str, slack: float) -> None:
    """Infinity is a score that may tie; of minus infinity there is nothing to keep. h is the greatest number."""
    named = {"i": math.inf, "h": torch.finfo(torch.float32).max}
    scores = torch.tensor([[[[(-1 if x[0] == "-" else 1) * float(named.get(x.lstrip("-"), x.lstrip("-"))) for x in row.split()]]]])  # fmt: skip
    for k in range(scores.shape[3] + 1):
        kept = torch.tensor([[k]])
        cuts = tiling.cuts_of_scores(scores, kept, slack)
        assert torch.equal(cuts.keep(scores), best(scores, kept)), k


@pytest.mark.parametrize("form", FORMS)
def test_an_infinite_score_that_stays_is_no_number_and_another_is_nothing(form: str) -> None:
    q, k, v = drawn(1, 1, 1, 2, 5, 4, dtype=torch.float32)
    k[..., 1, :], k[..., 3, :] = 3e38 * q[:, :, 0].sign(), -3e38 * q[:, :, 0].sign()
    out = attended([q[:, :, :1], k, v], torch.tensor([1]), backend=form)
    assert out.isnan().all()
    q = -q
    out = attended([q[:, :, :1], k, v], torch.tensor([1]), backend=form)
    assert out.isnan().all()
    q, k = q.clone(), k[:, :, :3]
    out = attended([q[:, :, :1], k, v[:, :, :3]], torch.tensor([3]), backend=form)
    assert out.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_the_graph_of_a_caller_breaks_at_it(form: str) -> None:
    """What is compiled is what stands about it, which gives what it gave; a graph that may not break is refused."""
    from torch._dynamo.exc import Unsupported

    inputs = [x.requires_grad_() for x in drawn(dtype=torch.float32, count=40, length=40)]
    kept, graphs = torch.full((40,), 4), []

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (topk_attention(q * 2, k, v, kept, backend=form) + 1).square()

    def noted(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([n.target for n in module.graph.nodes if n.op.startswith("call")])
        return module.forward

    torch.compiler.reset()
    want, out = call(*inputs), torch.compile(call, backend=noted)(*inputs)
    assert torch.equal(out, want)
    both = [torch.autograd.grad(x.sum(), inputs) for x in (out, want)]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
    assert [len(graph) for graph in graphs] == [1, 2]
    torch.compiler.reset()  # what is compiled would serve
    whole = torch.compile(call, backend=noted, fullgraph=True)
    with pytest.raises(Unsupported):
        whole(*inputs)


def test_nothing_flows_through_keys_that_are_left_out() -> None:
    q, k, v = (x.requires_grad_() for x in drawn(rows=1, heads=1, groups=1, count=1, length=9))
    chosen = best(products(q, k).detach(), torch.tensor([[3]]))[0, 0, 0]
    topk_attention(q, k, v, torch.tensor([3])).square().sum().backward()
    for x in (k, v):
        assert x.grad is not None and torch.equal(x.grad[0, 0].abs().sum(-1) > 0, chosen)


def test_padding_gets_zeros_and_no_gradient() -> None:
    inputs = [x.requires_grad_() for x in drawn(count=6, length=6)]
    for form in FORMS:
        out = attended(inputs, torch.full((6,), 2), start=torch.tensor([0, 4]), backend=form)
        assert (out[1, :, :4] == 0).all() and (out[1, :, 4:] != 0).all()
        for grad in torch.autograd.grad(out.sum(), inputs):
            assert grad.isfinite().all() and (grad[1, :, :4] == 0).all()


def test_half_types_are_scored_in_float32() -> None:
    q, k, v = drawn(dtype=torch.bfloat16, count=40, length=40)
    kept = torch.full((40,), 7)
    out = topk_attention(q, k, v, kept)
    exact = attended([x.double() for x in (q, k, v)], kept, backend="torch")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_moves_no_key_and_no_gradient(form: str) -> None:
    """Forward within it, backward within it or without, as both are trained."""
    inputs = [x.requires_grad_() for x in drawn(dtype=torch.float32, count=40, length=40)]
    kept, autocast = torch.full((40,), 7), torch.autocast("cpu", torch.bfloat16)
    want = attended(inputs, kept, backend=form)
    gradients = torch.autograd.grad(want.sum(), inputs)
    with autocast:
        outs = [attended(inputs, kept, backend=form) for _ in range(2)]
        found = [torch.autograd.grad(outs[0].sum(), inputs)] if form == "tiled" else []
        cuts = cuts_of(inputs[0], inputs[1], kept[None])
    found.append(torch.autograd.grad(outs[1].sum(), inputs))
    assert all(torch.equal(out, want) for out in outs)
    assert torch.equal(cuts.high, cuts_of(inputs[0], inputs[1], kept[None]).high)
    for made in found:
        for one, other in zip(made, gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_memory_is_linear_in_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile holds more scores than TILE, or than one query has."""
    monkeypatch.setattr(tiling, "TILE", 1 << 12)
    q, k, _ = drawn(count=300, length=300)
    widths = [(part.stop - part.start) * seen * 8 for part, seen in tiling.tiles(q, k)]
    assert max(widths) <= max(1 << 12, 300 * 8) and sum(widths) < 300 * 300 * 8

    def passed(length: int) -> int:
        inputs = [x.requires_grad_() for x in drawn(1, 1, 1, length, length, dtype=torch.float32)]
        kept = keys_kept("0.01", length, length)
        own = sum(x.nbytes for x in inputs)
        return peak(lambda: attended(inputs, kept, backend="tiled").sum().backward())[1] - own

    monkeypatch.setattr(tiling, "TILE", 1 << 14)
    # Twice the tokens: twice what is held of them, where all pairs would be four times as many.
    assert passed(600) < 2.2 * passed(300)


def test_a_ratio_keeps_a_share_of_what_is_seen_rounded_up() -> None:
    for ratio in ("0.01", "0.05", 0.07, "1/3", 1):
        share = Fraction(str(ratio))
        kept = keys_kept(ratio, 500, 500)[0].tolist()
        assert kept == [math.ceil(share * (n + 1)) for n in range(500)]
        assert most_kept(ratio, 500) == max(kept)
    assert keys_kept(0.01, 1, 300).item() == 3 and keys_kept(0.07, 1, 100).item() == 7
    assert most_kept("0.01", 300, least=4) == 4 and most_kept(1, 3, least=4) == 3
    padded = keys_kept("0.5", 3, 6, start=torch.tensor([0, 4]), least=2)
    assert padded.tolist() == [[2, 3, 3], [0, 1, 2]]
    for ratio in (0, -0.1, 1.01, "2"):
        with pytest.raises(InputError, match=r"ratio must lie in \(0, 1\]"):
            keys_kept(ratio, 3, 3)


def test_what_does_not_belong_together_is_refused() -> None:
    q, k, v = drawn()
    kept = torch.full((9,), 2)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("keys must be", {"keys": k[..., :-1]}),
        ("values must be", {"values": v[:, :1]}),
        ("keys must have a divisor", {"keys": k[:, [0, 0, 0]], "values": v[:, [0, 0, 0]]}),
        ("queries must be those of", {"keys": k[:, :, :5], "values": v[:, :, :5]}),
        ("kept must be", {"kept": kept[:3]}),
        ("kept must be int64", {"kept": kept.float()}),
        ("values must be float64", {"values": v.float()}),
        ("start must be", {"start": torch.zeros(5).long()}),
        ("scaling must be", {"scaling": -1.0}),
        ("backend must be", {"backend": "triton"}),
        ("backend must be", {"backend": "flex"}),
        ('backend "flash": (needs tensors on a CUDA GPU|takes bfloat16)', {"backend": "flash"}),
    ]
    for message, change in wrong:
        with pytest.raises(InputError, match=message):
            topk_attention(**{"queries": q, "keys": k, "values": v, "kept": kept, **change})
    q[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="scores hold NaN"):
        topk_attention(q, k, v, kept)


@gpu
@pytest.mark.gpu
def test_on_a_gpu_the_definition_of_half_types_has_gradients() -> None:
    shapes = [(1, 4, 200, 64), (1, 2, 200, 64), (1, 2, 200, 64)]
    draw = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(s, generator=draw, device="cuda").bfloat16().requires_grad_() for s in shapes]  # fmt: skip
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    kept = torch.full((200,), 20, device="cuda")
    want = torch.randn(1, 4, 200, 64, generator=draw, device="cuda")
    both = [
        torch.autograd.grad(attended(x, kept, backend="torch"), x, want.to(x[0].dtype))
        for x in (inputs, doubles)
    ]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-2, atol=5e-2)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("flash", torch.bfloat16),
        ("flash", torch.float16),
        ("auto", torch.float32),
        ("auto", torch.float64),
        ("tiled", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("padded", [False, True])
def test_on_a_gpu_it_is_the_definition(
    backend: str, dtype: torch.dtype, dim: int, padded: bool
) -> None:
    """Of eighths, so that scores are exact in any order of their sums, and all forms keep the same keys."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 8, 1024, dim), (2, 2, 1024, dim), (2, 2, 1024, dim)]
    inputs = [_eighths(s, draw).to(dtype).requires_grad_() for s in shapes]
    start = torch.tensor([0, 100], device="cuda") if padded else None
    kept = keys_kept("0.05", 1024, 1024, start=start, least=4, device="cuda")
    want = torch.randn(2, 8, 1024, dim, generator=draw, device="cuda").to(dtype)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    out = attended(inputs, kept, start=start, backend=backend)
    exact = attended(doubles, kept, start=start, backend="torch")
    half = dtype in (torch.bfloat16, torch.float16)
    near = 2e-2 if half else 1e-4
    torch.testing.assert_close(out.double(), exact, rtol=near, atol=near)
    grads, near = torch.autograd.grad(out, inputs, want), 5e-2 if half else 1e-3
    for one, other in zip(grads, torch.autograd.grad(exact, doubles, want.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=near, atol=near)


def _eighths(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draw, device="cuda").mul(8).round() / 8


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("dim", "wide"), [(24, 24), (64, 80), (256, 256)])
def test_on_a_gpu_what_the_kernels_do_not_take_is_attended_in_tiles(
    dtype: torch.dtype, dim: int, wide: int
) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, 4, 300, dim), (1, 2, 300, dim), (1, 2, 300, wide)]
    inputs = [_eighths(s, draw).to(dtype).requires_grad_() for s in shapes]
    kept = keys_kept("0.05", 300, 300, device="cuda")
    out = attended(inputs, kept)
    exact = attended([x.double() for x in inputs], kept, backend="torch")
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), inputs))
    with pytest.raises(InputError, match='backend "flash": takes'):
        attended(inputs, kept, backend="flash")


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tiled", "flash"])
def test_on_a_gpu_ties_are_cut_by_slot(backend: str) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(1, 2, 512, 64, generator=draw, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, 2, 512, 64, generator=draw, device="cuda", dtype=torch.bfloat16)
    k = k[:, :, torch.arange(512, device="cuda") // 3]  # each key three times
    v = torch.randn(1, 2, 512, 64, generator=draw, device="cuda", dtype=torch.bfloat16)
    kept = torch.arange(512, device="cuda") % 7 + 1
    out = topk_attention(q, k, v, kept, backend=backend)
    exact = attended([x.double() for x in (q, k, v)], kept, backend="torch")
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)


@gpu
@pytest.mark.gpu
def test_on_a_gpu_thousands_of_tied_rows_are_cut_and_attended_again() -> None:
    """Whole numbers tie nearly everywhere; their products are exact in any order."""
    draw = torch.Generator("cuda").manual_seed(0)
    q, k = (torch.randint(-2, 3, (1, 4, 2048, 64), generator=draw, device="cuda").bfloat16() for _ in range(2))  # fmt: skip
    v = torch.randn(1, 4, 2048, 64, generator=draw, device="cuda", dtype=torch.bfloat16)
    kept = keys_kept("0.05", 2048, 2048, device="cuda")
    out = topk_attention(q, k, v, kept, backend="flash", most=103)
    exact = attended([x.double() for x in (q, k, v)], kept, backend="torch")
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)


@gpu
@pytest.mark.gpu
def test_on_a_gpu_memory_is_linear() -> None:
    """At 16K no score of all pairs is held: 8 heads of them would be 8.6 GB."""
    shape = (1, 8, 16384, 64)
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]  # fmt: skip
    kept = keys_kept("0.01", 16384, 16384, device="cuda")
    attended(inputs, kept).sum().backward()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    attended(inputs, kept).sum().backward()
    assert torch.cuda.max_memory_allocated() - before <= 3 * 6 * inputs[0].nbytes


@gpu
@pytest.mark.gpu
def test_on_a_gpu_a_caller_may_be_compiled() -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    inputs = [_eighths((1, 2, 512, 64), draw).bfloat16().requires_grad_() for _ in range(3)]
    kept = keys_kept("0.05", 512, 512, device="cuda")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return topk_attention(q * 2, k, v, kept, most=26) * 2

    both = [(out, *torch.autograd.grad(out.sum(), inputs)) for out in (torch.compile(call)(*inputs), call(*inputs))]  # fmt: skip
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


@gpu
@pytest.mark.gpu
def test_a_graph_cannot_hold_it() -> None:
    """It waits for the GPU, which would end the capture with words of CUDA's own."""
    q, k, v = (torch.randn(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    kept = keys_kept("0.05", 512, 512, device="cuda")
    topk_attention(q, k, v, kept, most=26)  # compiled before
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(InputError, match="outside of the capture"), torch.cuda.graph(graph):
        topk_attention(q, k, v, kept, most=26)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("most", [None, 20])
def test_a_graph_that_was_refused_leaves_nothing_behind(most: int | None) -> None:
    """Of a length that was not there before: what was remembered in the capture would never have been computed."""
    draw = torch.Generator("cuda").manual_seed(0)
    length = 397 if most is None else 399
    q, k, v = (_eighths((1, 2, length, 64), draw).bfloat16() for _ in range(3))
    kept = keys_kept("0.05", length, length, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(InputError, match="outside of the capture"), torch.cuda.graph(graph):
        topk_attention(q, k, v, kept, most=most)
    out = topk_attention(q, k, v, kept, most=most)
    exact = attended([x.double() for x in (q, k, v)], kept, backend="torch")
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)

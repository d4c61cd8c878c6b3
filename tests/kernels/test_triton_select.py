"""The Triton kernels that select: of scores, and of codes; on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from device import CUDA, DEVICE, gpu
from peak import peak
from topkit.errors import InputError
from topkit.kernels import fp4
from topkit.kernels.codes import quantize, signs
from topkit.kernels.score import score_codes, score_lightning
from topkit.kernels.score_select import reference as reference_of_fused
from topkit.kernels.score_select import score_select, score_select_lightning
from topkit.kernels.select_topk import LARGEST_K, LONGEST, reference, select_topk

impl = pytest.importorskip("topkit.kernels.select_topk.triton_impl")
fused = pytest.importorskip("topkit.kernels.score_select.triton_impl")
CONFIGS, Config = fused.CONFIGS, fused.Config


# Few distinct values, so that most rows tie; infinities of both signs.
VALUES = st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 0.5000001, 3.0, 1e-40, math.inf])
GARBAGE = 1234567891


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What is allocated for the kernels begins as garbage."""
    new_empty, empty = torch.Tensor.new_empty, torch.empty

    def poison(new: Tensor) -> Tensor:
        number = GARBAGE if new.element_size() > 2 else 113
        return new.fill_(math.nan if new.is_floating_point() else number)

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **o: poison(new_empty(*a, **o)))
    monkeypatch.setattr(torch, "empty", lambda *a, **o: poison(empty(*a, **o)))


@pytest.fixture(autouse=True)
def long_rows(monkeypatch):
    """In the interpreter rows count as long that are not, so that they go the way of long ones.

    What it takes is a matter of how many tiles there are, not of their size.
    """
    if not CUDA:
        monkeypatch.setattr(impl, "DIRECT", 256)
        monkeypatch.setattr(impl, "SEARCHED", 1 << 15)
        monkeypatch.setattr(impl, "FILTERED", 1 << 15)
        for name in CONFIGS:
            monkeypatch.setitem(CONFIGS, name, Config(256, 4, 1, 1))


class Seen(NamedTuple):
    """What the last step was handed, a number a row."""

    found: Tensor
    capacity: int


@pytest.fixture
def seen(monkeypatch) -> list[Seen]:
    """How many candidates each row had, at each selection."""
    counts, finish = [], impl.finish

    def watched(scores, stop, plan, *rest):
        if not plan.direct:
            counts.append(Seen(rest[0].state[:, impl.COUNT.value].clone(), plan.capacity))
        return finish(scores, stop, plan, *rest)

    monkeypatch.setattr(impl, "finish", watched)
    monkeypatch.setattr(fused, "finish", watched)
    return counts


def rand(*shape: int, seed=0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)


def cut(scores: Tensor, stop: Tensor | None) -> Tensor:
    """Scores, -inf from stop on."""
    if stop is None:
        return scores
    slots = torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill(slots >= stop[..., None], -math.inf)


def written_rule(scores: Tensor, k: int) -> Tensor:
    """What is strictly above the k-th, then the lowest slots; ascending, -1 last."""
    order = scores.sort(dim=-1, descending=True, stable=True)
    slots = order.indices.masked_fill(order.values == -math.inf, scores.shape[-1])[..., :k]
    slots = slots.sort(-1).values
    return slots.masked_fill(slots == scores.shape[-1], -1)


def check(scores: Tensor, k: int, stop: Tensor | None = None) -> None:
    """What the kernel chooses is what the rule and the reference do, best first if asked for."""
    told = {"stop": stop, "backend": "triton"}
    whole = cut(scores, stop)
    loose = select_topk(scores, k, order=None, check=False, **told)
    assert torch.equal(by_slot(loose), written_rule(whole, k))
    best = select_topk(scores, k, **told)
    assert torch.equal(by_slot(best), by_slot(loose))
    real = best >= 0
    assert (real[..., 1:] <= real[..., :-1]).all() and torch.equal(real, loose >= 0)
    found = whole.gather(-1, best.clamp_min(0))
    expected = whole.gather(-1, reference.select_topk(whole, k).clamp_min(0))
    assert torch.equal(found[real], expected[real])
    tied = (found[..., 1:] == found[..., :-1]) & real[..., 1:]
    assert (best.diff(dim=-1)[tied] > 0).all()


def by_slot(slots: Tensor) -> Tensor:
    return (
        slots.masked_fill(slots < 0, GARBAGE)
        .sort(-1)
        .values.masked_fill_(slots.eq(-1).sort(-1).values, -1)
    )


def distributions(length: int, rows: int = 1) -> dict[str, Tensor]:
    x = rand(rows, length)
    slots = torch.arange(length, device=DEVICE).float()
    outlier = torch.zeros(rows, length, device=DEVICE)
    outlier[:, length // 2] = 1e30
    few = torch.full((rows, length), -math.inf, device=DEVICE)
    few[:, ::100] = x[:, ::100]
    return {
        "normal": x,
        "all equal": torch.full_like(x, -3.5),
        "zeros of both signs": torch.copysign(torch.zeros_like(x), x),
        "a ReLU's plateau": x.sub(2.5).relu(),
        "a plateau at the top": x.clamp_max(1.0),
        "few values": x.round(),
        "one outlier": outlier,
        "ascending": slots.expand(rows, -1),
        "descending": -slots.expand(rows, -1),
        "exponents": torch.sign(x) * torch.exp2(30 * rand(rows, length, seed=1)),
        "subnormal": x * 1e-40,
        "a periodic row": (slots % 64).expand(rows, -1),
        "mostly nothing": few,
        "nothing": torch.full_like(x, -math.inf),
        "infinite": torch.where(x > 1, math.inf, x),
    }


@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    st.integers(1, 14),
)
def test_short_rows_of_few_values(rows, k):
    check(torch.tensor(rows, device=DEVICE), k)


@pytest.mark.parametrize("name", distributions(1))
def test_long_rows(name):
    check(distributions(5003)[name], 97)


@pytest.mark.parametrize("k", [1, 300, 5003, 6000])
def test_from_one_to_more_than_there_are(k):
    check(rand(1, 5003).round(decimals=2), min(k, LARGEST_K))
    check(rand(2, 201).round(decimals=1), k if k <= LARGEST_K else LARGEST_K)


def test_rows_end_where_each_is_told():
    stop = torch.tensor([[0, 1, 17], [4000, 5003, 9999]], device=DEVICE)
    check(rand(2, 3, 5003), 97, stop)
    check(rand(2, 3, 5003), 97, stop[1:].int())
    check(rand(2, 3, 201), 97, stop[:, :1] + 3)


def test_slots_ascend_if_asked_for():
    scores, stop = rand(2, 5003).relu(), torch.tensor([5003, 60], device=DEVICE)
    for backend in ("torch", "triton"):
        found = select_topk(scores, 97, stop=stop, order="slot", backend=backend)
        assert torch.equal(found, written_rule(cut(scores, stop), 97))
    given = codes_of("sign", groups=1)
    found = score_select(**given, k=40, order="slot", backend="triton")
    assert torch.equal(found, written_rule(score_codes(**given, backend="triton"), 40))


def test_a_nan_past_the_end_is_none():
    scores = rand(2, 5003)
    scores[:, 4000:] = math.nan
    check(scores, 97, torch.tensor([4000, 100], device=DEVICE))


def test_rows_of_any_shape_and_stride():
    held = rand(2, 3, 2, 700)
    check(held[0, 0, 0], 50)
    check(held[:, :2, :, 13:].transpose(0, 2), 50)
    assert select_topk(held[:, :0], 5, backend="triton").shape == (2, 0, 2, 5)


@pytest.mark.parametrize("length", [201, 5003])
@pytest.mark.parametrize("bad", [math.nan, -math.nan])
def test_nan_is_reported_or_its_row_is_empty(length, bad):
    scores = rand(3, length)
    scores[1, length - 1] = bad
    with pytest.raises(InputError, match="scores hold NaN"):
        select_topk(scores, 97, backend="triton")
    for backend, order in (("torch", "score"), ("triton", "score"), ("triton", None)):
        told = {"order": order, "backend": backend}
        found = select_topk(scores, 97, check=False, **told)
        assert found[1].eq(-1).all()
        want = select_topk(scores[::2], 97, **told)
        assert torch.equal(found[::2].sort().values, want.sort().values)


def looked_at(length: int, sample: int) -> Tensor:
    """The places that triton_impl.stretch gives."""
    i = torch.arange(sample, dtype=torch.int64, device=DEVICE)
    wrapped = (i * 0x45D9F3B).to(torch.int32)  # as 32 bits hold it
    inside = (((wrapped >> 7) & 0xFFFF) * (length // sample)) >> 16
    return i * length // sample + inside


def misjudged(length: int, sample: int, seen_are_low: bool) -> Tensor:
    """A row whose sample says nothing of the rest."""
    row = rand(length).abs() + 1
    where = looked_at(length, sample)
    row[where] = -row[where] if seen_are_low else row[where] + 100
    return row


@pytest.mark.parametrize("low", [True, False], ids=["too many", "too few"])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_row_that_the_sample_misjudges(low, rounded, seen):
    length, k = (200_000, 3000) if CUDA else (20_000, 300)
    plan = impl.Plan(length, k, 32)
    scores = misjudged(length, plan.sample, low)[None]
    scores = torch.cat([scores.round() if rounded else scores, rand(1, length)])
    check(scores, k, None)
    for found, capacity in seen:
        assert found[0] > capacity if low else found[0] < k
        assert k <= found[1] <= capacity


def codes_of(
    dtype="int8",
    pool: str | None = "mean",
    group=4,
    groups=2,
    dim=64,
    batch=1,
    count=1,
    length=3001,
    seed=0,
) -> dict:
    queries = rand(batch, groups * group, count, dim, seed=seed).half()
    keys = rand(batch, groups, length, dim, seed=seed + 1)
    codes, scale = encoded(keys, dtype)
    return {"queries": queries, "codes": codes, "dtype": dtype, "scale": scale, "pool": pool}


def encoded(vectors: Tensor, dtype: str, scale="float") -> tuple[Tensor, Any]:
    if dtype == "sign":
        return signs(vectors), None
    return fp4.quantize(vectors, dtype) if dtype in fp4.BLOCK else quantize(vectors, dtype, scale)


def lightning_of(heads=8, dim=64, batch=1, count=1, length=3001, seed=0, dtype="fp8_e4m3") -> dict:
    queries, query_scale = encoded(rand(batch, heads, count, dim, seed=seed), dtype, "pow2")
    keys, key_scale = encoded(rand(batch, 1, length, dim, seed=seed + 1), dtype, "pow2")
    gates = rand(batch, count, heads, seed=seed + 2)
    scales = {"query_scale": query_scale, "key_scale": key_scale}
    return {"queries": queries, "keys": keys, "gates": gates} | scales


def agrees(select, score, given: dict, k: int, window: dict) -> None:
    """The fused choice is the rule's, of the scores that the scoring kernel writes."""
    scores = score(**given, **window, backend="triton")
    told = given | window | {"k": k, "backend": "triton"}
    best = select(**told)
    assert torch.equal(by_slot(best), written_rule(scores, k))
    found = scores.gather(-1, best.clamp_min(0)).masked_fill(best < 0, -math.inf)
    assert torch.equal(found, scores.topk(min(k, scores.shape[-1])).values)
    if CUDA:
        assert torch.equal(by_slot(select(**told, order=None, check=False)), by_slot(best))


WINDOW = {"start": torch.tensor([100], device=DEVICE), "stop": torch.tensor([[2500]], device=DEVICE)}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "k", "window"),
    [
        ({"dtype": "sign", "pool": "mean", "group": 3, "groups": 1}, 40, {}),
        ({"dtype": "int4", "pool": "max", "groups": 1}, 40, WINDOW),
        ({"dtype": "fp8_e4m3", "pool": None, "group": 1}, 40, {}),
        ({"dtype": "int8", "pool": "sum", "groups": 1, "length": 201, "count": 2}, 300, {}),
        ({"dtype": "mxfp4", "pool": "mean", "groups": 1, "length": 2001}, 40, WINDOW),
        ({"dtype": "nvfp4", "pool": "max", "groups": 1, "length": 401}, 40, {}),
    ],
    ids=str,
)
def test_codes_are_selected_as_their_scores_are(shape, k, window):
    agrees(score_select, score_codes, codes_of(**shape), k, window)


@pytest.mark.parametrize("window", [{}, WINDOW], ids=["whole", "window"])
def test_lightning_is_selected_as_its_scores_are(window):
    agrees(score_select_lightning, score_lightning, lightning_of(), 40, window)


@pytest.mark.parametrize("dtype", fp4.BLOCK)
def test_lightning_of_fp4_is_selected_as_its_scores_are_ties_too(dtype):
    """Of few heads and gates of one, many keys score the same."""
    given = lightning_of(heads=2, length=2001, dtype=dtype)
    given["keys"] = given["keys"][:, :, :400].repeat(1, 1, 6, 1)[:, :, :2001]
    given["key_scale"] = given["key_scale"][:, :, :400].repeat(1, 1, 6, 1)[:, :, :2001]
    agrees(score_select_lightning, score_lightning, given, 40, {})


@pytest.mark.parametrize(
    ("lightning", "backend"),
    [
        (False, "torch"),
        (True, "torch"),
        pytest.param(False, "triton", marks=pytest.mark.slow),
        (True, "triton"),
    ],
)
def test_queries_in_tiles_select_as_all_at_once(lightning, backend, monkeypatch):
    length, count = 70, 5
    stop = torch.tensor([[40, 70, 69, 12, 50]], device=DEVICE)
    given = {"stop": stop, "start": torch.tensor([7], device=DEVICE), "k": 9, "backend": backend}
    if lightning:
        select, given = score_select_lightning, given | lightning_of(length=length, count=count)
    else:
        select, given = score_select, given | codes_of(length=length, count=count)
    whole, sizes = select(**given), []
    place = fused if backend == "triton" else reference_of_fused
    name = "score_select_lightning" if lightning and backend == "torch" else "score_select"
    launched = getattr(place, name)

    def noted(source, *args, **options):
        sizes.append((getattr(source, "queries", source)).shape[2])
        return launched(source, *args, **options)

    monkeypatch.setattr(place, name, noted)
    heads = given["queries"].shape[1] if backend == "torch" else 1 if lightning else 2
    monkeypatch.setattr("topkit.kernels.score_select.SCORES", 2 * heads * length)
    assert torch.equal(select(**given), whole)
    assert sizes == [2, 2, 1]


def test_memory_is_linear_in_queries_and_in_keys(monkeypatch):
    """All scores of 400 queries and 2,000 keys are 6.4 MB; twice as many queries add their lists, and no more."""
    monkeypatch.setattr("topkit.kernels.score_select.SCORES", 1 << 16)
    most, lists = {}, {}
    for length, count in ((2000, 200), (2000, 400), (4000, 200)):
        queries = torch.randn(1, 2, count, 32)
        codes, scale = quantize(torch.randn(1, 1, length, 32), "int8")
        given = {"dtype": "int8", "scale": scale, "backend": "torch"}
        found, most[length, count] = peak(lambda g=given, q=queries, c=codes: score_select(q, c, 16, **g))  # fmt: skip
        lists[length, count] = found.nbytes
    first = 2000, 200
    assert most[first] < 4 * 2 * 200 * 2000 / 2
    # What tiles chose, the same in one piece, and what stands beside each query.
    assert most[2000, 400] - most[first] <= 3 * (lists[2000, 400] - lists[first])
    assert most[4000, 200] < 2 * most[first]


def test_keys_that_are_all_alike_are_chosen_from_the_first():
    given = codes_of("sign", groups=1)
    given["codes"] = given["codes"][:, :, :1].expand(-1, -1, 3001, -1).contiguous()
    found = score_select(**given, k=40, order="slot", backend="triton")
    assert torch.equal(found[0, 0, 0], torch.arange(40, device=DEVICE))


@pytest.mark.parametrize("low", [True, False], ids=["too many", "too few"])
def test_a_list_that_the_sample_misjudges(low, seen):
    length, k = (200_000, 3000) if CUDA else (4000, 60)
    given = codes_of(pool=None, group=1, groups=1)
    plan = impl.Plan(length, k, 32, 1 << 15)
    row = misjudged(length, plan.sample, low)
    given["queries"] = torch.ones(1, 1, 1, 64, device=DEVICE)
    given["codes"] = torch.ones(1, 1, length, 64, dtype=torch.int8, device=DEVICE)
    given["scale"] = row.view(1, 1, -1, 1)
    agrees(score_select, score_codes, given, k, {})
    found, capacity = seen[0]
    assert found[0] > capacity if low else found[0] < k


@pytest.mark.parametrize("length", [201, 3001])
def test_a_list_that_holds_nan_is_reported_or_empty(length):
    given = codes_of("int8", "max", group=3, groups=2, length=length)
    given["scale"][0, 1, 77] = math.nan
    with pytest.raises(InputError, match="scores hold NaN"):
        score_select(**given, k=40, backend="triton")
    found = score_select(**given, k=40, check=False, backend="triton")
    assert found[0, 1].eq(-1).all() and found[0, 0].ge(0).all()


def test_what_the_kernels_do_not_take_runs_otherwise():
    for scores in (rand(2, 300).double(), rand(2, 300).bfloat16(), rand(300, 2).mT):
        assert torch.equal(select_topk(scores, 7), reference.select_topk(scores, 7))
    stop = torch.tensor([5], device=DEVICE)
    found = select_topk(rand(2, 300).double(), 7, stop=stop, order="slot")
    assert found.tolist() == [[0, 1, 2, 3, 4, -1, -1]] * 2
    given = codes_of(pool=None, length=300)  # a list a head
    scores = score_codes(**given)
    assert torch.equal(score_select(**given, k=7), select_topk(scores, 7))
    given = codes_of(dim=16, length=300)
    assert torch.equal(score_select(**given, k=7), reference.select_topk(score_codes(**given), 7))
    given = lightning_of(dim=16, length=300)
    want = reference.select_topk(score_lightning(**given), 7)
    assert torch.equal(score_select_lightning(**given, k=7), want)
    empty = codes_of(length=0) | {"k": 7, "backend": "triton"}
    assert score_select(**empty).shape == (1, 2, 1, 0)


REFUSED = {
    "k must be at least 1; got 0": {"k": 0},
    "k must be a whole number; got 2.5": {"k": 2.5},
    "k must be a whole number; got True": {"k": True},
    "scores must have at least one dimension": {"scores": rand(1)[0]},
    f"k must be at most {LARGEST_K}; got 4097": {"k": 4097},
    "order must be one of score, slot, None; got 'best'": {"order": "best"},
    "scores must be float32; got torch.float64": {"scores": rand(2, 300).double()},
    "scores must be contiguous in the last": {"scores": rand(300, 2).mT},
    f"scores must be rows of at most {LONGEST}": {"scores": rand(1, 1).expand(1, LONGEST + 1)},
    "stop must be int64 or int32": {"stop": torch.ones(2, device=DEVICE)},
    r"stop must broadcast to \(2,\); got \(3,\)": {"stop": torch.ones(3, device=DEVICE).long()},
    "stop must be on .* got meta": {"stop": torch.ones(2, device="meta").long()},
    "backend must be one of": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message, monkeypatch):
    monkeypatch.setattr(impl, "select_topk", lambda *args, **options: pytest.fail("launched"))
    told = {"scores": rand(2, 300), "k": 7, "backend": "triton"} | REFUSED[message]
    with pytest.raises(InputError, match=message):
        select_topk(**told)


FUSED_REFUSED = {
    "k must be at least 1; got 0": {"k": 0},
    "k must be a whole number; got '3'": {"k": "3"},
    f"k must be at most {LARGEST_K}; got 4097": {"k": 4097},
    "order must be one of score, slot, None": {"order": "best"},
    "pool must be mean, sum or max": {"pool": None},
    r"stop must be \(1, 1\)": {"stop": torch.ones(1, 2, device=DEVICE).long()},
    "queries must have 4 dimensions": {"queries": rand(8, 64)},
    "queries must be bfloat16": {"queries": rand(1, 8, 1, 64).double()},
    "as must rows x heads of codes": {"queries": rand(1, 8, 1, 64).half().expand(40000, -1, -1, -1)},
    r"codes must be \(1, 2, 300, 64\)": {"queries": rand(2, 8, 1, 64).half(), "codes": torch.ones(3, 2, 300, 64, dtype=torch.int8, device=DEVICE)},
}  # fmt: skip


@pytest.mark.parametrize("message", FUSED_REFUSED)
def test_bad_input_to_the_fused_is_refused_by_name(message, monkeypatch):
    monkeypatch.setattr(fused, "score_select", lambda *args, **options: pytest.fail("launched"))
    told = codes_of(length=300) | {"k": 7, "backend": "triton"} | FUSED_REFUSED[message]
    with pytest.raises(InputError, match=message.replace("(1, 2, 300", "(2, 2, 300")):
        score_select(**told)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 2048, 4096])
@pytest.mark.parametrize("length", [8192, 8193, 131072, 1 << 20])
@pytest.mark.parametrize("name", distributions(1))
def test_rows_of_every_length(name, length, k):
    check(distributions(length, 3)[name], k)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 500, 2048, 4096])
def test_many_rows(k):
    check(rand(512, 131072), k)
    check(rand(512, 131072).mul(4).round(), k, torch.arange(512, device=DEVICE) * 300)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 4096])
def test_the_longest_rows(k):
    check(rand(2, LONGEST), k)


@gpu
@pytest.mark.gpu
def test_elements_beyond_32_bits():
    scores = torch.zeros(2100, 1 << 20, device=DEVICE)
    assert scores.numel() > 2**31
    scores[-1] = rand(1 << 20)
    found = select_topk(scores, 2048, order="slot", backend="triton")
    assert torch.equal(found[-1:], written_rule(scores[-1:], 2048))
    assert torch.equal(found[0], torch.arange(2048, device=DEVICE))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("pool", "dim", "group"),
    [("mean", 64, 1), ("max", 128, 3), ("sum", 128, 4), ("max", 64, 8), ("mean", 128, 4)],
)
@pytest.mark.parametrize("dtype", ["sign", "int2", "int4", "int8", "fp8_e4m3", *fp4.BLOCK])
def test_every_format_of_codes(dtype, pool, dim, group):
    # Each is four kernels to compile; that every form is scored rightly is the scores' own test.
    given = codes_of(dtype, pool, group, dim=dim, batch=2, count=2, length=70001)
    start = torch.tensor([0, 3000], device=DEVICE)
    stop = torch.tensor([[70000, 70001], [123, 50000]], device=DEVICE)
    for k in (1, 2048):
        agrees(score_select, score_codes, given, k, {"start": start, "stop": stop})


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 4, 64])
@pytest.mark.parametrize("length", [5000, 131072, (1 << 20) + 7])
@pytest.mark.parametrize("dtype", ["fp8_e4m3", *fp4.BLOCK])
def test_every_form_of_lightning(dtype, heads, length):
    given = lightning_of(heads, 128, batch=2, length=length, dtype=dtype)
    agrees(score_select_lightning, score_lightning, given, 2048, {})


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("order", ["score", "slot", None], ids=str)
def test_a_captured_graph_replays_on_new_scores(order):
    scores, stop = rand(8, 131072), torch.full((8,), 131072, device=DEVICE)
    told = {"stop": stop, "order": order, "check": False, "backend": "triton"}
    select_topk(scores, 2048, **told)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = select_topk(scores, 2048, **told)
    for seed in range(1, 5):
        scores.copy_(rand(8, 131072, seed=seed).round(decimals=seed % 3))
        stop.copy_(torch.arange(8, device=DEVICE) * 16000 + 3000)
        graph.replay()
        want = written_rule(cut(scores, stop), 2048)
        assert torch.equal(found.sort(-1).values, want.sort(-1).values)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["sign", "int4", "fp8_e4m3", *fp4.BLOCK])
def test_a_captured_graph_replays_on_new_codes(dtype):
    shape = {"dtype": dtype, "dim": 128, "batch": 2, "length": 70001}
    given = codes_of(**shape)
    told = {"k": 2048, "check": False, "backend": "triton"}
    score_select(**given, **told)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = score_select(**given, **told)
    for seed in range(2, 6):
        for name, new in codes_of(**shape, seed=seed).items():
            if isinstance(new, Tensor):
                given[name].copy_(new)
        graph.replay()
        want = select_topk(score_codes(**given, backend="triton"), 2048, backend="triton")
        assert torch.equal(found, want)

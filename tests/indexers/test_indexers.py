"""Each method against an independent, slow rendering of its formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plainly import best
from topkit.errors import InputError
from topkit.indexers import Cache, Step, keep, quantized, refine, sampled, shared, sign
from topkit.indexers.spec import parse
from topkit.kernels.codes import hadamard_rotate, levels, pack, quantize, unpack


def tensors(hq=4, hk=2, length=50, dim=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, hq, 1, dim, generator=g), torch.randn(1, hk, length, dim, generator=g)


def chosen(spec, queries, keys, k, *, scaling=0.25, seed=0, built=None):
    """The selection of one query of each head over all keys."""
    recipe = parse(spec)
    step = Step(
        scaling=scaling, seed=seed, kv_heads=keys.shape[1], inputs={"cache": Cache(keys, keys)}
    ).given_to(recipe)
    index = recipe.build(keys[:, :, :built], step)
    if built is not None:
        index.append(keys[:, :, built:], step)
    return index.select(queries, k, step)


def lists(selection):
    return [[s for s in row if s >= 0] for row in selection.indices[0, :, 0].tolist()]


def dots(queries, keys):
    """Scores in Python floats, one list a query head."""
    heads, groups = queries.shape[1], keys.shape[1]
    q, k = queries[0, :, 0].double().tolist(), keys[0].double().tolist()
    return [
        [sum(a * b for a, b in zip(q[h], key, strict=True)) for key in k[h * groups // heads]]
        for h in range(heads)
    ]


@pytest.mark.parametrize("k", [1, 7, 50, 60])
def test_exact_is_the_k_largest_dot_products(k):
    queries, keys = tensors()
    for found, scores in zip(
        lists(chosen("exact", queries, keys, k)), dots(queries, keys), strict=True
    ):
        assert found == best(scores, k)


def test_exact_costs_one_reading_of_every_key():
    queries, keys = tensors()
    selection = chosen("exact", queries, keys, 5)
    assert float(selection.keys_scored) == 50 and float(selection.bytes_read) == 50 * 2 * 16 * 4


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8", "int4", "int2"])
@pytest.mark.parametrize("scale", ["float", "pow2"])
def test_quantisation_error_is_bounded(dtype, scale):
    vectors = (
        torch.randn(200, 24, generator=torch.Generator().manual_seed(0))
        * 10 ** torch.linspace(-3, 3, 200)[:, None]
    )
    codes, scales = quantize(vectors, dtype, scale)
    back = levels(codes, dtype, 24) * scales
    largest = vectors.abs().amax(-1, keepdim=True)
    parts = {"int8": 127, "int4": 8, "int2": 2, "fp8_e4m3": 448}[dtype]
    slack = 2 if scale == "pow2" else 1  # rounding the scale up at most doubles it
    assert (scales >= largest / parts * (1 - 1e-6)).all() and (
        scales <= slack * largest / parts * (1 + 1e-6)
    ).all()
    if dtype == "fp8_e4m3":  # three mantissa bits, and subnormals of 2**-9
        bound = torch.maximum(vectors.abs() * 2**-4, scales * 2**-10)
    else:
        bound = scales / 2
    assert ((back - vectors).abs() <= bound * (1 + 1e-5)).all()
    if scale == "pow2":
        assert (torch.frexp(scales).mantissa == 0.5).all()


def test_fp8_codes_are_torchs_own():
    vectors = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(vectors, "fp8_e4m3")
    assert codes.dtype == torch.float8_e4m3fn
    assert torch.equal(
        codes.float(), (vectors / scales).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    )
    every = torch.arange(256, dtype=torch.uint8)
    finite = (every & 0x7F) != 0x7F
    as_fp8 = every[finite].view(torch.float8_e4m3fn)
    assert torch.equal(levels(as_fp8, "fp8_e4m3", 254), as_fp8.float())


def test_pow2_scale_is_the_next_power_above_and_a_power_stays():
    largest = torch.tensor([[448.0], [449.0], [224.0], [447.9]])
    _, scales = quantize(largest, "fp8_e4m3", "pow2")
    assert scales.flatten().tolist() == [1.0, 2.0, 0.5, 1.0]


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "int8", "int4", "int2"])
def test_zeros_and_tiny_vectors_quantise_to_finite_numbers(dtype):
    for scale in ("float", "pow2"):
        codes, scales = quantize(torch.tensor([[0.0] * 8, [1e-44] * 8, [1e30] * 8]), dtype, scale)
        back = levels(codes, dtype, 8) * scales
        assert back.isfinite().all() and back[0].abs().max() < 1e-30


@pytest.mark.parametrize(
    ("spec", "per_key"),
    [
        ("quantized:dtype=fp8_e4m3", 64 + 4),
        ("quantized:dtype=fp8_e4m3,scale=pow2", 64 + 1),
        ("quantized:dtype=int8", 64 + 4),
        ("quantized:dtype=int4", 32 + 4),
        ("quantized:dtype=int2,scale=pow2", 16 + 1),
        ("sign", 8),
        ("quest:page_size=16", 2 * 64 * 4 // 16),
        ("exact", 0),
        ("keep(sign())", 8),
    ],
)
def test_bytes_of_an_index(spec, per_key):
    _, keys = tensors(length=64, dim=64)
    recipe = parse(spec)
    index = recipe.build(keys, Step(kv_heads=2, inputs={"cache": Cache(keys)}).given_to(recipe))
    assert index.nbytes == per_key * 2 * 64


@pytest.mark.parametrize(
    "spec",
    [
        "quantized",
        "quantized:dtype=int4,scale=pow2",
        "quantized:dtype=fp8_e4m3,hadamard=true,scale=pow2",
        "quantized:dtype=int2,hadamard=true",
    ],
)
def test_quantized_ranks_by_the_rounded_keys(spec):
    queries, keys = tensors()
    recipe = parse(spec)
    assert isinstance(recipe, quantized)
    rotate = hadamard_rotate if recipe.hadamard else torch.Tensor.float
    codes, scales = quantize(rotate(keys), recipe.dtype, recipe.scale)
    rounded = levels(codes, recipe.dtype, 16) * scales
    found = lists(chosen(spec, queries, keys, 9))
    for got, scores in zip(found, dots(rotate(queries), rounded), strict=True):
        assert got == best(scores, 9)


def test_finer_codes_find_more():
    queries, keys = tensors(hq=32, hk=1, length=2000, dim=64)
    want = [set(x) for x in lists(chosen("exact", queries, keys, 50))]
    found = {}
    for dtype in ("int2", "int4", "fp8_e4m3", "int8"):
        got = lists(chosen(f"quantized:dtype={dtype}", queries, keys, 50))
        found[dtype] = sum(len(a & set(b)) for a, b in zip(want, got, strict=True)) / 1600
    assert (
        0.5 < found["int2"] < found["int4"] < found["fp8_e4m3"] < found["int8"]
        and found["int8"] > 0.97
    )


@pytest.mark.parametrize("width", [1, 2, 16, 128])
def test_hadamard_is_the_orthonormal_matrix(width):
    signs = [[(-1) ** (i & j).bit_count() for j in range(width)] for i in range(width)]
    matrix = torch.tensor(signs, dtype=torch.float64) / math.sqrt(width)
    vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hadamard_rotate(vectors).double(), vectors.double() @ matrix, atol=1e-5)
    assert torch.allclose(hadamard_rotate(hadamard_rotate(vectors)), vectors, atol=1e-5)


def test_hadamard_helps_where_one_dimension_is_an_outlier():
    queries, keys = tensors(hq=16, hk=1, length=1000, dim=64)
    keys[..., 0] *= 60
    want = [set(x) for x in lists(chosen("exact", queries, keys, 20))]
    hits = {}
    for flag in ("false", "true"):
        got = lists(chosen(f"quantized:dtype=int4,hadamard={flag}", queries, keys, 20))
        hits[flag] = sum(len(a & set(b)) for a, b in zip(want, got, strict=True))
    assert hits["true"] > 1.2 * hits["false"]


def test_hadamard_turns_head_dims_that_are_no_power_of_two_with_zeros_behind_them():
    queries, keys = tensors(hq=16, hk=1, length=300, dim=24)
    with pytest.raises(InputError, match="power of two; got 24"):
        hadamard_rotate(queries)
    want = [set(x) for x in lists(chosen("exact", queries, keys, 20))]
    got = lists(chosen("quantized:hadamard=true", queries, keys, 20))
    assert sum(len(a & set(b)) for a, b in zip(want, got, strict=True)) > 0.97 * 320
    index = parse("quantized:hadamard=true").build(keys, Step())
    assert index.nbytes == 300 * (32 + 4)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 40), st.integers(0, 1000))
def test_packing_goes_there_and_back(bits, width, seed):
    fields = torch.randint(
        0, 2**bits, (3, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = pack(fields, bits)
    assert packed.shape[-1] == math.ceil(width * bits / 8)
    assert torch.equal(unpack(packed, bits, width), fields)


@pytest.mark.parametrize("dim", [16, 13])
def test_sign_scores_the_query_against_plus_and_minus_one(dim):
    queries, keys = tensors(dim=dim)
    keys[0, 0, 3, :5] = 0.0
    for got, scores in zip(
        lists(chosen("sign", queries, keys, 9)), dots(queries, (keys >= 0) * 2 - 1), strict=True
    ):
        assert sum(scores[s] for s in got) == pytest.approx(sum(scores[s] for s in best(scores, 9)))
        assert [scores[s] for s in got] == pytest.approx([scores[s] for s in best(scores, 9)])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(0, 8),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 40),
)
def test_streaming_llm_is_sinks_then_the_newest(length, sink, window, k):
    queries, keys = tensors(length=length)
    found = chosen(f"streaming_llm(sink={sink}, window={window})", queries, keys, k)
    first = list(range(min(sink, length)))
    newest = [s for s in range(length - 1, -1, -1) if s not in first][: window if window else None]
    assert lists(found) == [(first + newest)[:k]]


def slow_quest(scores_of_page, size, length, k):
    """Whole pages by bound, then lowest page; the last one cut to its newest keys."""
    found = []
    for page in best(scores_of_page):
        inside = [s for s in range(page * size, min((page + 1) * size, length))]
        found += inside[::-1][: k - len(found)]
    return found


@settings(deadline=None, max_examples=60)
@example(24, 1, 20, False, 2)  # two bounds that differ by less than 1e-4
@given(
    st.integers(1, 45), st.integers(1, 9), st.integers(1, 50), st.booleans(), st.integers(0, 10**6)
)
def test_quest_takes_pages_by_the_bound_of_their_extremes(length, size, k, ties, seed):
    queries, keys = tensors(length=length, seed=seed)
    if ties:
        queries, keys = queries.round().clamp(-1, 1), keys.round().clamp(-1, 1)
    built = max(length // 2, 1)
    found = lists(chosen(f"quest(page_size={size})", queries, keys, k, built=built))
    for h, got in enumerate(found):
        q, group = queries[0, h, 0].double().tolist(), keys[0, h // 2].double().tolist()
        bounds = []
        for page in range(math.ceil(length / size)):
            inside = group[page * size : (page + 1) * size]
            low, high = ([f(x) for x in zip(*inside, strict=True)] for f in (min, max))
            bounds.append(sum(max(a * lo, a * hi) for a, lo, hi in zip(q, low, high, strict=True)))
        # Tied bounds are sums of whole numbers, hence equal; others differ by more than float32 rounds off.
        assert got == slow_quest(bounds, size, length, k)


def test_quest_bound_is_never_below_a_key_of_its_page():
    queries, keys = tensors(length=64)
    recipe = parse("quest(page_size=8)")
    step = Step(kv_heads=2, inputs={"cache": Cache(keys)}).given_to(recipe)
    bounds = recipe.build(keys, step).score(queries, step)
    assert (bounds[0, :, 0] >= torch.tensor(dots(queries, keys)) - 1e-4).all()


def test_quest_of_pages_of_one_key_is_exact():
    queries, keys = tensors()
    assert lists(chosen("quest(page_size=1)", queries, keys, 9)) == lists(
        chosen("exact", queries, keys, 9)
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30), st.integers(0, 6), st.integers(0, 6), st.integers(1, 32), st.integers(0, 99)
)
def test_keep_forces_its_keys_and_fills_up_with_the_best_of_the_others(
    length, sink, window, k, seed
):
    queries, keys = tensors(length=length, seed=seed)
    found = lists(chosen(f"keep(exact(), sink={sink}, window={window})", queries, keys, k))
    first = list(range(min(sink, length)))
    newest = [s for s in range(length - 1, max(length - 1 - window, -1), -1) if s not in first]
    for got, scores in zip(found, dots(queries, keys), strict=True):
        forced = (first + newest)[:k]
        others = [s for s in best(scores) if s not in forced]
        assert got == forced + others[: k - len(forced)]


def test_refine_ranks_the_candidates_by_their_true_scores():
    queries, keys = tensors(length=200)
    candidates = lists(chosen("sign", queries, keys, 21))
    found = chosen("refine(sign(), factor=3)", queries, keys, 7)
    for got, proposed, scores in zip(lists(found), candidates, dots(queries, keys), strict=True):
        assert got == [s for s in best(scores) if s in proposed][:7]
    assert float(found.keys_scored) == 200 + 21
    assert float(found.bytes_read) == 200 * 2 * 2 + 4 * 21 * 16 * 4


def test_refine_gives_each_head_its_own_of_a_shared_proposal():
    queries, keys = tensors(length=200)
    (proposed,) = lists(chosen("shared(exact(), per=layer)", queries, keys, 14))
    found = lists(chosen("refine(shared(exact(), per=layer), factor=2)", queries, keys, 7))
    for got, scores in zip(found, dots(queries, keys), strict=True):
        assert got == [s for s in best(scores) if s in proposed][:7]


def test_refine_of_everything_is_exact_with_ties_to_the_lowest_slot():
    queries, keys = tensors(length=40)
    queries, keys = queries.round(), keys.round().clamp(-1, 1)
    found = lists(chosen("refine(streaming_llm(), factor=4)", queries, keys, 10))
    want = lists(chosen("exact", queries, keys, 10))
    assert [set(x) for x in found] == [set(x) for x in want]


@pytest.mark.parametrize(
    ("how", "pool"), [("mean", lambda x: sum(x) / len(x)), ("sum", sum), ("max", max)]
)
@pytest.mark.parametrize("per", ["group", "layer"])
def test_shared_pools_the_scores_of_its_heads(how, pool, per):
    queries, keys = tensors(hq=6)
    scores = dots(queries, keys)
    units = [scores] if per == "layer" else [scores[:3], scores[3:]]
    found = lists(chosen(f"shared(exact(), per={per}, how={how})", queries, keys, 9))
    assert found == [best([pool(x) for x in zip(*unit, strict=True)])[:9] for unit in units]


@pytest.mark.parametrize("mass", [0.0, 0.3, 0.8, 0.99])
def test_top_p_is_the_smallest_set_that_holds_the_mass(mass):
    queries, keys = tensors(length=60)
    found = lists(chosen(f"top_p(mass={mass})", queries, keys, 60))
    capped = lists(chosen(f"top_p(mass={mass})", queries, keys, 4))
    assert mass < 0.5 or len({len(x) for x in found}) > 1  # it adapts
    for got, cut, scores in zip(found, capped, dots(queries, keys), strict=True):
        weights = [math.exp(0.25 * s) for s in scores]
        order, total = best(scores), 0.0
        want = []
        while not want or total < mass * sum(weights):
            want.append(order[len(want)])
            total += weights[want[-1]]
        assert got == want and cut == want[:4]


def test_top_p_trusts_the_scores_of_its_base():
    queries, keys = tensors(length=60)
    for got, scores in zip(
        lists(chosen("top_p(sign(), mass=0.5)", queries, keys, 60)),
        dots(queries, (keys >= 0) * 2 - 1),
        strict=True,
    ):
        weights = sorted((math.exp(0.25 * s) for s in scores), reverse=True)
        assert sum(weights[: len(got)]) >= 0.5 * sum(weights) > sum(weights[: len(got) - 1])


def test_sampled_keeps_the_top_and_weighs_the_sample():
    queries, keys = tensors(length=60)
    found = chosen("sampled(top=0.25)", queries, keys, 20)
    assert found.log_weights is not None
    exact = lists(chosen("exact", queries, keys, 5))
    for got, top, weights in zip(
        lists(found), exact, found.log_weights[0, :, 0].tolist(), strict=True
    ):
        assert got[:5] == top and len(set(got)) == 20
        assert weights == pytest.approx([0.0] * 5 + [math.log(55 / 15)] * 15)


def test_sampled_estimates_the_softmax_sum_without_bias():
    queries, keys = tensors(length=80)
    scores = torch.tensor(dots(queries, keys)).float() * 0.25
    mass = scores.softmax(-1)
    estimates = []
    for seed in range(300):
        found = chosen("sampled(top=0.3)", queries, keys, 20, seed=seed)
        assert found.log_weights is not None
        weights = found.log_weights[0, :, 0].exp()
        estimates.append((mass.gather(-1, found.indices[0, :, 0]) * weights).sum(-1))
    estimates = torch.stack(estimates)
    error = (estimates.mean(0) - 1).abs() / (estimates.std(0) / 300**0.5)
    assert (error < 4).all() and (estimates.std(0) > 0.005).all()


def test_sampled_draws_every_other_key_equally_often():
    queries, keys = tensors(length=40)
    (top,) = (set(x) for x in lists(chosen("exact", queries[:, :1], keys[:, :1], 5)))
    counts = torch.zeros(40)
    for seed in range(600):
        counts[lists(chosen("sampled()", queries[:, :1], keys[:, :1], 10, seed=seed))[0]] += 1
    assert all(counts[s] == 600 for s in top)
    drawn = counts[[s for s in range(40) if s not in top]]
    expected, deviation = 600 * 5 / 35, math.sqrt(600 * 5 / 35 * 30 / 35)
    assert ((drawn - expected).abs() < 5 * deviation).all()


def test_random_draws_anew_for_each_head_and_step_and_reads_nothing():
    queries, keys = tensors(length=400)
    found = chosen("random", queries, keys, 20)
    later = chosen("random", queries, torch.cat([keys, keys[:, :, :1]], 2), 20)
    sets = [set(x) for x in lists(found) + lists(later)]
    assert all(len(a & b) < 8 for i, a in enumerate(sets) for b in sets[:i])
    assert float(found.keys_scored) == 0 and float(torch.as_tensor(found.bytes_read)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "spec",
    [
        "exact",
        "sign",
        "quantized",
        "quest(page_size=4)",
        "refine(sign())",
        "keep(shared(quantized(dtype='int4')), sink=1)",
    ],
)
def test_half_precision_keys_choose_as_the_same_numbers_in_float32(spec, dtype):
    queries, keys = (x.to(dtype) for x in tensors(length=120))
    assert lists(chosen(spec, queries, keys, 9)) == lists(
        chosen(spec, queries.float(), keys.float(), 9)
    )


def test_a_refused_append_leaves_the_index_as_it_was():
    keys, queries = torch.randn(1, 2, 12, 64), torch.randn(1, 2, 1, 64)
    index = quantized().build(keys[:, :, :10], Step(kv_heads=2))
    with pytest.raises(InputError, match="floating"):
        index.append(keys[:, :, 10:11].long(), Step(kv_heads=2))
    index.append(keys[:, :, 10:], Step(kv_heads=2))
    want = quantized().build(keys, Step(kv_heads=2)).select(queries, 12, Step(kv_heads=2))
    assert index.length == 12
    assert torch.equal(index.select(queries, 12, Step(kv_heads=2)).indices, want.indices)


@dataclass(frozen=True)
class asked_for_order(sign):
    """Notes whether the best are wanted first."""

    asked: ClassVar[list[bool]] = []

    def pick(self, queries, codes, k, step, pool=None):
        self.asked.append(step.ordered)
        return super().pick(queries, codes, k, step, pool)


@pytest.mark.parametrize(
    ("wrapped", "wanted"),
    [
        (lambda base: base, False),
        (lambda base: shared(base), False),
        (lambda base: keep(base, sink=1), True),
        (lambda base: refine(base), True),
        (lambda base: sampled(base), True),
        (lambda base: keep(shared(base), sink=1), True),
    ],
)
def test_what_may_be_cut_comes_best_first(wrapped, wanted):
    keys, queries = torch.randn(1, 2, 40, 16), torch.randn(1, 4, 1, 16)
    recipe = wrapped(asked_for_order())
    step = Step(kv_heads=2, ordered=False, inputs={"cache": Cache(keys, keys)}).given_to(recipe)
    asked_for_order.asked.clear()
    recipe.build(keys, step).select(queries, 8, step)
    assert set(asked_for_order.asked) == {wanted}

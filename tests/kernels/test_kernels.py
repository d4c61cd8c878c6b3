"""The kernels' references against slow renderings of their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.errors import InputError
from topkit.kernels.codes import levels
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.score import score
from topkit.kernels.select_topk import select_topk

# Few distinct values, so that most rows tie; infinities of both signs.
VALUES = st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 0.5000001, 3.0, math.inf])


def slow_topk(row: list[float], k: int) -> list[int]:
    """Best first, equal scores by the lowest slot; -inf never, and -1 in its place."""
    order = sorted((s for s, x in enumerate(row) if x > -math.inf), key=lambda s: (-row[s], s))
    return (order + [-1] * len(row))[: min(k, len(row))]


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.integers(1, 14),
)
def test_select_topk_is_best_first_and_equal_scores_by_the_lowest_slot(rows, k):
    scores = torch.tensor(rows)
    chosen = select_topk(scores, k)
    assert chosen.shape == (len(rows), min(k, len(rows[0]))) and chosen.dtype == torch.int64
    assert chosen.tolist() == [slow_topk(row, k) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_select_topk_of_many_ties_in_any_dtype_and_shape(dtype):
    scores = torch.randint(0, 4, (2, 3, 5, 301), generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    for k in (1, 7, 100, 301, 999):
        chosen = select_topk(scores, k)
        rows = scores.view(-1, 301).tolist()
        assert chosen.flatten(0, 2).tolist() == [slow_topk(row, k) for row in rows]


def test_select_topk_gives_a_row_the_same_slots_in_any_batch():
    row = torch.zeros(1, 1000)
    other = torch.randn(63, 1000, generator=torch.Generator().manual_seed(0))
    assert select_topk(torch.cat([other, row]), 10)[-1].tolist() == select_topk(row, 10)[0].tolist()


def test_select_topk_of_nothing_visible_is_none():
    assert select_topk(torch.full((2, 5), -math.inf), 3).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("place", [0, 4])
def test_select_topk_refuses_nan(place):
    scores = torch.zeros(2, 5)
    scores[1, place] = math.nan
    with pytest.raises(InputError, match="NaN"):
        select_topk(scores, 2)


@pytest.mark.parametrize("k", [0, -1])
def test_select_topk_refuses_k_below_one(k):
    with pytest.raises(InputError, match="k must be at least 1"):
        select_topk(torch.zeros(3), k)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_is_the_dot_product_with_the_key_of_the_heads_group(heads, groups, dtype):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, heads, 3, 5, generator=generator).to(dtype)
    keys = torch.randn(2, groups, 7, 5, generator=generator).to(dtype)
    found = score(queries, keys)
    assert found.dtype == torch.float32
    for b in range(2):
        for h in range(heads):
            want = queries[b, h].double() @ keys[b, h * groups // heads].double().T
            assert torch.allclose(found[b, h].double(), want, atol=1e-5)
    shared = score(queries, keys[:1])
    assert torch.allclose(shared[1], score(queries[1:], keys[:1])[0], atol=1e-6)


def slow_attention(q, k, v, indices, scaling, log_weights=None, rest=None):
    """Row by row and slot by slot, in Python floats."""
    rows, heads, count, _ = q.shape
    out = torch.zeros(rows, heads, count, v.shape[-1], dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            s = h * indices.shape[1] // heads
            for t in range(count):
                terms = []
                for j, slot in enumerate(indices[b, s, t].tolist()):
                    if slot < 0:
                        continue
                    key = k[b % k.shape[0], h * k.shape[1] // heads, slot].double()
                    logit = scaling * float(q[b, h, t].double() @ key)
                    logit += 0.0 if log_weights is None else float(log_weights[b, s, t, j])
                    terms.append((logit, v[b % v.shape[0], h * v.shape[1] // heads, slot].double()))
                if rest is not None and rest[1] is not None:
                    terms += [
                        (float(x), y.double())
                        for x, y in zip(rest[1][b, h, t], rest[0][b, h, t], strict=True)
                    ]
                top = max((x for x, _ in terms), default=0.0)
                total = sum(math.exp(x - top) for x, _ in terms)
                for x, y in terms:
                    out[b, h, t] += math.exp(x - top) / total * y
                if rest is not None and rest[2] is not None:
                    share = rest[2][b, h, t].double()
                    out[b, h, t] = (
                        out[b, h, t] * (1 - share.sum()) + share @ rest[0][b, h, t].double()
                    )
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(4, 2, 4), (4, 2, 2), (4, 2, 1), (3, 3, 3), (6, 2, 6), (6, 1, 1)]),
    st.sampled_from(["none", "log_weights", "logits", "share", "all"]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_gather_attention_is_softmax_over_the_chosen_keys(heads, extra, count, one_cache, seed):
    hq, hk, hs = heads
    g = torch.Generator().manual_seed(seed)
    rows, length, k, r, dim, width = 2, 9, 5, 2, 4, 3
    q = torch.randn(rows, hq, count, dim, generator=g)
    keys = torch.randn(1 if one_cache else rows, hk, length, dim, generator=g)
    values = torch.randn(1 if one_cache else rows, hk, length, width, generator=g)
    indices = torch.rand(rows, hs, count, length, generator=g).argsort(-1)[..., :k]
    gone = torch.randint(0, k + 1, (rows, hs, count, 1), generator=g)
    indices = indices.masked_fill(torch.arange(k) >= gone, -1)
    log_weights = (
        torch.randn(rows, hs, count, k, generator=g) if extra in ("log_weights", "all") else None
    )
    rest_values = (
        torch.randn(rows, hq, count, r, width, generator=g)
        if extra in ("logits", "share", "all")
        else None
    )
    logits = torch.randn(rows, hq, count, r, generator=g) if extra in ("logits", "all") else None
    share = torch.rand(rows, hq, count, r, generator=g) / r if extra == "share" else None
    found = gather_attention(
        q,
        keys,
        values,
        indices,
        scaling=0.7,
        log_weights=log_weights,
        rest_values=rest_values,
        rest_logits=logits,
        rest_share=share,
    )
    rest = None if rest_values is None else (rest_values, logits, share)
    want = slow_attention(q, keys, values, indices, 0.7, log_weights, rest)
    assert torch.allclose(found.double(), want, atol=1e-5)


LAYOUTS = {
    "cut": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "begun later": lambda x: torch.cat([x, x], 2)[:, :, x.shape[2] :],
    "turned": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "narrowed": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "strided": lambda x: x.mT.contiguous().mT,
    "one row for all": lambda x: x[:1].expand(2, -1, -1, -1),
    "one key for all": lambda x: x[:, :, :1].expand(-1, -1, x.shape[2], -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather_attention_reads_a_cache_however_it_lies_in_memory(layout):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 5, generator=g) for h, n in ((4, 3), (2, 11), (2, 11)))
    indices = torch.randint(-1, 11, (2, 4, 3, 6), generator=g)
    k, v = LAYOUTS[layout](k), LAYOUTS[layout](v)
    found = gather_attention(q, k, v, indices, scaling=0.7)
    want = slow_attention(q, k, v, indices, 0.7, None, None)
    assert torch.allclose(found.double(), want, atol=1e-5)


def test_gather_attention_over_every_key_is_attention():
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, 1, 8, generator=g),
        torch.randn(2, 2, 33, 8, generator=g),
        torch.randn(2, 2, 33, 8, generator=g),
    )
    found = gather_attention(q, k, v, torch.arange(33).expand(2, 4, 1, 33), scaling=0.3)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    assert torch.allclose(found, want, atol=1e-5)


def test_every_code_of_fp8_is_decoded_as_torch_decodes_it():
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    decoded, expected = levels(codes, "fp8_e4m3", 256), codes.float()
    assert torch.equal(decoded.isnan(), expected.isnan()) and decoded.isnan().sum() == 2
    assert torch.equal(decoded.nan_to_num(), expected.nan_to_num())


def test_gather_attention_of_nothing_is_zero_and_a_nan_is_seen():
    q, k, v = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2)
    none = torch.full((1, 1, 1, 2), -1)
    assert gather_attention(q, k, v, none, scaling=1.0).tolist() == [[[[0.0, 0.0]]]]
    assert gather_attention(q * math.nan, k, v, none + 1, scaling=1.0).isnan().all()


@pytest.mark.parametrize("kept", [0, 2])
def test_gather_attention_of_an_empty_cache_is_zero(kept):
    q, k = torch.ones(2, 4, 3, 16), torch.ones(2, 2, 0, 16)
    none = torch.full((2, 2, 3, kept), -1)
    assert torch.equal(gather_attention(q, k, k, none, scaling=1.0), torch.zeros(2, 4, 3, 16))


def test_gather_attention_refuses_lists_of_other_heads():
    q, k = torch.ones(1, 4, 1, 2), torch.ones(1, 2, 3, 2)
    with pytest.raises(InputError, match="indices have 3 heads; expected 4"):
        gather_attention(q, k, k, torch.zeros(1, 3, 1, 1, dtype=torch.long), scaling=1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gather_attention_answers_in_the_queries_dtype_with_float32_sums(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 8, generator=g).to(dtype) for n in (1, 40, 40))
    indices = torch.arange(40).expand(1, 2, 1, 40)
    found = gather_attention(q, k, v, indices, scaling=0.3)
    assert found.dtype == dtype
    want = gather_attention(q.double(), k.double(), v.double(), indices, scaling=0.3)
    assert torch.equal(found, want.to(dtype)) or (found - want).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float8_e4m3fn, torch.complex64])
def test_only_floats_of_16_to_64_bits_are_ranked(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"scores must be float32 or .*; got {dtype}"):
        select_topk(torch.ones(2, 4).to(dtype), 1)

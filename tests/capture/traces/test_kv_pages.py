"""Paged attention as named tensors: values put end to end, names and shapes that are no such thing refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from topkit import Capture
from topkit.errors import InputError

PAGES: dict[str, Any] = {
    "kv_indptr": torch.tensor([0, 2, 3]),
    "kv_indices": torch.tensor([4, 1, 0]),
    "kv_last_page_len": torch.tensor([3, 2]),
    "sm_scale": 0.3,
}
CACHE = torch.randn(6, 4, 2, 8)
ATTENTION = PAGES | {"q": torch.randn(2, 4, 8), "k_cache": CACHE, "v_cache": 2 * CACHE}
MLA = PAGES | {
    "q_nope": torch.randn(2, 4, 16),
    "q_pe": torch.randn(2, 4, 8),
    "ckv_cache": torch.randn(6, 4, 16),
    "kpe_cache": torch.randn(6, 4, 8),
}


@pytest.mark.parametrize("as_numpy", [False, True])
def test_keys_are_those_of_their_pages(as_numpy: bool) -> None:
    tensors = {n: x.numpy() if as_numpy and n != "sm_scale" else x for n, x in ATTENTION.items()}
    capture = Capture.from_tensors(tensors)
    slots = ([(4, 0), (4, 1), (4, 2), (4, 3), (1, 0), (1, 1), (1, 2)], [(0, 0), (0, 1)])
    for row, own in enumerate(slots):
        x = capture.load(row, 0)
        assert x.keys.shape == (1, 2, len(own), 8) and x.scaling == 0.3
        for t, (page, at) in enumerate(own):
            assert torch.equal(x.keys[0, :, t], CACHE[page, at])
            assert x.values is not None and torch.equal(x.values[0, :, t], 2 * CACHE[page, at])


def test_codes_of_a_cache_are_multiplied_by_their_scale() -> None:
    codes = CACHE.to(torch.float8_e4m3fn)
    stored = {"k_cache": codes, "v_cache": codes, "k_scale": 0.5, "v_scale": torch.tensor(0.25)}
    x = Capture.from_tensors(ATTENTION | stored).load(1, 0)
    assert torch.equal(x.keys[0, :, 1], 0.5 * codes[0, 1].float())
    assert x.values is not None and torch.equal(x.values[0, :, 1], 0.25 * codes[0, 1].float())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k_cache": CACHE[0, 0, 0]}, "k_cache must be a tensor"),
        ({"k_cache": 1.0}, "k_cache must be a tensor .*got float"),
        ({"k_cache": CACHE[:, :, 0]}, r"got \[6, 4, 8\]"),
        ({"v_cache": CACHE[:2]}, "same pages"),
        ({"v_cache": CACHE[:, :2]}, "same pages"),
        ({"v_cache": None}, "v_cache must be"),
        ({"q": torch.ones(4, 8)}, "q must be a tensor"),
        ({"window_left": 128}, "holds 'window_left' too"),
        ({"kv_indptr": torch.tensor([])}, "kv_indptr must begin with 0"),
        ({"kv_indptr": torch.tensor([0, 3, 2])}, "kv_indptr must begin with 0"),
        ({"kv_indices": torch.tensor([4, 4, 0])}, "page twice"),
        ({"kv_indices": torch.tensor([4, 6, 0])}, "the cache lack"),
        ({"kv_last_page_len": torch.tensor([5, 2])}, "where a page has 4"),
    ],
)
def test_what_is_no_paged_attention_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Capture.from_tensors(ATTENTION | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kpe_cache": MLA["kpe_cache"][:5]}, "same pages"),
        ({"ckv_cache": MLA["ckv_cache"][:, :, None]}, r"ckv_cache must be a tensor \[pages, tokens, D\]"),
        ({"q_pe": MLA["q_pe"][:, :3]}, "same queries and heads"),
    ],
)  # fmt: skip
def test_what_is_no_mla_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Capture.from_tensors(MLA | change)
    with pytest.raises(InputError, match="it lacks q_pe"):
        Capture.from_tensors({name: x for name, x in MLA.items() if name != "q_pe"})

"""Paged caches of index keys, packed here byte by byte from the formats' description."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import topkit
from topkit import Capture
from topkit.errors import InputError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e4m3(byte: int) -> float:
    """One sign bit, four of the exponent (bias 7), three of the mantissa; no infinity."""
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def fp8_token(draw: random.Random) -> tuple[bytes, bytes, list[float]]:
    codes = [draw.choice([b for b in range(256) if b & 127 != 127]) for _ in range(128)]
    scale = struct.unpack("<f", struct.pack("<f", draw.uniform(0.001, 3)))[0]
    return bytes(codes), struct.pack("<f", scale), [e4m3(c) * scale for c in codes]


def mxfp4_token(draw: random.Random) -> tuple[bytes, bytes, list[float]]:
    """Element 2 j in the low half of byte j; of every 32 elements one power of two, biased by 127."""
    numbers = [draw.randrange(16) for _ in range(128)]
    powers = [draw.randrange(120, 132) for _ in range(4)]
    codes = bytes(numbers[2 * j] | numbers[2 * j + 1] << 4 for j in range(64))
    values = [
        (-1) ** (n >> 3) * E2M1[n & 7] * 2.0 ** (powers[i // 32] - 127)
        for i, n in enumerate(numbers)
    ]
    return codes, bytes(powers), values


TOKENS = {132: fp8_token, 68: mxfp4_token}


def packed(
    width: int, page: int, lengths: list[int], seed: int
) -> tuple[Tensor, list[list[int]], list[Tensor]]:
    """A cache [pages, page, 1, width], its block table, and the keys of each sequence."""
    draw = random.Random(seed)
    needed = [-(-n // page) for n in lengths]
    pages = list(range(sum(needed) + 3))
    draw.shuffle(pages)
    table = [[pages.pop() for _ in range(n)] + [-1] * (max(needed) - n) for n in needed]
    # What was never written is noise, in scales too.
    raw = [bytearray(draw.randbytes(page * width)) for _ in range(sum(needed) + 3)]
    keys = []
    for row, length in enumerate(lengths):
        own = []
        for t in range(length):
            codes, scale, values = TOKENS[width](draw)
            where = raw[table[row][t // page]]
            at, size = t % page, len(codes)
            where[at * size : (at + 1) * size] = codes
            where[page * size + 4 * at : page * size + 4 * at + 4] = scale
            own.append(values)
        keys.append(torch.tensor(own))
    flat = torch.tensor([list(page_bytes) for page_bytes in raw], dtype=torch.uint8)
    return flat.view(len(raw), page, 1, width), table, keys


def asked(rows: int, count: int = 1, heads: int = 3) -> dict[str, Any]:
    make = torch.Generator().manual_seed(rows)
    return {
        "index_queries": torch.randn(rows, count, heads, 128, generator=make),
        "index_weights": torch.randn(rows * count, heads, generator=make),
    }


@settings(max_examples=12, deadline=None)
@given(
    width=st.sampled_from([132, 68]),
    page=st.sampled_from([1, 3, 16, 64]),
    lengths=st.lists(st.integers(2, 70), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_every_key_is_what_the_format_says(
    width: int, page: int, lengths: list[int], seed: int
) -> None:
    cache, table, keys = packed(width, page, lengths, seed)
    capture = Capture.from_tensors(
        **asked(len(lengths), 2), index_cache=cache, block_table=table, lengths=lengths
    )
    assert capture.samples == list(range(len(lengths)))
    for sample, wanted in enumerate(keys):
        x = capture.load(sample, 0)
        assert x.index_keys is not None and torch.equal(x.index_keys[0, 0], wanted)
        assert x.positions.tolist() == [lengths[sample] - 2, lengths[sample] - 1]
        queries = asked(len(lengths), 2)["index_queries"][sample].transpose(0, 1)
        assert x.index_queries is not None and torch.equal(x.index_queries[0], queries)
        weights = asked(len(lengths), 2)["index_weights"][2 * sample : 2 * sample + 2]
        assert x.index_weights is not None and torch.equal(x.index_weights[0], weights)


def test_engines_names_and_shapes_of_one_step(tmp_path: Any) -> None:
    """flashinfer: queries [B, H, D] in fp8, the cache as int8; SGLang: a page in one row."""
    cache, table, keys = packed(132, 64, [130, 70], 1)
    queries = asked(2)["index_queries"][:, 0].to(torch.float8_e4m3fn)
    own = {
        "q_index_fp8": queries,
        "weights": asked(2)["index_weights"],
        "k_index_cache_fp8": cache.view(torch.int8),
        "block_table": torch.tensor(table),
        "seq_lens": torch.tensor([130, 70]),
    }
    torch.save(own, tmp_path / "step.pt")
    torch.save(own | {"k_index_cache_fp8": cache.flatten(1)}, tmp_path / "rows.pt")
    opened = [Capture.open(tmp_path / name) for name in ("step.pt", "rows.pt")]
    for capture in opened:
        for sample, wanted in enumerate(keys):
            x = capture.load(sample, 0)
            assert x.index_keys is not None and torch.equal(x.index_keys[0, 0], wanted)
            assert x.index_queries is not None
            assert torch.equal(x.index_queries[0, :, 0], queries[sample].float())
    rows = topkit.measure(opened[0], "lightning:weights=given,dtype=fp8", 16).summary()
    assert 0.5 < rows[0]["recall"] <= 1 and rows[0]["rows"] == 2


def refused(**changes: Any) -> str:
    cache, table, _ = packed(132, 16, [40, 20], 2)
    given = {"index_cache": cache, "block_table": table, "lengths": [40, 20], **asked(2)}
    given |= changes
    with pytest.raises(InputError) as caught:
        Capture.from_tensors(**{n: x for n, x in given.items() if x is not None})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_tables_and_caches_are_named() -> None:
    cache, table, _ = packed(132, 16, [40, 20], 2)
    one, two = table
    assert "twice for sequence 0" in refused(block_table=[[one[0], one[1], one[0]], two])
    assert "names page -1 for sequence 0" in refused(block_table=[[one[0], -1, one[2]], two])
    assert "names page 99 for sequence 1" in refused(block_table=[one, [99, *two[1:]]])
    assert "which takes 3" in refused(block_table=[one[:2], two[:2]])
    assert "a row for each of lengths" in refused(block_table=[one, two, two])
    assert "lengths must be 2 numbers" in refused(lengths=[40])
    assert "wants lengths" in refused(lengths=None)
    assert "block_table goes with" not in refused(block_table=None)
    assert "index_cache goes with block_table" in refused(block_table=None)
    assert "132] bytes of fp8, or 68" in refused(index_cache=cache[..., :100])
    assert "must be bytes" in refused(index_cache=cache.float())
    assert "names page" in refused(index_cache=cache[:1])
    assert "132] bytes of fp8, or 68" in refused(index_cache=cache[:, :0])


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
def test_bad_scales_are_named(value: float) -> None:
    cache, table, _ = packed(132, 16, [40, 20], 2)
    page = cache[table[0][1]].reshape(-1)
    page[16 * 128 + 8 : 16 * 128 + 12] = torch.tensor(list(struct.pack("<f", value)))
    assert "must be positive and finite" in refused(index_cache=cache)


def test_pages_may_be_shared_between_sequences() -> None:
    cache, table, keys = packed(132, 16, [48], 3)
    capture = Capture.from_tensors(
        **asked(2), index_cache=cache, block_table=table * 2, lengths=[48, 33]
    )
    x = capture.load(1, 0)
    assert x.index_keys is not None and torch.equal(x.index_keys[0, 0], keys[0][:33])

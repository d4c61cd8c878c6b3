"""Paged caches of index keys, as DeepGEMM, flashinfer, SGLang and vLLM hold them.

A page of n tokens is n keys, one after the other, and behind them their n scales of 4 bytes each: 128 bytes of
e4m3 and a float32 (132 a token), or 64 bytes of two e2m1 each and four exponents of two (68). Source: DeepGEMM,
tests/test_attention.py (`kv_cache_cast_to_fp8`, `kv_cache_cast_to_fp4`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.experiments.capture.stored import floats

# Bytes of a token's key and its scale; of these, of the key.
FORMATS = {132: 128, 68: 64}
# SGLang's buffer is [pages, bytes of a page]: of so many tokens.
PAGE = 64


def pages_of(cache: Tensor) -> Tensor:
    """The pages of a cache as bytes [pages, tokens, bytes of a token].

    Shapes: [pages, tokens, 1, bytes], [pages, tokens, bytes], or [pages, bytes of a page of 64 tokens].
    Raises: InputError for what is none of them.
    """
    if cache.dtype not in (torch.uint8, torch.int8, torch.float8_e4m3fn):
        raise InputError(f"index_cache must be bytes, uint8 or int8; got {cache.dtype}")
    cache = cache.view(torch.uint8)
    if cache.ndim == 4 and cache.shape[2] == 1:
        cache = cache[:, :, 0]
    elif cache.ndim == 2 and cache.shape[1] in {PAGE * width for width in FORMATS}:
        cache = cache.unflatten(1, (PAGE, -1))
    if cache.ndim != 3 or cache.shape[2] not in FORMATS or 0 in cache.shape:
        raise InputError(
            "index_cache must be [pages, tokens of a page, 1, 132] bytes of fp8, or 68 of MXFP4; got "
            f"{list(cache.shape)}"
        )
    return cache


def require_table(table: Tensor, lengths: Sequence[int], pages: int, size: int) -> None:
    """Require a block table [B, n] to name a page for each `size` tokens of each sequence, none twice.

    Sequences may share pages, as those of one prefix do.
    Raises: InputError naming the sequence.
    """
    if table.ndim != 2 or table.shape[0] != len(lengths):
        raise InputError(
            f"block_table must be [{len(lengths)}, pages of a sequence], a row for each of lengths; got "
            f"{list(table.shape)}"
        )
    for row, (listed, length) in enumerate(zip(table.tolist(), lengths, strict=True)):
        needed = -(-length // size)
        if needed > len(listed):
            raise InputError(
                f"block_table has {len(listed)} pages of {size} for sequence {row} of {length} tokens, "
                f"which takes {needed}; give the whole table, or the lengths that it is of"
            )
        own = listed[:needed]
        outside = [page for page in own if not 0 <= page < pages]
        if outside:
            raise InputError(
                f"block_table names page {outside[0]} for sequence {row}, and the cache has {pages}; "
                "dump the whole cache, or the table of this one"
            )
        if len(set(own)) < needed:
            twice = next(page for page in own if own.count(page) > 1)
            raise InputError(
                f"block_table names page {twice} twice for sequence {row}; a key stands in one place"
            )


def unpacked(cache: Tensor, pages: Tensor, length: int) -> Tensor:
    """The index keys [1, 1, T, 128] in float32 of a sequence of T tokens on these pages.

    Shapes: cache [pages, tokens, bytes] as `pages_of` makes it.
    Raises: InputError for scales that are NaN, infinite, 0 or negative.
    """
    size, width = cache.shape[1:]
    own = cache[pages.to(cache.device)].reshape(-1, size * width)
    split = size * FORMATS[width]
    codes = own[:, :split].reshape(-1, FORMATS[width])[:length]
    tails = own[:, split:].reshape(-1, 4)[:length]
    kind = torch.float8_e4m3fn if width == 132 else torch.uint8
    scales = tails.contiguous().view(torch.float32) if width == 132 else tails
    return floats("index_cache", codes.contiguous().view(kind), scales)[None, None]

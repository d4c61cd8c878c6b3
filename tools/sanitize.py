"""Every kernel once or twice on small, odd shapes, for compute-sanitizer to watch.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tools/sanitize.py

Each answer is held against its definition in torch as well. With torch's own memory pool a tensor's
neighbour would hide what is read or written beyond its end, so the pool is off.
"""

from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from topkit.kernels import fp4
from topkit.kernels.cache_append import cache_append
from topkit.kernels.codes import PACKED_BITS, quantize, scales_stored, signs, stored
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.quantize_append import quantize_append
from topkit.kernels.score import score_codes, score_lightning
from topkit.kernels.score_select import score_select, score_select_lightning
from topkit.kernels.select_topk import select_topk
from topkit.kernels.topk_attention import cuts_of, keys_kept

DTYPES = ("sign", "int2", "int4", "int8", "fp8_e4m3", *fp4.BLOCK)
LIGHTNING = ("fp8_e4m3", *fp4.BLOCK)


def main() -> None:
    torch.manual_seed(0)
    for name, watched in WATCHED.items():
        watched()
        torch.cuda.synchronize()
        print(f"{name}: ran", flush=True)


def thresholds() -> None:
    for dim, (count, length) in product((16, 64, 128), ((1, 1), (5, 3001), (300, 2900))):
        q = drawn(2, 4, count, dim, dtype=torch.bfloat16)
        k = drawn(2, 2, length, dim, dtype=torch.bfloat16)
        start = torch.tensor([0, length // 2], device="cuda")
        for first in (None, start):
            kept = keys_kept("0.02", count, length, start=first, device="cuda")
            mine, theirs = (cuts_of(q, k, kept, first, backend=b) for b in ("triton", "torch"))
            torch.testing.assert_close(mine.high, theirs.high, rtol=1e-4, atol=1e-4)
    same = drawn(1, 1, 1, 64, dtype=torch.bfloat16).expand(-1, -1, 3000, -1)  # cut again: all tie
    kept = keys_kept("0.02", 300, 3000, device="cuda")
    cuts_of(drawn(1, 1, 300, 64, dtype=torch.bfloat16), same, kept, backend="triton")


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def select() -> None:
    for rows, length, k in ((1, 1, 1), (3, 1000, 7), (2, 8193, 4096), (3, 40001, 100)):
        _same_scores(drawn(rows, length), k)
    _same_scores(torch.zeros(2, 20000, device="cuda"), 33)  # all ties: searched in the row itself
    stop = torch.tensor([0, 5, 30000], device="cuda")
    for backend in ("triton", "torch"):
        select_topk(drawn(3, 30000), 64, stop=stop, order="slot", backend=backend)


def _same_scores(scores: Tensor, k: int) -> None:
    mine, theirs = (select_topk(scores, k, backend=b) for b in ("triton", "torch"))
    torch.testing.assert_close(mine, theirs)


def _codes(dtype: str, length: int, dim: int) -> tuple[Tensor, Tensor | None]:
    return _encoded(drawn(2, 2, length, dim), dtype)


def _encoded(vectors: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    if dtype == "sign":
        return signs(vectors), None
    return fp4.quantize(vectors, dtype) if dtype in fp4.BLOCK else quantize(vectors, dtype)


def score() -> None:
    stop = torch.tensor([[5], [700]], device="cuda")
    for dtype in DTYPES:
        for length, dim, pool in ((1, 64, None), (777, 128, "mean"), (777, 64, "max")):
            codes, scale = _codes(dtype, length, dim)
            told: dict[str, Any] = {"dtype": dtype, "scale": scale, "pool": pool, "stop": stop}
            queries = drawn(2, 6, 1, dim, dtype=torch.bfloat16)
            mine, theirs = (
                score_codes(queries, codes, **told, backend=b) for b in ("triton", "torch")
            )
            torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-2)


def _lightning(length: int, dtype: str) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    queries, query_scale = _encoded(drawn(1, 12, 2, 128), dtype)
    keys, key_scale = _encoded(drawn(1, 1, length, 128), dtype)
    return (queries, keys, drawn(1, 2, 12)), {"query_scale": query_scale, "key_scale": key_scale}


def lightning() -> None:
    for length, dtype in product((3, 999), LIGHTNING):
        args, scales = _lightning(length, dtype)
        mine, theirs = (score_lightning(*args, **scales, backend=b) for b in ("triton", "torch"))
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def fused() -> None:
    for dtype in DTYPES:
        for length in (900, 20011):
            codes, scale = _codes(dtype, length, 128)
            queries = drawn(2, 8, 1, 128, dtype=torch.bfloat16)
            score_select(
                queries, codes, 50, dtype=dtype, scale=scale, pool="mean", backend="triton"
            )
    same = torch.zeros(1, 1, 20011, 16, dtype=torch.uint8, device="cuda")  # all ties: scored again
    score_select(drawn(1, 4, 1, 128), same, 50, dtype="sign", pool="mean", backend="triton")
    for length, dtype in product((900, 20011), LIGHTNING):
        args, scales = _lightning(length, dtype)
        score_select_lightning(*args, 50, **scales, backend="triton")


def gather() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for k, lists, dim in ((1, 8, 64), (333, 2, 128), (2048, 1, 128)):
            queries = drawn(2, 8, 1, dim, dtype=dtype)
            keys, values = (drawn(2, 2, 3001, dim, dtype=dtype) for _ in range(2))
            chosen = torch.randint(-1, 3001, (2, lists, 1, k), device="cuda")
            mine, theirs = (
                gather_attention(queries, keys, values, chosen, scaling=0.1, backend=b)
                for b in ("triton", "torch")
            )
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def append() -> None:
    for dtype in DTYPES:
        for new, at in ((1, 99), (37, 3), (37, 80)):  # the last one beyond the end
            kind, width = stored(dtype, 128)
            codes = torch.zeros(2, 2, 100, width, dtype=kind, device="cuda")
            (kind, *_), count = scales_stored(dtype, 128)
            scale = (
                None if dtype == "sign" else torch.zeros(2, 2, 100, count, device="cuda").to(kind)
            )
            keys = drawn(2, 2, new, 128, dtype=torch.bfloat16)
            place = torch.tensor([at], device="cuda")
            how = {"dtype": dtype, "hadamard": dtype in PACKED_BITS, "pow2": new == 1}
            quantize_append(keys, codes, scale, place, **how, backend="triton")


def cache() -> None:
    keys, values = drawn(2, 3, 20, 64), drawn(2, 3, 20, 48)
    for at in (0, 19, 20):  # the last one beyond the end
        place, new = torch.tensor([at], device="cuda"), (drawn(2, 3, 1, 64), drawn(2, 3, 1, 48))
        cache_append(keys, values, *new, place, backend="triton")


WATCHED = {
    "select_topk": select,
    "score": score,
    "score, lightning": lightning,
    "score_select": fused,
    "thresholds": thresholds,
    "gather_attention": gather,
    "quantize_append": append,
    "cache_append": cache,
}

if __name__ == "__main__":
    main()

"""Compiles the launches of every kernel for GPUs that are not there, and prints what came of each.

    python compiled.py cuda 80    or    python compiled.py hip gfx942

The operations run as they do on a GPU, up to the launch, on tensors of a CPU; each in a process of its
own, since a compiler may end the one that it is in.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # what has used threads cannot fork

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from topkit.kernels import backend, fp4
from topkit.kernels.cache_append import triton_impl as cache_append
from topkit.kernels.codes import quantize, scales_stored, signs, stored
from topkit.kernels.force_ends import triton_impl as force_ends
from topkit.kernels.gather_attention import chosen_scores
from topkit.kernels.gather_attention import triton_impl as gather_attention
from topkit.kernels.hadamard import triton_impl as hadamard
from topkit.kernels.page_bounds import triton_impl as page_bounds
from topkit.kernels.quantize_append import triton_impl as quantize_append
from topkit.kernels.score import triton_impl as score
from topkit.kernels.score_keys import triton_impl as score_keys
from topkit.kernels.score_select import triton_impl as score_select
from topkit.kernels.select_mass import triton_impl as select_mass
from topkit.kernels.select_pages import triton_impl as select_pages
from topkit.kernels.select_topk import triton_impl as select_topk
from topkit.kernels.topk_attention import flash
from topkit.kernels.topk_attention import triton_impl as thresholds

BACKEND, ARCH = sys.argv[1], sys.argv[2]
TARGET = GPUTarget(BACKEND, int(ARCH) if ARCH.isdigit() else ARCH, 64 if BACKEND == "hip" else 32)


class Absent:
    """The driver of a GPU that is not there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGET


absent: Any = Absent()
driver.set_active(absent)
run: Any = JITFunction.run
compiled: dict[str, int] = {}


def compiles_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    if BACKEND == "hip":  # what only NVIDIA's launches have
        options = {n: x for n, x in options.items() if n not in ("launch_pdl", "maxnreg")}
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    compiled[self.__name__] = max(kernel.metadata.shared, compiled.get(self.__name__, 0))
    four_neighbours(kernel.asm["ttgir"])
    one_row_each(kernel.asm["ttgir"])
    return kernel


def four_neighbours(ttgir: str) -> None:
    """Holds that what looks fp4 up four bytes at a time, by a block's table, is handed bytes of one, side by side."""
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.M))
    for line in ttgir.splitlines():
        if "elementwise_inline_asm" in line and "$7" in line and "0x6420" in line:
            layout = re.search(r": tensor<\w+xi8, (#.*?)>, tensor", line)
            assert layout, line
            told = layouts.get(layout[1], layout[1])
            blocked = re.search(r"sizePerThread = \[\d+, (\d+)\].*order = \[1, 0\]", told)
            rows = "register = [[0, 1], [0, 2]" in told or re.search(
                r"dot_op.*kWidth = (4|8|16)", told
            )
            assert rows or (blocked and int(blocked[1]) % 4 == 0), told


# What appends a score to a list, and what writes two counts.
APPENDS = r"add\.u64 place|st\.global\.b32 \[\$\d+\], \$"


def one_row_each(ttgir: str) -> None:
    """Holds that what appends to a list a row is handed a thread's scores of one row, of which four threads have all.

    These stand side by side in their warp, as they shuffle; and so does what counts the row at last.
    """
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.M))
    for line in ttgir.splitlines():
        if "elementwise_inline_asm" in line and re.search(APPENDS, line):
            layout = re.search(r": tensor<\w+x(?:f32|i64), (#\w+)>, tensor", line)
            assert layout, line
            told = layouts[layout[1]]
            held, lanes, warps = (
                json.loads(re.search(rf"{name} = (\[.*?\])(?:, [lwb]|}})", told)[1])  # pyright: ignore[reportOptionalSubscript]
                for name in ("register", "lane", "warp")
            )
            packed = re.search(r"packed_element = (\d+)", line)
            assert packed and 1 << len(held) == int(packed[1]), (told, line)
            assert all(place[:2] == [0, 0] for place in held + lanes[:2]), told
            # No other thread has a score of the row, nor the same one.
            assert all(any(place[:2]) for place in lanes[2:] + warps), told


JITFunction.run = compiles_only
backend.multiprocessors = lambda device: 132
backend.capability = lambda device: (int(ARCH) // 10, int(ARCH) % 10) if ARCH.isdigit() else (0, 0)

gather_attention.multiprocessors = backend.multiprocessors
score.multiprocessors = score_select.multiprocessors = backend.multiprocessors
CODES = ("sign", "int2", "int4", "int8", "fp8_e4m3", *fp4.BLOCK)


def encoded(vectors: torch.Tensor, dtype: str) -> tuple[torch.Tensor, Any]:
    if dtype == "sign":
        return signs(vectors), None
    return fp4.quantize(vectors, dtype) if dtype in fp4.BLOCK else quantize(vectors, dtype)


def select() -> None:
    for length, k in ((1000, 16), (40000, 2048)):
        select_topk.select_topk(torch.zeros(2, length), k, torch.tensor([1, 2]), ranked=True)
    named = torch.zeros(2, 300, dtype=torch.long)
    select_topk.select_topk(torch.zeros(2, 300), 16, None, named=named)


def rotation() -> None:
    for dim in (64, 256):
        hadamard.hadamard(torch.zeros(2, 9, 1, dim, dtype=torch.bfloat16))


def mass() -> None:
    for length, k in ((9216, 64), (1 << 20, 4096)):
        select_mass.select_mass(torch.zeros(2, length), k, 0.9, 0.125)


def ends() -> None:
    seen: dict[str, Any] = {"start": torch.tensor([1]), "stop": torch.tensor([[500]])}
    scores, slots = torch.zeros(1, 9, 1, 600), torch.zeros(1, 3, 1, 600, dtype=torch.long)
    force_ends.force_ends(scores, 4, 16, slots=None, **seen)
    force_ends.force_ends(scores, 4, 0, slots=slots, **seen)
    force_ends.force_ends(scores, 0, 1, slots=slots, start=None, stop=seen["stop"])
    force_ends.ends_first(slots, 64, 4, 16, **seen)
    force_ends.ends_first(slots[..., :0], 64, 4, 64, start=None, stop=seen["stop"])


def keys(dim: int) -> Callable[[], None]:
    def compiles() -> None:
        q = torch.zeros(1, 9, 1, dim, dtype=torch.bfloat16)
        kv = torch.zeros(1, 3, 3000, dim, dtype=torch.bfloat16)
        stop, at = torch.tensor([[2000]]), torch.tensor([1999])
        score_keys.score_keys(q, kv, None, stop)
        score_keys.score_keys(q, kv, torch.tensor([7]), stop)
        gather_attention.attend_all(q, kv, kv, scaling=0.1, start=None, stop=stop)
        chosen_scores.gather_scores(q, kv, torch.zeros(1, 3, 1, 256, dtype=torch.long))
        low, high = kv[:, :, :188].clone(), kv[:, :, :188].clone()
        for start in (None, torch.tensor([7])):
            page_bounds.append_bounds(kv, low, high, at, 16, start)
            pages = page_bounds.score_bounds(q, low, high, 16, start, stop)
            select_pages.select_pages(pages, 64, 5, 16, start, stop)

    return compiles


def threshold(dim: int) -> Callable[[], None]:
    def compiles() -> None:
        q = torch.zeros(1, 4, 300, dim, dtype=torch.bfloat16)
        k = torch.zeros(1, 2, 5000, dim, dtype=torch.bfloat16)
        for start in (None, torch.tensor([7])):
            for most in (50, 1000):
                kept = torch.full((1, 300), most)
                cuts = thresholds.cut_rows(q, k, kept, start, most).cuts
                own = q.requires_grad_(), k, k
                flash.attend(*own, cuts, scaling=0.1, start=start).sum().backward()

    return compiles


def source(dtype: str, length: int) -> tuple[Any, Any]:
    queries = torch.zeros(1, 8, 1, 128, dtype=torch.bfloat16)
    codes, scale = encoded(torch.randn(1, 2, length, 128), dtype)
    return score.of_codes(queries, codes, dtype, scale, "mean")


def scores(dtype: str) -> Callable[[], None]:
    def compiles() -> None:
        score.score_codes(*source(dtype, 500), None, torch.tensor([[5]]))
        score_select.score_select(*source(dtype, 20000), 64, None, torch.tensor([[5]]))

    return compiles


def lightning(dtype: str) -> Callable[[], None]:
    def compiles() -> None:
        queries, query_scale = encoded(torch.randn(1, 64, 1, 128), dtype)
        keys, key_scale = encoded(torch.randn(1, 1, 20000, 128), dtype)
        gates = torch.randn(1, 1, 64)
        args = score.of_lightning(queries, keys, gates, query_scale, key_scale)
        score.score_codes(*args, None, None)
        if backend.has_gluon(keys.device):
            from topkit.kernels.score import hopper

            hopper.multiprocessors = backend.multiprocessors
            if hopper.takes(*args):
                for seen in ((None, None), (torch.tensor([7]), torch.tensor([[900]]))):
                    hopper.score(args[0], *seen)
        if dtype in fp4.BLOCK:  # heads at places that are no multiples of what a thread reads
            odd = torch.nn.functional.pad(queries, (0, 3))[..., :-3]
            score.of_lightning(odd, keys, gates, query_scale, key_scale)
        score_select.score_select(*args, 2048, None, None)

    return compiles


def gather(dim: int) -> Callable[[], None]:
    def compiles() -> None:
        for lists, count in ((8, 1), (8, 5), (8, 40), (1, 40)):
            q = torch.zeros(1, 32, count, dim, dtype=torch.bfloat16)
            kv = torch.zeros(1, 8, 3000, dim, dtype=torch.bfloat16)
            indices = torch.zeros(1, lists, count, 2048, dtype=torch.long)
            gather_attention.gather_attention(q, kv, kv, indices, scaling=0.1)

    return compiles


def append(dtype: str) -> Callable[[], None]:
    def compiles() -> None:
        kind, width = stored(dtype, 128)
        codes = torch.zeros(1, 2, 100, width, dtype=kind)
        (scales, *_), count = scales_stored(dtype, 128)
        scale = None if dtype == "sign" else torch.zeros(1, 2, 100, count).to(scales)
        for new in (1, 37):
            keys = torch.zeros(1, 2, new, 128, dtype=torch.bfloat16)
            how: dict[str, Any] = {"dtype": dtype, "hadamard": True, "pow2": False}
            quantize_append.quantize_append(keys, codes, scale, torch.tensor([3]), **how)

    return compiles


def cache(dtype: torch.dtype) -> Callable[[], None]:
    def compiles() -> None:
        kv, new = torch.zeros(1, 2, 9, 64, dtype=dtype), torch.zeros(1, 2, 1, 64, dtype=dtype)
        cache_append.cache_append(kv, kv, new, new, torch.tensor([3]))

    return compiles


OPERATIONS: dict[str, Callable[[], None]] = {
    "select_topk": select,
    **{f"score {dtype}": scores(dtype) for dtype in CODES},
    **{f"score lightning {dtype}": lightning(dtype) for dtype in ("fp8_e4m3", *fp4.BLOCK)},
    "hadamard": rotation,
    "select_mass": mass,
    "force_ends": ends,
    "keys 64": keys(64),
    "keys 128": keys(128),
    **{f"topk_attention {dim}": threshold(dim) for dim in (64, 128)},
    "gather_attention 64": gather(64),
    "gather_attention 128": gather(128),
    **{f"quantize_append {dtype}": append(dtype) for dtype in CODES},
    "cache_append bfloat16": cache(torch.bfloat16),
    "cache_append float8_e4m3fn": cache(torch.float8_e4m3fn),
}


def outcome(operation: Callable[[], None]) -> Any:
    """Bytes of shared memory of each kernel, or what the compiler said."""
    try:
        operation()
        return compiled
    except Exception as error:  # whatever a compiler raises
        return f"{type(error).__name__}: {error}"


def alone(operation: Callable[[], None]) -> Any:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write, "w") as out:
            json.dump(outcome(operation), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as came:
        said = came.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else "the compiler ended its process"


if __name__ == "__main__":
    print(json.dumps({name: alone(operation) for name, operation in OPERATIONS.items()}))

"""One kernel's work a few times with a cold L2, for ncu to count.

    ncu --clock-control none -k regex:"_threshold|_filter|_finish" --section SpeedOfLight \
        --section WarpStateStats --section InstructionStats --section SchedulerStats --csv --page raw \
        python tools/profiled.py select

select: top-k of 8, 64 and 1 row x 128K and 8 x 1M; fused: 1 bit, batch 8 x 1M; gather: batch 8 x 128K;
step: whole steps as `attach` captures them, over signs and over lightning, batch 8 x 128K (add
--graph-profiling node, without which ncu takes a graph for one kernel).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from topkit.experiments.bench.data import Tensors
from topkit.experiments.bench.kinds import KINDS, decoding_of
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.kernels.gather_attention import gather_attention
from topkit.kernels.score_select import score_select
from topkit.kernels.select_topk import select_topk

K, TURNS = 2048, 2


def main(what: str) -> None:
    torch.manual_seed(0)
    for call in WORK[what]():
        for _ in range(TURNS):
            torch.empty(1 << 26, device="cuda").zero_()  # more than L2 holds
            call()
            torch.cuda.synchronize()


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def select() -> list[Callable[[], object]]:
    shapes = ((8, 1 << 17), (64, 1 << 17), (1, 1 << 17), (8, 1 << 20))
    rows = [drawn(*shape, dtype=torch.float32) for shape in shapes]
    how = {"order": None, "check": False, "backend": "triton"}
    return [lambda x=x: select_topk(x, K, **how) for x in rows]  # type: ignore[arg-type]


def fused() -> list[Callable[[], object]]:
    codes = torch.randint(0, 256, (8, 8, 1 << 20, 16), device="cuda", dtype=torch.uint8)
    queries = drawn(8, 32, 1, 128)
    told = {"dtype": "sign", "pool": "mean", "order": None, "check": False, "backend": "triton"}
    return [lambda: score_select(queries, codes, K, **told)]  # type: ignore[arg-type]


def gather() -> list[Callable[[], object]]:
    keys, values = (drawn(8, 8, 1 << 17, 128) for _ in range(2))
    lists = [torch.randperm(1 << 17, device="cuda")[:K] for _ in range(64)]
    chosen, queries = torch.stack(lists).view(8, 8, 1, K), drawn(8, 32, 1, 128)
    told = {"scaling": 0.1, "backend": "triton"}
    return [lambda: gather_attention(queries, keys, values, chosen, **told)]  # type: ignore[arg-type]


def step() -> list[Callable[[], object]]:
    session, f32 = Session(torch.device("cuda"), Scale()), torch.float32
    keys, values = (drawn(8, 8, 1 << 17, 128) for _ in range(2))
    index = (drawn(8, 1, 1 << 17, 128), drawn(8, 64, 1, 128, dtype=f32), drawn(8, 1, 64, dtype=f32))
    tensors = Tensors(drawn(8, 32, 1, 128), keys, values, *index, scaling=0.1)
    return [decoding_of(session, KINDS[name], tensors, 8).step for name in ("sign", "lightning")]


WORK = {"select": select, "fused": fused, "gather": gather, "step": step}

if __name__ == "__main__":
    main(sys.argv[1])

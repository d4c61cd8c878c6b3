"""Where the time of Top-k attention goes on a GPU: milliseconds of its parts.

    python tools/thresholds.py [--length 32K] [--dim 128] [--heads 8] [--ratio 0.01] [--configs] [--attend] [--tiny]

Of each part: `gpu`, what its kernels take; `host`, how long a call takes to return; and `wall`, a call behind the
other. Where `wall` is far above `gpu` the GPU waits for the host. --configs: tries configurations of the kernels
that find thresholds, the best first; --attend: options of FlexAttention, forward and backward apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from configs import tokens
from torch._C._autograd import DeviceType
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.experiments.bench.timing import settle, streamed
from topkit.kernels.backend import interpreted
from topkit.kernels.topk_attention import cuts_of, flex, keys_kept, topk_attention, triton_impl
from topkit.kernels.topk_attention.sample import Plan
from topkit.kernels.topk_attention.thresholds import cuts_begun
from topkit.kernels.topk_attention.triton_impl import Config, Found

Call = Callable[[], Any]
# A warp for each 16 queries, as Hopper's products stand.
GRID = [Config(16 * warps, *rest, warps, stages) for warps, rest, stages in product((4, 8), ((64,), (128,)), (2, 3))]  # fmt: skip
# Forward and backward are apart, so that one trial is of both.
FORWARD = ((128, 128, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3), (128, 128, 4, 2))
BACKWARD = ((64, 128, 128, 64, 8, 3), (64, 64, 64, 64, 4, 3), (64, 128, 128, 64, 4, 2), (32, 64, 64, 32, 4, 3), (64, 64, 64, 64, 8, 2))  # fmt: skip
CALLS = 8


class Case:
    """What is timed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        session = Session(self.device, Scale())
        self.length = 40 if given.tiny else tokens(given.length)
        heads = 1 if given.tiny else given.heads
        shape = (1, heads, self.length, given.dim)
        drawn = [session.drawn(*shape, dtype=torch.bfloat16) for _ in range(4)]
        self.inputs = (
            drawn[0].requires_grad_(),
            drawn[1].requires_grad_(),
            drawn[2].requires_grad_(),
        )
        self.grad = drawn[3]
        self.q, self.k, self.v = (x.detach() for x in self.inputs)
        self.kept = keys_kept(given.ratio, self.length, self.length, device=self.device)
        self.most = int(self.kept.max())
        self.plan = Plan(self.length, self.most)

    def found(self) -> Found:
        return triton_impl.cut_rows(self.q, self.k, self.kept, None, self.most)

    def both(self, out: torch.Tensor) -> None:
        for x in self.inputs:
            x.grad = None
        out.backward(self.grad)


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--length", default="32K")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--ratio", default="0.01")
    parser.add_argument("--configs", action="store_true")
    parser.add_argument("--attend", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small, also in Triton's interpreter")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not interpreted():
        raise SystemExit("needs a GPU, or TRITON_INTERPRET=1 with --tiny")
    case = Case(given)
    print(f"{case.length} keys, dimension {given.dim}, {case.q.shape[1]} heads, k {case.most}; ms")
    print(f"rows left to be cut again: {int(case.found().state[0])} of {case.kept.numel() * case.q.shape[1]}")  # fmt: skip
    _parts(case)
    if given.configs:
        _configs(case, given.tiny)
    if given.attend:
        _attend(case)


def _parts(case: Case) -> None:
    q, k, v, kept = case.q, case.k, case.v, case.kept
    found, other = case.found(), case.found()
    rows = triton_impl.floors(q, k, kept, None, case.plan)
    parts: dict[str, Call] = {
        "floors": lambda: triton_impl.floors(q, k, kept, None, case.plan),
        "pass over all keys": lambda: triton_impl.among(q, k, kept, None, case.plan, rows, found),
        "rows cut again": lambda: triton_impl.again(q, k, kept, None, 0.0, other),
        "all kernels": case.found,
        "thresholds": lambda: cuts_of(q, k, kept, backend="triton", most=case.most),
    }
    if case.device.type == "cuda":
        with torch.no_grad():
            cuts, _ = cuts_begun(q, k, kept, None, flex.SLACK, most=case.most)
        scaling = q.shape[3] ** -0.5
        parts |= {
            "attention, forward": lambda: flex.attend(q, k, v, cuts, scaling=scaling),
            "attention, both": lambda: case.both(flex.attend(*case.inputs, cuts, scaling=scaling)),
            "Top-k attention, both": lambda: case.both(topk_attention(*case.inputs, kept, most=case.most)),
            "flash, forward": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
            "flash, both": lambda: case.both(scaled_dot_product_attention(*case.inputs, is_causal=True)),
        }  # fmt: skip
    for name, call in parts.items():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            wall, host, kernels = _timed(call, case.device)
        gpu = sum(kernels.values())
        print(f"{name:<22} gpu {gpu:8.3f}  host {host:8.3f}  wall {wall:8.3f}")
        for kernel, its in sorted(kernels.items(), key=lambda item: -item[1])[:6]:
            if name.endswith("both"):
                print(f"    {its:8.3f}  {kernel[:90]}")


def _timed(call: Call, device: torch.device) -> tuple[float, float, dict[str, float]]:
    """Milliseconds of a call: behind another, until it returns, and of each of its kernels."""
    wall = float(np.median(streamed(call, device))) / 1e3
    spans = []
    for _ in range(CALLS):
        settle(device)
        began = time.perf_counter()
        call()
        spans.append((time.perf_counter() - began) * 1e3)
    settle(device)
    if device.type != "cuda":
        return wall, float(np.median(spans)), {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
        settle(device)
    kernels: dict[str, float] = {}
    for event in seen.events() or ():
        if event.device_type == DeviceType.CUDA:
            took = event.time_range.elapsed_us() / 1e3 / CALLS
            kernels[event.name] = kernels.get(event.name, 0.0) + took
    return wall, float(np.median(spans)), kernels


def _configs(case: Case, tiny: bool) -> None:
    now = triton_impl.CONFIG, triton_impl.FLOORS
    tried: list[tuple[float, str]] = []
    q, k, kept = case.q, case.k, case.kept
    for config in [now[0]] if tiny else GRID:
        triton_impl.CONFIG = triton_impl.FLOORS = config
        try:
            rows = triton_impl.floors(q, k, kept, None, case.plan)
            found = case.found()
            floors = lambda: triton_impl.floors(q, k, kept, None, case.plan)  # noqa: E731
            among = lambda rows=rows, found=found: triton_impl.among(q, k, kept, None, case.plan, rows, found)  # noqa: E731  # fmt: skip
            for name, call in {"floors": floors, "pass": among}.items():
                took = float(np.median(streamed(call, case.device))) / 1e3
                tried.append((took, f"{name}  {config}"))
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{config}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
    triton_impl.CONFIG, triton_impl.FLOORS = now
    for took, name in sorted(tried, key=lambda one: (one[1].split()[0], one[0])):
        print(f"{took:8.3f}  {name}")


def _trials() -> Iterator[dict[str, Any]]:
    yield {}
    yield {"BLOCKS_ARE_CONTIGUOUS": True}
    for (m, n, warps, stages), (m1, n1, m2, n2, its_warps, its_stages) in zip(
        FORWARD, BACKWARD, strict=True
    ):
        yield {
            "fwd_BLOCK_M": m, "fwd_BLOCK_N": n, "fwd_num_warps": warps, "fwd_num_stages": stages,
            "bwd_BLOCK_M1": m1, "bwd_BLOCK_N1": n1, "bwd_BLOCK_M2": m2, "bwd_BLOCK_N2": n2,
            "bwd_num_warps": its_warps, "bwd_num_stages": its_stages,
        }  # fmt: skip


def _attend(case: Case) -> None:
    """Options of FlexAttention: milliseconds of both, and of each kernel."""
    cuts = cuts_of(case.q, case.k, case.kept, slack=flex.SLACK, most=case.most)
    scaling = case.q.shape[3] ** -0.5
    for options in _trials():
        torch._dynamo.reset()
        flex._compiled.cache_clear()
        attend = lambda options=options: case.both(flex.attend(*case.inputs, cuts, scaling=scaling, options=options))  # noqa: E731  # fmt: skip
        try:
            wall, host, kernels = _timed(attend, case.device)
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{options}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
            continue
        its = " ".join(
            f"{took:7.3f} {name[-36:]:<36}" for name, took in kernels.items() if "tem_" in name
        )
        told = " ".join(str(x) for x in options.values()) if len(options) > 1 else str(options)
        print(f"wall {wall:7.3f}  host {host:6.3f}  {its} {told}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

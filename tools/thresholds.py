"""Where the time of Top-k attention goes on a GPU: milliseconds of its parts.

    python tools/thresholds.py [--length 32K] [--dim 128] [--heads 8] [--ratio 0.01] [--configs] [--attend]
                               [--seconds 40] [--tiny]

Of each part: `gpu`, what its kernels take; `host`, how long a call takes to return; and `wall`, a call behind the
other. Where `wall` is far above `gpu` the GPU waits for the host. --configs: of thresholds alone, with samples of
other sizes and other configurations of each pass, as they come and then the best first, until so many seconds have
gone; --attend: configurations of the kernels that attend.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import zip_longest
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
from topkit.kernels.topk_attention import (
    cuts_of,
    flash,
    keys_kept,
    topk_attention,
    triton_impl,
)
from topkit.kernels.topk_attention.sample import Plan
from topkit.kernels.topk_attention.thresholds import cuts_begun
from topkit.kernels.topk_attention.triton_impl import Found

Call = Callable[[], Any]
# A warp for each 16 queries, as Hopper's products stand. Those most likely to be the best come first.
FLOORS = [(64, 64, 4, 2, 4), (64, 128, 4, 2, 3), (64, 64, 4, 2, 3), (128, 64, 8, 2, 2), (64, 64, 4, 3, 3), (64, 128, 4, 2, 2)]  # fmt: skip
LISTS = {
    64: [(64, 128, 4, 3, 4), (128, 128, 8, 3, 2), (64, 64, 4, 3, 5), (64, 128, 4, 2, 4), (64, 128, 4, 3, 3), (128, 64, 8, 3, 2), (64, 64, 4, 3, 4)],
    128: [(64, 128, 4, 3, 2), (128, 64, 8, 3, 2), (64, 64, 4, 3, 3), (64, 128, 4, 2, 2), (128, 128, 8, 2, 1), (64, 64, 4, 2, 4), (128, 64, 8, 2, 2)],
}  # fmt: skip
AGAIN = [(64, 128, 4, 3, 2), (64, 64, 4, 3, 2), (64, 128, 8, 3, 2), (64, 64, 4, 4, 2)]
SPARSITIES = (16, 32, 64)
# The three passes are apart, so that one trial is of all of them: forward, of queries, of keys and values.
TRIALS = [
    [(128, 128, 8, 3), (128, 64, 8, 3), (64, 128, 8, 3)],
    [(128, 64, 8, 3), (128, 64, 8, 2), (64, 128, 8, 2)],
    [(64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3)],
    [(128, 128, 8, 2), (64, 128, 4, 2), (64, 64, 4, 2)],
    [(128, 64, 8, 4), (128, 128, 8, 2), (32, 128, 8, 3)],
    [(64, 128, 4, 2), (64, 64, 4, 2), (32, 64, 4, 3)],
]
KERNELS = {"forward": "attend", "queries": "of_queries", "keys_and_values": "of_keys_and_values"}
CALLS = 4


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

    def floors(self, plan: Plan) -> torch.Tensor:
        return triton_impl.floors(self.q, self.k, self.kept, None, plan)

    def among(self, plan: Plan, rows: torch.Tensor, found: Found) -> None:
        found.turn.zero_()
        found.state.zero_()
        triton_impl.among(self.q, self.k, self.kept, None, plan, rows, found)

    def again(self, found: Found) -> None:
        triton_impl.again(self.q, self.k, self.kept, None, 0.0, found)

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
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--tiny", action="store_true", help="small, also in Triton's interpreter")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not interpreted():
        raise SystemExit("needs a GPU, or TRITON_INTERPRET=1 with --tiny")
    until = time.monotonic() + given.seconds
    case = Case(given)
    say(f"{case.length} keys, dimension {given.dim}, {case.q.shape[1]} heads, k {case.most}; ms")
    say(f"rows left to be cut again: {int(case.found().state[0])} of {case.kept.numel() * case.q.shape[1]}")  # fmt: skip
    _parts(case, attended=case.device.type == "cuda" and not given.configs)
    if given.configs:
        _configs(case, given.tiny, until)
    if given.attend:
        _attend(case)


def say(line: str) -> None:
    print(line, flush=True)


def _parts(case: Case, attended: bool) -> None:
    q, k, kept = case.q, case.k, case.kept
    found, other = case.found(), case.found()
    rows = case.floors(case.plan)
    parts: dict[str, Call] = {
        "floors": lambda: case.floors(case.plan),
        "pass over all keys": lambda: case.among(case.plan, rows, found),
        "rows cut again": lambda: case.again(other),
        "all kernels": case.found,
        "thresholds": lambda: cuts_of(q, k, kept, backend="triton", most=case.most),
    }
    if attended:
        with torch.no_grad():
            cuts, _ = cuts_begun(q, k, kept, None, flash.SLACK, most=case.most)
        scaling = q.shape[3] ** -0.5
        parts |= {
            "by kernels, both": lambda: case.both(flash.attend(*case.inputs, cuts, scaling=scaling)),
            "Top-k attention, both": lambda: case.both(topk_attention(*case.inputs, kept, most=case.most)),
            "flash, both": lambda: case.both(scaled_dot_product_attention(*case.inputs, is_causal=True)),
        }  # fmt: skip
    for name, call in parts.items():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            wall, host, kernels = _timed(call, case.device)
        gpu = sum(kernels.values())
        say(f"{name:<22} gpu {gpu:8.3f}  host {host:8.3f}  wall {wall:8.3f}")
        for kernel, its in sorted(kernels.items(), key=lambda item: -item[1])[:6]:
            if name.endswith("both"):
                say(f"    {its:8.3f}  {kernel[:90]}")


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
    return wall, float(np.median(spans)), _kernels(call, device)


def _kernels(call: Call, device: torch.device) -> dict[str, float]:
    """Milliseconds of each kernel of a call."""
    if device.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(CALLS):
            call()
        settle(device)
    kernels: dict[str, float] = {}
    for event in seen.events() or ():
        if event.device_type == DeviceType.CUDA:
            took = event.time_range.elapsed_us() / 1e3 / CALLS
            kernels[event.name] = kernels.get(event.name, 0.0) + took
    return kernels


def _configs(case: Case, tiny: bool, until: float) -> None:
    """Milliseconds of each pass alone: with samples of several sizes, then with other configurations."""
    now = triton_impl.CONFIGS
    ours = triton_impl.configs(case.q.shape[3])
    tried: list[tuple[str, float, str]] = []

    def attempt(name: str, call: Callable[[], Call], what: str) -> None:
        try:
            took = float(np.median(streamed(call(), case.device))) / 1e3
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            say(f"{name} {what}: {str(error).splitlines()[0][:90]}")
            return
        tried.append((name, took, what))
        say(f"{took:8.3f}  {name}  {what}")

    def among(plan: Plan) -> Call:
        rows, found = case.floors(plan), case.found()
        return lambda: case.among(plan, rows, found)

    def again() -> Call:
        found = case.found()
        return lambda: case.again(found)

    for sparsity in SPARSITIES:
        plan = Plan(case.length, case.most, sparsity)
        what = f"one key in {sparsity}, room for {plan.capacity}"
        attempt("floors", lambda plan=plan: lambda: case.floors(plan), what)
        attempt("lists", lambda plan=plan: among(plan), what)
    passes = {"lists": LISTS[64 if case.q.shape[3] <= 64 else 128], "floors": FLOORS, "again": AGAIN}  # fmt: skip
    if tiny:
        passes = {name: [getattr(ours, name)] for name in passes}
    calls: dict[str, Callable[[], Call]] = {
        "floors": lambda: lambda: case.floors(case.plan),
        "lists": lambda: among(case.plan),
        "again": again,
    }
    for row in zip_longest(*passes.values()):
        for name, one in zip(passes, row, strict=True):
            if one is None or time.monotonic() > until:
                continue
            config = triton_impl.Config(*one)
            triton_impl.CONFIGS = dict.fromkeys(now, ours._replace(**{name: config}))
            attempt(name, calls[name], str(config))
    triton_impl.CONFIGS = now
    for name, took, what in sorted(tried):
        say(f"{took:8.3f}  {name}  {what}")


def _attend(case: Case) -> None:
    """Configurations of the kernels that attend: milliseconds of each of the three passes."""
    cuts = cuts_of(case.q, case.k, case.kept, slack=flash.SLACK, most=case.most)
    scaling = case.q.shape[3] ** -0.5
    now = flash.configs(case.q, case.v)
    tried: list[tuple[str, float, str]] = []
    for trial in TRIALS:
        made = flash.Configs(*(flash.Config(*one) for one in trial))
        for name, config in zip(flash.Configs._fields, made, strict=True):
            # One that does not fit leaves the others.
            flash.CONFIGS = dict.fromkeys(flash.CONFIGS, now._replace(**{name: config}))
            attend = lambda: case.both(flash.attend(*case.inputs, cuts, scaling=scaling))  # noqa: E731
            try:
                attend()
                kernels = _kernels(attend, case.device)
            except (
                Exception
            ) as error:  # what does not fit, whatever the compiler or the driver raises
                print(f"{name} {config}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
                continue
            tried.append((name, kernels.get(KERNELS[name], 0.0), str(config)))
    flash.CONFIGS = dict.fromkeys(flash.CONFIGS, now)
    for name, took, config in sorted(tried):
        print(f"{took:8.3f}  {name}  {config}")


if __name__ == "__main__":
    main()

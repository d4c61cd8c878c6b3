"""Configurations of the kernel that finds the thresholds of Top-k attention, tried on a GPU: milliseconds.

    python tools/thresholds.py [--length 32K] [--dim 128] [--heads 8] [--ratio 0.01] [--tiny]

The best stand first, the present one among them. Of each: all of `cuts_of`; of that the sample with the floors, and
the pass over all keys with the search among what it keeps; and how many rows are left to be cut again.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from configs import tokens

from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.experiments.bench.timing import streamed
from topkit.kernels.backend import interpreted
from topkit.kernels.topk_attention import cuts_of, keys_kept, triton_impl
from topkit.kernels.topk_attention.sample import Plan
from topkit.kernels.topk_attention.triton_impl import Config

# A warp for each 16 queries, as Hopper's products stand.
GRID = [Config(16 * warps, *rest, warps, stages) for warps, rest, stages in product((4, 8), ((64,), (128,)), (2, 3))]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--length", default="32K")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--ratio", default="0.01")
    parser.add_argument("--tiny", action="store_true", help="small, also in Triton's interpreter")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not interpreted():
        raise SystemExit("needs a GPU, or TRITON_INTERPRET=1 with --tiny")
    session = Session(torch.device("cuda" if torch.cuda.is_available() else "cpu"), Scale())
    length = 40 if given.tiny else tokens(given.length)
    heads = 1 if given.tiny else given.heads
    q, k = (session.drawn(1, heads, length, given.dim, dtype=torch.bfloat16) for _ in range(2))
    kept = keys_kept(given.ratio, length, length, device=session.device)
    most = int(kept.max())
    plan, now = Plan(length, most), triton_impl.CONFIG
    rows = []
    for config in [now] if given.tiny else [now, *(one for one in GRID if one != now)]:
        triton_impl.CONFIG = config
        calls = (
            lambda: cuts_of(q, k, kept, backend="triton"),
            lambda: triton_impl.ends(q, k, kept, None, most),
            lambda: triton_impl.floors(q, k, kept, None, plan),
        )
        try:
            whole, ends, floors = (float(np.median(streamed(c, session.device))) / 1e3 for c in calls)  # fmt: skip
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{config}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
            continue
        left = int((~triton_impl.ends(q, k, kept, None, most).told).sum())
        rows.append((whole, floors, ends - floors, left, config))
    for whole, floors, rest, left, config in sorted(rows, key=lambda row: row[0]):
        told = f"{whole:8.2f} ms  floors {floors:6.2f}  pass {rest:6.2f}  left {left}  {config}"
        print(told + ("  (now)" if config == now else ""))


if __name__ == "__main__":
    main()

"""Where the time of the kernel goes that scores lightning's mxfp4 keys: the same with a stage left out or done otherwise.

    python tools/stages.py [--length 1M] [--batch 8] [--tiny]

On a GPU: microseconds, shares of copy bandwidth, microseconds at first, before a GPU that reaches the limit of its power
slows down, and how far scores lie from the present kernel's, of the largest; what leaves a stage out scores something
else. A new form of a stage is tried here before it replaces the old one. On Hopper the kernel in Gluon
(topkit.kernels.score.hopper) is timed first; the stages are those of the kernel of other GPUs.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import triton
import triton.language as tl
from configs import tokens

from topkit.experiments.bench import formulas
from topkit.experiments.bench.codes import random_codes, random_queries, scores
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.kernels import score as scoring
from topkit.kernels.backend import has_gluon, interpreted
from topkit.kernels.score import fp4_fields, gated_sum, triton_impl
from topkit.kernels.score.layout import Config

KIND = "mxfp4"
NOW = triton_impl.CONFIGS[f"lightning {KIND}"]


@triton.jit
def without_scales(x, bits, LAYOUT: tl.constexpr):
    return fp4_fields.e2m1(x, None, None), tl.max(bits.to(tl.float32), 1)[:, None]


@triton.jit
def as_they_are(x, bits, LAYOUT: tl.constexpr):
    x = x.to(tl.float8e5, bitcast=True)
    return (x, x), tl.max(bits.to(tl.float32), 1)[:, None]


@triton.jit
def without_relu(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns, out_dtype=tl.float16)
    return tl.sum(tl.dot(products, gated_sum.digits(unit, gated_sum.COLUMNS)), 1) * tl.max(
        shared, 0
    )


@triton.jit
def in_16_columns(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns, out_dtype=tl.float16)
    units = gated_sum.digits(unit, 16)
    return tl.sum(tl.dot(products + tl.abs(products), units), 1) * tl.max(shared, 0)


@triton.jit
def added_up(x, columns, unit, shared, LAYOUT: tl.constexpr):
    return tl.sum(tl.dot(x, columns), 1) * tl.max(shared, 0)


@triton.jit
def in_float32(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns)
    return tl.sum((products + tl.abs(products)) * unit[None, :], 1) * tl.max(shared, 0)


@triton.jit
def rounded(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns)
    products = (products + tl.abs(products)).to(tl.float16)
    return tl.sum(tl.dot(products, gated_sum.digits(unit, gated_sum.COLUMNS)), 1) * tl.max(
        shared, 0
    )


# Float32 products take twice as many registers.
WIDE = (added_up, in_float32, rounded)
FORMS: dict[str, dict[str, Any]] = {
    "now": {},
    "no scales": {"fields": without_scales},
    "nothing looked up": {"fields": as_they_are},
    "no relu": {"gated_sum": without_relu},
    "products added up": {"gated_sum": added_up},
    "neither of both": {"fields": as_they_are, "gated_sum": added_up},
    "units in 16 columns": {"gated_sum": in_16_columns},
    "sums in float32": {"gated_sum": in_float32},
    "products rounded": {"gated_sum": rounded},
}
# Replays that end before a GPU has slowed down.
FIRST = 3
CONFIGS = {
    "tiles": (16, 25, 64, 128),
    "resident": (4, 6, None),
    "rows": (256,),
    "stages": (4,),
    "registers": (None, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--length", default="1M")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="small, also in Triton's interpreter")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not interpreted():
        raise SystemExit("needs a GPU, or TRITON_INTERPRET=1 with --tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = Scale.tiny() if given.tiny else replace(Scale(), batch=given.batch)
    session = Session(device, scale)
    length = scale.lengths[0] if given.tiny else tokens(given.length)
    kind = next(name for name, code in formulas.LIGHTNING.items() if code == KIND)
    moved = formulas.index(kind, scale.batch, length, scale.groups, scale.dim)
    sets = [
        random_codes(session, kind, scale.batch, length) for _ in range(session.sets(moved.counted))
    ]
    queries = random_queries(session, kind, scale.batch)
    moved += formulas.scores(scale.batch, length, 1)
    calls: list[Callable[[], Any]] = [
        lambda one=one: scores(one, queries, "triton") for one in sets
    ]
    want = calls[0]()
    own = {name: getattr(triton_impl, name) for name in ("fields", "gated_sum")}

    def tried(told: str) -> None:
        try:
            found = calls[0]()
            spans = session.timed(calls)
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{told}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
            return
        microseconds, first = float(np.median(spans)), float(np.median(spans[:FIRST]))
        share = moved.counted / microseconds / 1e3 / session.copy
        apart = float((found - want).abs().max() / want.abs().max())
        print(
            f"{microseconds:9.1f} us  {share:6.1%} of copy  {first:9.1f} us at first  {apart:8.1e} apart  {told}",
            flush=True,
        )

    if not given.tiny and has_gluon(device):
        tried("in Gluon")
        scoring.has_gluon = lambda device: False
    name = f"lightning {KIND}"
    for told, parts in FORMS.items():
        wide = parts.get("gated_sum") in WIDE
        triton_impl.CONFIGS[name] = replace(NOW, registers=128) if wide else NOW
        use(own | parts)
        tried(told)
    use(own)
    if not given.tiny:
        for field, values in CONFIGS.items():
            for value in values:
                config: Config = replace(NOW, **{field: value})
                triton_impl.CONFIGS[name] = config
                tried(str(config))


def use(parts: dict[str, Any]) -> None:
    """Has the kernel call these, and be compiled anew."""
    for name, part in parts.items():
        setattr(triton_impl, name, part)
    for name in ("scores_of", "score_rows", "_score"):
        setattr(triton_impl, name, triton.jit(getattr(triton_impl, name).fn))


if __name__ == "__main__":
    main()

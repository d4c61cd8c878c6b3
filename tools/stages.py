"""Where the time of the kernel goes that scores lightning's mxfp4 keys: the same with a stage left out or done otherwise.

    python tools/stages.py [--length 1M] [--batch 8] [--tiny]

On a GPU: microseconds, shares of copy bandwidth, and how far scores lie from the present kernel's, of the largest;
what leaves a stage out scores something else. A new form of a stage is tried here before it replaces the old one.
"""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
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
from topkit.kernels.backend import interpreted
from topkit.kernels.pdl import wait_then_launch
from topkit.kernels.score import fp4_fields, gated_sum, in_registers, triton_impl
from topkit.kernels.score.layout import Config
from topkit.kernels.score.queries import of_list

KIND = "mxfp4"
NAME = f"lightning {KIND}"
# Passed on through shared memory, and read into registers.
SHARED, OWN = triton_impl.CONFIGS[NAME], triton_impl.WRITTEN[NAME]

# The same of words, each of which is given four times.
LOOKED_UP = tl.constexpr(fp4_fields.LOOKED_UP.value.replace("$7", "$10").replace("$3", "$6"))


@triton.jit
def bytes_of(words, row, LAYOUT: tl.constexpr):
    at = words.to(tl.pointer_type(tl.uint8)) + row[:, None] * LAYOUT.blocks
    return tl.load(at + tl.arange(0, LAYOUT.blocks)[None, :])


@triton.jit
def by_neighbours(x, bits, LAYOUT: tl.constexpr):
    bits = bits.to(tl.int32)
    largest = tl.max(bits, 1)[:, None]
    lower, upper = fp4_fields.tables(bits, largest, LAYOUT)
    return fp4_fields.e2m1(x, lower, upper), fp4_fields.e8m0(largest)


@triton.jit
def among_zeros(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns, out_dtype=tl.float16)
    there = tl.arange(0, gated_sum.COLUMNS)[None, :] < 2
    units = tl.where(there, gated_sum.digits(unit, gated_sum.COLUMNS), 0.0)
    return tl.sum(tl.dot(products + tl.abs(products), units), 1) * tl.max(shared, 0)


@triton.jit
def without_scales(x, bits, LAYOUT: tl.constexpr):
    return fp4_fields.e2m1(x, None, None), bits.to(tl.float32)


@triton.jit
def as_they_are(x, bits, LAYOUT: tl.constexpr):
    x = x.to(tl.float8e5, bitcast=True)
    return (x, x), bits.to(tl.float32)


@triton.jit
def without_relu(x, columns, unit, shared, LAYOUT: tl.constexpr):
    products = tl.dot(x, columns, out_dtype=tl.float16)
    sums = tl.dot(products, gated_sum.digits(unit, gated_sum.COLUMNS))
    sums = tl.sum(tl.reshape(sums, [x.shape[0], gated_sum.COLUMNS // 2, 2]), 2)
    return gated_sum.any_of(sums) * tl.max(shared, 0)


@triton.jit
def tile_of(codes, scales, begin, LAYOUT: tl.constexpr, ROWS: tl.constexpr):
    """In words, of which a loop hands on each in a register."""
    WORDS: tl.constexpr = LAYOUT.bytes // 4
    row = tl.arange(0, ROWS)
    codes = (codes + begin * LAYOUT.bytes).to(tl.pointer_type(tl.int32))
    x = tl.load(codes + (row[:, None] * WORDS + tl.arange(0, WORDS)[None, :]))
    return x, fp4_fields.scales_of(scales + begin, row, LAYOUT)


@triton.jit
def fields_of(words, bits, LAYOUT: tl.constexpr):
    """Said to be pure: the compiler would look up twice what a loop hands on, in two orders."""
    ROWS: tl.constexpr = words.shape[0]
    x = tl.broadcast_to(words[:, :, None], [ROWS, LAYOUT.bytes // 4, 4])
    x = tl.reshape(x, [ROWS, LAYOUT.bytes])
    bits, largest = fp4_fields.of_word(bits, LAYOUT.blocks)
    lower, upper = fp4_fields.tables(bits, largest, LAYOUT)
    if in_registers.PLAIN:
        x = (x >> (8 * (tl.arange(0, LAYOUT.bytes) % 4))[None, :]) & 255
        low, high = fp4_fields.e2m1(x, lower, upper)
    else:
        low, high = tl.inline_asm_elementwise(
            LOOKED_UP, "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r", [x, lower, upper],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
        low, high = low.to(tl.float8e5, bitcast=True), high.to(tl.float8e5, bitcast=True)
    return (low, high), fp4_fields.e8m0(largest)


@triton.jit(do_not_specialize=["tiles"])
def ahead(
    source, first, stop, out, by, length, groups, tiles,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile is read once the one before has been looked up (2 stages), or before that (3)."""
    wait_then_launch()
    batch, group, query = tl.program_id(1) // groups, tl.program_id(1) % groups, tl.program_id(2)
    columns, by_column, codes, by_code, scales, by_scale, units, by_unit, _, _ = source
    made = of_list(columns, by_column, units, by_unit, batch, group, query, LAYOUT)
    unit, shared, columns = made
    batch, query, row = batch.to(tl.int64), query.to(tl.int64), tl.arange(0, ROWS)[:, None]
    codes += batch * by_code[0]
    scales += batch * by_scale[0]
    out += batch * by[0] + query * by[2]
    start, last = tl.program_id(0) * tiles, length - ROWS
    begin = tl.minimum(start * ROWS, last).to(tl.int64)
    x, bits = tile_of(codes, scales, begin, LAYOUT, ROWS)
    beyond = tl.minimum(start + tiles, tl.cdiv(length, ROWS))
    for tile in tl.range(start, beyond, num_stages=1):
        following = tl.minimum(tl.minimum(tile + 1, beyond - 1) * ROWS, last).to(tl.int64)
        if STAGES == 3:
            then = tile_of(codes, scales, following, LAYOUT, ROWS)
        x, scale = fields_of(x, bits, LAYOUT)
        if STAGES == 2:
            then = tile_of(codes, scales, following, LAYOUT, ROWS)
        x = fp4_fields.crossed(fp4_fields.side_by_side(x, LAYOUT))
        sums = gated_sum.gated_sum(x, columns[0], unit, shared, LAYOUT)[:, None]
        begin = tl.minimum(tile * ROWS, last).to(tl.int64)
        in_registers.stored(out + begin + row, fp4_fields.uncrossed(sums) * scale)
        x, bits = then


BEFORE = {"scales_of": bytes_of, "fields": by_neighbours, "gated_sum": among_zeros}
# How each is told, what it is made of, and its configurations: those of one kernel are compiled once.
FORMS: list[tuple[str, dict[str, Any], list[Config]]] = [
    ("before", BEFORE, [SHARED, replace(SHARED, tiles=16), replace(SHARED, tiles=16, resident=6)]),
    (
        "in shared memory",
        {},
        [
            *(replace(SHARED, tiles=t, resident=r) for t in (16, 64) for r in (5, 6)),
            replace(SHARED, tiles=16, rows=256),
            replace(SHARED, tiles=16, registers=80, resident=6),
        ],
    ),
    (
        "in registers",
        {},
        [replace(OWN, tiles=t, resident=r) for t in (16, 32, 64, 128) for r in (8, None)],
    ),
    ("a tile ahead", {"score_in_registers": ahead}, [replace(OWN, stages=s, tiles=t) for s in (2, 3) for t in (32, 64)]),
    ("no scales", {"fields": without_scales}, [OWN]),
    ("nothing looked up", {"fields": as_they_are}, [OWN]),
    ("no relu", {"gated_sum": without_relu}, [OWN]),
]  # fmt: skip
MODULES = (triton_impl, in_registers)


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
    own = {name: getattr(in_registers, name) for name in ("fields", "gated_sum", "scales_of")} | {
        "score_in_registers": in_registers.score_in_registers
    }

    def tried(told: str) -> None:
        try:
            found = calls[0]()
            microseconds = float(np.median(session.timed(calls)))
        except Exception as error:  # what does not fit, whatever the compiler or the driver raises
            print(f"{told}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
            return
        share = moved.counted / microseconds / 1e3 / session.copy
        apart = float((found - want).abs().max() / want.abs().max())
        print(
            f"{microseconds:9.1f} us  {share:6.1%} of copy  {apart:8.1e} apart  {told}", flush=True
        )

    for told, parts, configs in FORMS:
        use(own | parts)
        for config in configs[: 1 if given.tiny else None]:
            triton_impl.WRITTEN[NAME] = config
            tried(f"{told}, {brief(config)}")


def brief(config: Config) -> str:
    """In the order of its fields."""
    return "(" + ", ".join(str(x) for x in astuple(config)) + ")"


def use(parts: dict[str, Any]) -> None:
    """Has the kernels call these, and be compiled anew."""
    for module in MODULES:
        for name, part in parts.items():
            if hasattr(module, name):
                setattr(module, name, part)
        for name in ("codes_of", "scores_of", "score_rows", "_score", "score_in_registers"):
            if hasattr(module, name):
                setattr(module, name, anew(getattr(module, name)))


def anew(kernel: Any) -> Any:
    return triton.jit(
        kernel.fn, do_not_specialize=["tiles"] if "tiles" in kernel.arg_names else None
    )


if __name__ == "__main__":
    main()

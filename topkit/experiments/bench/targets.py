"""Performance targets: on one H200 (32 query and 8 KV heads, d 128, bf16 cache, k 2048), on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MADE_FOR = "H200"

Target = tuple[str, str, float]

# (bench, what) -> the column that is judged, at most or at least, the bound.
ON_H200: dict[tuple[str, str], Target] = {
    ("score", "fp8_e4m3, batch 8 x 128K"): ("copy_share", ">=", 0.85),
    ("score", "int8, batch 8 x 128K"): ("copy_share", ">=", 0.85),
    ("score", "int4, batch 8 x 128K"): ("copy_share", ">=", 0.85),
    ("score", "sign, batch 8 x 128K"): ("copy_share", ">=", 0.65),
    ("score", "lightning, batch 8 x 1M"): ("copy_share", ">=", 0.85),
    ("score", "lightning mxfp4, batch 8 x 1M"): ("copy_share", ">=", 0.80),
    **{
        ("select", f"{rows} x {length}, k 2048"): ("median", "<=", most)
        for rows, of_length in {
            1: {"128K": 16.0, "512K": 24.2, "1M": 38.5},
            8: {"128K": 16.0, "512K": 34.4, "1M": 45.0},
            64: {"128K": 30.0, "512K": 135.0, "1M": 160.0},
            512: {"128K": 190.0, "512K": 629.0, "1M": 1221.0},
        }.items()
        for length, most in of_length.items()
    },
    ("score-select", "sign, batch 8 x 1M"): ("median", "<=", 350.0),
    ("gather", "batch 8 x 128K"): ("copy_share", ">=", 0.75),
    ("step", "lightning, batch 8 x 128K"): ("speedup", ">=", 12.0),
    ("step", "sign, batch 8 x 128K"): ("speedup", ">=", 10.0),
    ("step", "lightning, batch 8 x 1M"): ("speedup", ">=", 18.0),
    ("step", "sign, batch 8 x 1M"): ("speedup", ">=", 20.0),
    **{
        ("step", f"{dtype}, batch 1 x {length}"): ("speedup", ">=", least)
        for dtype in ("sign", "lightning")
        for length, least in {"128K": 4.0, "1M": 10.0}.items()
    },
    ("generate", "batch 8 x 128K"): ("speedup", ">=", 4.0),
    # Forward and backward at most 1.8 and 2.4 times dense flash attention.
    **{
        ("topk-attention", f"{length}, d {dim}"): ("speedup", ">=", 1 / most)
        for length in ("16K", "32K")
        for dim, most in {128: 1.8, 64: 2.4}.items()
    },
    **{
        ("topk-attention", f"memory, {length}, d {dim}"): ("median", "<=", 3.0)
        for length in ("16K", "32K")
        for dim in (64, 128)
    },
    **{
        ("topk-attention", f"thresholds, 32K, d {dim}"): ("median", "<=", 8000.0)
        for dim in (64, 128)
    },
    # At most 1.3 times dense attention captured alike.
    **{
        ("decode", f"{spec}, a token of generate, batch 1 x 8K"): ("speedup", ">=", 1 / 1.3)
        for spec in (
            "sign()",
            "keep(sign(),sink=4,window=16)",
            "keep(refine(sign(),factor=4),sink=4)",
            "exact()",
            "quest()",
            'top_p(quantized(dtype="int4"))',
        )
    },
}
ANYWHERE: dict[tuple[str, str], Target] = {
    ("truth", "memory above the tensors"): ("median", "<=", 2.0),
    **{
        ("measure", f"{recipe}, 3 budgets x 32K"): ("ratio", "<=", 1.25)
        for recipe in ("quantized()", "sign()")
    },
    **{
        ("attach", f"a decoding step at 4,096 tokens, {recipe}, k 64"): ("ratio", "<=", 3.0)
        for recipe in ("quantized()", "sign()")
    },
    ("capture", "recording a pass over 4,096 tokens, 32 positions, all layers"): (
        "ratio",
        "<=",
        1.3,
    ),
    ("decode", "a step, sign(), 16K"): ("ratio", "<=", 1.0),
    ("decode", "a step, quantized(), 16K"): ("ratio", "<=", 1.0),
    ("decode", "a step, quantized(dtype='int4'), 16K"): ("ratio", "<=", 1.5),
    **{
        ("encode", f"{dtype} of {kind}, 8 heads x 32K"): ("ratio", "<=", 0.5)
        for dtype in ("int8", "int4", "int2", "fp8_e4m3")
        for kind in ("float32", "bfloat16")
    },
    ("noise", "32 heads x 16 queries x 32K"): ("ratio", "<=", 0.5),
    **{
        ("summary", f"{what}, 20,000,000 rows, memory"): ("median", "<=", 2.0)
        for what in ("measure", "report")
    },
    ("report", "30 cells, 128 haystacks, 8 tasks"): ("median", "<=", 10.0),
}
TARGETS = ON_H200 | ANYWHERE

_SHOWN = {"copy_share": "of copy", "speedup": "x", "ratio": "x", "median": ""}


def judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """The limit for a row of topkit's, whether the row is within it, and a note on another GPU."""
    named = (row["bench"], row["what"])
    target = TARGETS.get(named)
    if target is None or row["implementation"] != "topkit":
        return {}
    column, how, bound = target
    unit = row["unit"] if column == "median" else _SHOWN[column]
    value = row.get(column)
    limit: dict[str, Any] = {"limit": f"{how} {bound:g} {unit}"}
    if isinstance(value, (int, float)):
        limit["within"] = bool(value <= bound if how == "<=" else value >= bound)
    if named in ON_H200 and MADE_FOR not in str(row.get("device", "")):
        limit["note"] = "; ".join(filter(None, [row.get("note"), f"limit set for an {MADE_FOR}"]))
    return limit

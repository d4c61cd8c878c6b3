"""Writes small workload traces by flashinfer-bench itself, on a CPU: tests/capture/traces.

Run where flashinfer-bench 0.1.2 is installed: python tools/workload_traces.py FOLDER. It traces calls of definitions
that are named and shaped as its documents say, of few heads and tokens, and lets its runtime dump all inputs.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from flashinfer_bench import Definition, TraceSet, TracingConfig
from flashinfer_bench.tracing.runtime import TracingRuntime

INDEX = {
    "name": "dsa_topk_indexer_fp8_h4_d128_topk8_ps4",
    "op_type": "dsa_paged",
    "axes": {
        "num_index_heads": 4,
        "index_head_dim": 128,
        "page_size": 4,
        "one": 1,
        "bytes": 132,
        "topk": 8,
    },
    "inputs": {
        "q_index_fp8": (["batch", "num_index_heads", "index_head_dim"], "float8_e4m3fn"),
        "k_index_cache_fp8": (["num_pages", "page_size", "one", "bytes"], "int8"),
        "weights": (["batch", "num_index_heads"], "float32"),
        "seq_lens": (["batch"], "int32"),
        "block_table": (["batch", "max_pages"], "int32"),
    },
}
GQA = {
    "name": "gqa_paged_decode_h4_kv2_d16_ps1",
    "op_type": "gqa_paged",
    "axes": {"heads": 4, "kv_heads": 2, "dim": 16, "page_size": 1},
    "inputs": {
        "q": (["batch", "heads", "dim"], "bfloat16"),
        "k_cache": (["num_pages", "page_size", "kv_heads", "dim"], "bfloat16"),
        "v_cache": (["num_pages", "page_size", "kv_heads", "dim"], "bfloat16"),
        "kv_indptr": (["len_indptr"], "int32"),
        "kv_indices": (["num_kv_indices"], "int32"),
        "sm_scale": (None, "float32"),
    },
}
MLA = {
    "name": "mla_paged_decode_h4_ckv32_kpe16_ps1",
    "op_type": "mla_paged",
    "axes": {"heads": 4, "ckv": 32, "kpe": 16, "page_size": 1},
    "inputs": {
        "q_nope": (["batch", "heads", "ckv"], "bfloat16"),
        "q_pe": (["batch", "heads", "kpe"], "bfloat16"),
        "ckv_cache": (["num_pages", "page_size", "ckv"], "bfloat16"),
        "kpe_cache": (["num_pages", "page_size", "kpe"], "bfloat16"),
        "kv_indptr": (["len_indptr"], "int32"),
        "kv_indices": (["num_kv_indices"], "int32"),
        "sm_scale": (None, "float32"),
    },
}
RAGGED = {
    "name": "gqa_ragged_prefill_causal_h4_kv2_d16",
    "op_type": "gqa_ragged",
    "axes": {"heads": 4, "kv_heads": 2, "dim": 16},
    "inputs": {
        "q": (["total_q", "heads", "dim"], "bfloat16"),
        "k": (["total_kv", "kv_heads", "dim"], "bfloat16"),
        "v": (["total_kv", "kv_heads", "dim"], "bfloat16"),
        "qo_indptr": (["len_indptr"], "int32"),
        "kv_indptr": (["len_indptr"], "int32"),
        "sm_scale": (None, "float32"),
    },
}


def definition(said: dict[str, Any]) -> Definition:
    """As flashinfer-bench keeps it; nothing here computes, so that its reference is empty."""
    shapes = [axis for shape, _ in said["inputs"].values() for axis in shape or ()]
    axes = {axis: {"type": "var"} for axis in shapes}
    axes |= {axis: {"type": "const", "value": n} for axis, n in said["axes"].items()}
    inputs = {n: {"shape": s, "dtype": d} for n, (s, d) in said["inputs"].items()}
    first = next(iter(said["inputs"]))
    outputs = {"output": {**inputs[first], "dtype": "float32"}}
    return Definition(
        name=said["name"], op_type=said["op_type"], axes=axes, inputs=inputs, outputs=outputs,
        reference="def run(" + ", ".join(inputs) + "):\n    return None\n",
    )  # fmt: skip


def arguments(said: dict[str, Any], seed: int) -> list[Any]:
    make = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make).bfloat16()

    pages = torch.randperm(40, generator=make).int()
    indptr = torch.tensor([0, 17, 30], dtype=torch.int32)
    if said is INDEX:
        cache = torch.randint(0, 120, (12, 4, 128), generator=make, dtype=torch.uint8).flatten(1)
        scales = (torch.rand(12, 4, generator=make) + 0.5).view(torch.uint8)
        queries = drawn(2, 4, 128).to(torch.float8_e4m3fn)
        packed = torch.cat([cache, scales], 1).view(12, 4, 1, 132).view(torch.int8)
        table = torch.randperm(12, generator=make)[:10].view(2, 5).int()
        return [
            queries,
            packed,
            drawn(2, 4).float(),
            torch.tensor([18, 11], dtype=torch.int32),
            table,
        ]
    if said is GQA:
        return [drawn(2, 4, 16), drawn(40, 1, 2, 16), drawn(40, 1, 2, 16), indptr, pages[:30], 0.25]
    if said is MLA:
        caches = drawn(40, 1, 32), drawn(40, 1, 16)
        return [drawn(2, 4, 32), drawn(2, 4, 16), *caches, indptr, pages[:30], 0.125]
    asked = torch.tensor([0, 5, 18], dtype=torch.int32)
    return [drawn(18, 4, 16), drawn(30, 2, 16), drawn(30, 2, 16), asked, indptr, 0.25]


def main(folder: Path) -> None:
    every = [INDEX, GQA, MLA, RAGGED]
    traced = TraceSet(root=folder, definitions={one["name"]: definition(one) for one in every})
    config = TracingConfig(input_dump_policy="dump_all", filter_policy="keep_all")
    runtime = TracingRuntime(traced, config)
    runtime.start()
    for one in every:
        for seed in range(2 if one is INDEX else 1):
            runtime.collect(one["name"], tuple(arguments(one, seed)), {})
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""An evaluation of a model of a large shape with random weights: what it holds at its peak, and how long it takes.

    python tools/large_model.py [--length 131072] [--at-most 75] [--layers 32] [--hidden 4096] [--device cuda]

The shape is that of Llama 3.1 8B in bfloat16, its weights random, its tokenizer the bundled model's: what it
answers means nothing. 29 cells of one question, in batches of 29 rows. Prints the plan's estimate, the peak that
torch allocated, and the seconds; exit 1 where the peak is above --at-most GB. For a GPU that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import topkit
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.cells import parse_cells

SPECS = [
    *(f"degraded({p})" for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)),
    "degraded(0.8,fill='next')",
    "degraded(0.8,miss='boundary')",
    "degraded(0.8,per='layer')",
    *(f"quantized(dtype='{dtype}')" for dtype in ("int8", "fp8_e4m3", "int4", "int2")),
    "sign()",
    "refine(sign(),factor=4)",
    "keep(sign(),sink=2,window=4)",
    "shared(sign())",
    "shared(quantized(dtype='int8'))",
    "quest(page_size=4)",
    "moba(page_size=16)",
    "streaming_llm()",
    "random()",
    "top_p(quantized(dtype='int4'),mass=0.9)",
    "faiss_ivf(nlist=64)",
    "keep(faiss_ivf(nlist=64,center=True),sink=4)",
]
CELLS = [*parse_cells(SPECS, 2048), *parse_cells("exact()", [256, 512, 1024], dense=False)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=128 * 1024)
    parser.add_argument("--at-most", type=float, default=75, help="GB")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    gpu = given.device.startswith("cuda")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=given.hidden,
        intermediate_size=given.hidden * 7 // 2,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 128,
        num_key_value_heads=max(1, given.hidden // 512),
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=1 << 18,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    with torch.device(given.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as folder:
        plan = topkit.evaluate.plan(
            model,
            "niah-single:wording=code,questions=1",
            given.length,
            1,
            CELLS,
            out=folder,
            tokenizer=AutoTokenizer.from_pretrained(REFERENCE),
            batch_size=29,
        )
        begun = time.perf_counter()
        cells = topkit.run(plan).num_rows
        took = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else float("nan")
    parameters = sum(x.numel() for x in model.parameters()) / 1e9
    print(
        f"{torch.cuda.get_device_name() if gpu else 'CPU'}, torch {torch.__version__}: {parameters:.2f} B parameters, "
        f"{given.length} tokens, {cells} cells: planned {plan.memory / 1e9:.1f} GB, peak {peak:.1f} GB, {took:.0f} s"
    )
    sys.exit(peak > given.at_most)


if __name__ == "__main__":
    main()

"""Compares fp32 index keys with those of fewer bits: of tiny DSA models, and of the reference model's trained indexer.

    python tools/index_keys.py FOLDER [SEQUENCES]

The tiny models have random weights and an indexer of 16 heads of 128; tokens are random too. Writes FOLDER/keys.csv,
a row a capture and candidate, and prints its table; captures stand in FOLDER/captures until they are deleted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

import topkit
from topkit.cli.verdict import FLAT
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage
from topkit.experiments.measure.survey import write_csv
from topkit.experiments.train.lightning import export_weights

DTYPES = ("fp8", "fp8,scale=float", "mxfp4", "nvfp4", "int4")
# What may be lost of attention's mass where recall has no say.
MASS = {"mass": 0.002}
VOCABULARY, LAST = 512, 16
TINY: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, moe_intermediate_size=32,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    q_lora_rank=64, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16,
    n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
    index_n_heads=16, index_head_dim=128, max_position_embeddings=4096, initializer_range=0.2,
    pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
# What is captured: a name, its recipe without a dtype, its folder, and the keys that are kept.
Case = tuple[str, str, Path, int]


def tiny(kind: str, folder: Path, sequences: int, length: int = 1024, k: int = 64) -> Case:
    """A model of DeepSeek's sparse attention with random weights, over random tokens."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **TINY, index_topk=k)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    g = torch.Generator().manual_seed(1)
    drawn = torch.randint(2, VOCABULARY, (sequences, length), generator=g).tolist()
    at = range(length - LAST, length)
    passages = [Passage(ids, tuple(at)) for ids in drawn]
    out = folder / "captures" / kind
    capture_passages(model, passages, origin={"model": kind}, out=out, hidden=True)
    weights = export_weights(model, folder / "captures")
    return f"tiny {kind}, random weights", f"lightning:weights={weights}", out, k


def trained(task: str, folder: Path, sequences: int, k: int) -> Case:
    """The reference model with the indexer that was trained for it."""
    out = folder / "captures" / f"{task.partition(':')[0]}"
    how: dict[str, Any] = dict(task=task, length=2048, samples=sequences, hidden=True)
    topkit.capture("reference", **how, out=out)
    return f"reference, {task}", "lightning:weights=reference", out, k


def rows(case: Case) -> Iterator[dict[str, object]]:
    """What each candidate loses of the lists of fp32 keys."""
    name, recipe, capture, k = case
    for dtype in DTYPES:
        said = topkit.compare(capture, baseline=recipe, candidate=f"{recipe},dtype={dtype}", k=k)
        x = said.summary()
        yield {
            "capture": name,
            "index keys": dtype.replace(",", ", "),
            "k": k,
            "sequences": x["sequences"],
            "rows": x["rows"],
            "verdict": x["verdict"],
            "by mass alone": ""
            if _by_chance(x["mass"])
            else replace(said, margins=MASS).verdict.word,
            "to decide": x["sequences_to_decide"],
            "recall": x["recall"]["mean"],
            "low": x["recall"]["low"],
            "high": x["recall"]["high"],
            "1st percentile": x["recall"]["p1"],
            "worst row": x["recall"]["worst"],
            "mass lost": x["mass"]["lost"],
            "mass of the baseline": x["mass"]["baseline"],
            "mass by chance": x["mass"]["chance"],
            "rows changed": x["rows_changed"],
            "by ties": x["changed_by_ties"],
        }


def _by_chance(mass: dict[str, float]) -> bool:
    """Whether the baseline's lists hold hardly more than as many keys at random: what is lost then says nothing."""
    return mass["baseline"] - mass["chance"] < FLAT * (1 - mass["chance"])


def printed(every: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown, with the numbers that a reader looks for."""
    shown = (
        "capture",
        "index keys",
        "recall",
        "1st percentile",
        "mass lost",
        "verdict",
        "by mass alone",
    )
    yield f"| {' | '.join(shown)} |"
    yield f"|{' --- |' * len(shown)}"
    for row in every:
        cells = {name: row[name] for name in shown}
        cells["recall"] = f"{row['recall']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        cells["1st percentile"] = f"{row['1st percentile']:.3f}"
        cells["mass lost"] = f"{row['mass lost']:.5f}"
        yield f"| {' | '.join(map(str, cells.values()))} |"


def main(folder: Path, sequences: int = 16) -> None:
    cases = [tiny(kind, folder, sequences) for kind in ("deepseek_v32", "glm_moe_dsa")]
    cases += [trained("niah-multikey:wording=trained", folder, sequences, 64)]
    cases += [trained("books", folder, sequences, 64)]
    every = [row for case in cases for row in rows(case)]
    write_csv(every, folder / "keys.csv")
    print("\n".join(printed(every)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))

"""Files of learned or calibrated numbers that some recipes read, drawn: the same for public code."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from public.case import Case

# Widths of hidden states, of MLA's query latent, of what is rotated; of an index head, and how many there are.
HIDDEN, LATENT, ROPE, INDEX, INDEX_HEADS = 24, 12, 8, 16, 16
# Widths of the layers of a hash's MLP, behind its input.
HASH = (10, 10, 32)


def hashes(path: Path, rng: np.random.Generator, case: Case) -> None:
    """HashAttention's MLPs of layer 0, one of queries and one of keys for each query head."""
    tensors, widths = {}, (case.width, *HASH)
    for side in ("query", "key"):
        for n, (before, after) in enumerate(pairwise(widths)):
            tensors[f"0.{side}.{n}.weight"] = rng.normal(size=(case.heads[0], after, before))
            tensors[f"0.{side}.{n}.bias"] = rng.normal(size=(case.heads[0], after))
    _write(path, tensors, activation="silu")


def channels(path: Path, rng: np.random.Generator, case: Case) -> None:
    """An order of the channels of layer 0 for each KV head."""
    orders = np.stack([rng.permutation(case.width) for _ in range(case.heads[1])])
    save_file({"0.channels": torch.from_numpy(orders)}, path, {"method": "double_sparsity"})


def indexer(path: Path, rng: np.random.Generator, case: Case) -> None:
    """The projections of DeepSeek's indexer in layer 0."""
    tensors = {
        "0.wq": rng.normal(size=(INDEX_HEADS * INDEX, LATENT)),
        "0.wk": rng.normal(size=(INDEX, HIDDEN)),
        "0.norm": 1 + rng.normal(size=INDEX) / 4,
        "0.norm_bias": rng.normal(size=INDEX) / 4,
        "0.gates": rng.normal(size=(INDEX_HEADS, HIDDEN)),
    }
    said = {"heads": str(INDEX_HEADS), "rope": "half", "rope_at": "first", "reads": "latent"}
    _write(path, tensors, **said)


def _write(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> None:
    drawn = {name: torch.from_numpy(x.astype(np.float32)) for name, x in tensors.items()}
    save_file(drawn, path, metadata)

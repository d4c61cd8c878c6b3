"""A decoding step of the bundled model through an indexer, against the model's own attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.experiments.bench.rows import OURS, Row, ratios
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.bench.timing import clocked
from topkit.experiments.decode.attach import attach
from topkit.experiments.model.load import load

SPECS = ("quantized()", "sign()")
KEPT = 64
# Warm-up steps, not timed: the index is built, the cache gets room.
WARM = 2
DENSE = "full attention (SDPA)"


def attach_cases(session: Session) -> Iterator[Case]:
    """Batch 1, not observed; a turn is the median of some steps behind a prompt of its own."""
    s = session.scale
    for spec in SPECS:
        what = f"a decoding step at {s.context:,} tokens, {spec}, k {KEPT}"

        def measure(spec: str = spec, what: str = what) -> Iterator[Row]:
            model, _ = load("reference")
            ids = tokens(s.context)
            ours, dense = [], []
            for _ in range(s.repeats):
                ours.append(_step(session, model, ids, spec))
                dense.append(_step(session, model, ids, None))
            compared = {"against": DENSE, **ratios(ours, dense)}
            shape: Row = {"batch": 1, "length": s.context, "k": KEPT}
            yield session.row("attach", what, OURS, ours, unit="s", compared=compared, **shape)

        yield what, measure


def tokens(count: int) -> Tensor:
    """Tokens [1, count] at random, without those that are special."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 4000, (1, count), generator=generator)


@torch.no_grad()
def _step(session: Session, model: Any, ids: Tensor, spec: str | None) -> float:
    """Seconds."""
    with nullcontext() if spec is None else attach(model, spec, k=KEPT):
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values

        def step() -> None:
            model(ids[:, :1], past_key_values=cache, use_cache=True)

        spans = clocked([step], WARM + session.scale.steps, session.device)[WARM:]
    return float(np.median(spans)) / 1e6

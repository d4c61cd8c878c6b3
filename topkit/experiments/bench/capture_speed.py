"""Recording what attention saw in one pass of the bundled model, against a plain pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from topkit.experiments.bench.attach_speed import tokens
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.capture.tensors import LayerTensors
from topkit.experiments.model.load import load
from topkit.experiments.model.record import record

POSITIONS = 32


def capture_cases(session: Session) -> Iterator[Case]:
    """All layers, the queries of the last positions."""
    context = session.scale.context
    what = f"recording a pass over {context:,} tokens, {POSITIONS} positions, all layers"

    def measure() -> Iterator[Row]:
        model, _ = load("reference")
        ids, last = tokens(context), torch.arange(context - POSITIONS, context)

        def plain() -> None:
            with torch.no_grad():
                model.base_model(input_ids=ids, use_cache=False)

        def recorded() -> object:
            seen = record(model, ids, last)
            return [LayerTensors.of(one, 0, layer, last) for layer, one in seen.items()]

        shape: Row = {"batch": 1, "length": context}
        yield from session.in_turns("capture", {what: recorded}, "a plain pass", plain, **shape)

    yield what, measure

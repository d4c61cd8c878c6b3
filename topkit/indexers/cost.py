# pyright: strict
"""What scoring every key costs at a step of fixed shapes."""

from __future__ import annotations

from typing import Any

from topkit.indexers.base import Index, Step


def cost_at(index: Index, step: Step) -> dict[str, Any]:
    """The costs of a Selection that scored every key of the index; none where they are not counted."""
    if not step.counted or step.stop is None:
        return {}
    seen = step.seen(step.slots(index.length), step.stop.shape[-1], step.stop.device)
    return {"keys_scored": seen, "bytes_read": seen * index.bytes_per_key(step)}

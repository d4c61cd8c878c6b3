"""A model: loaded, its attention switched, its weights hashed. Imports no other room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.experiments.model.load import load
from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.model.attention import switched_attention
    from topkit.experiments.model.compatibility import unserved
    from topkit.experiments.model.digests import weights_digest
    from topkit.experiments.model.record import record

__getattr__, __dir__ = lazily(
    __name__,
    {
        "record": "topkit.experiments.model.record",
        "switched_attention": "topkit.experiments.model.attention",
        "unserved": "topkit.experiments.model.compatibility",
        "weights_digest": "topkit.experiments.model.digests",
    },
)

__all__ = ["load", "record", "switched_attention", "unserved", "weights_digest"]

"""A model that decodes through an indexer. Imports runs and what is below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.decode.attach import Attachment, attach

# Late, because the driver of captures, in this room too, needs no transformers.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Attachment": "topkit.experiments.decode.attach",
        "attach": "topkit.experiments.decode.attach",
    },
)

__all__ = ["Attachment", "attach"]

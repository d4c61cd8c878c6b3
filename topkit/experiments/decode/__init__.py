"""A model that decodes through an indexer. Imports runs and what is below."""

from __future__ import annotations

from topkit.experiments.decode.attach import Attachment, attach

__all__ = ["Attachment", "attach"]

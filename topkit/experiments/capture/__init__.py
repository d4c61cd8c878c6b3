"""Tensors as attention saw them, from a model or from files, on disk. Imports runs and what is below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.capture.capture import Capture
    from topkit.experiments.capture.from_model import capture_model, capture_passages
    from topkit.experiments.capture.tensors import LayerTensors

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Capture": "topkit.experiments.capture.capture",
        "LayerTensors": "topkit.experiments.capture.tensors",
        "capture_model": "topkit.experiments.capture.from_model",
        "capture_passages": "topkit.experiments.capture.from_model",
    },
)

__all__ = ["Capture", "LayerTensors", "capture_model", "capture_passages"]

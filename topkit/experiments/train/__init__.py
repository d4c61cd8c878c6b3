"""The reference model, lightning indexers and projected's maps, trained. Imports every room but bench."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.train.lightning import export_weights
    from topkit.experiments.train.projected import train_projected
    from topkit.experiments.train.scores import score_model
    from topkit.experiments.train.stages import train_weights
    from topkit.experiments.train.train import train_reference

__getattr__, __dir__ = lazily(
    __name__,
    {
        "train_reference": "topkit.experiments.train.train",
        "train_weights": "topkit.experiments.train.stages",
        "export_weights": "topkit.experiments.train.lightning",
        "train_projected": "topkit.experiments.train.projected",
        "score_model": "topkit.experiments.train.scores",
    },
)

__all__ = [
    "export_weights",
    "score_model",
    "train_projected",
    "train_reference",
    "train_weights",
]

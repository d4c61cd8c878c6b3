"""The reference model, and lightning indexers, trained. Imports every room but bench."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.train.lightning import export_weights, train_weights
    from topkit.experiments.train.scores import score_model
    from topkit.experiments.train.train import train_reference

__getattr__, __dir__ = lazily(
    __name__,
    {
        "train_reference": "topkit.experiments.train.train",
        "train_weights": "topkit.experiments.train.lightning",
        "export_weights": "topkit.experiments.train.lightning",
        "score_model": "topkit.experiments.train.scores",
    },
)

__all__ = ["export_weights", "score_model", "train_reference", "train_weights"]

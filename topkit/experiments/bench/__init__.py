"""Speeds beside plain torch and other libraries. Imports every room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.bench.cpu import run_benches
    from topkit.experiments.bench.run import run_speeds

__getattr__, __dir__ = lazily(
    __name__,
    {
        "run_benches": "topkit.experiments.bench.cpu",
        "run_speeds": "topkit.experiments.bench.run",
    },
)

__all__ = ["run_benches", "run_speeds"]

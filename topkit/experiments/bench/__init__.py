"""Speeds beside plain torch and other libraries: one table, a file a benchmark. Imports every room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit.experiments.bench.run import run_benches

__getattr__, __dir__ = lazily(
    __name__,
    {"run_benches": "topkit.experiments.bench.run"},
)

__all__ = ["run_benches"]

"""Captures and indexers to fidelity rows. Imports capture, decode and what is below."""

from __future__ import annotations

from topkit.experiments.measure.measure import Measured, measure

__all__ = ["Measured", "measure"]

"""Prompts and cells to accuracy rows, and the fidelity observed meanwhile. Imports capture, decode and what is below."""

from __future__ import annotations

from topkit.experiments.evaluate.evaluate import evaluate

__all__ = ["evaluate"]

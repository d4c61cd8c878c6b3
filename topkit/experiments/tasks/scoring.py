"""Scores of what was said, by its text."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence


def ruler_score(prediction: str, references: Sequence[str]) -> float:
    """The share of references that stand in the prediction, whatever the case.

    Source: RULER (arXiv 2404.06654), its all-match score.
    """
    return sum(_within(prediction, references)) / len(references)


def ruler_part(prediction: str, references: Sequence[str]) -> float:
    """1 where any of the references stands in the prediction, whatever the case, else 0.

    Source: RULER (arXiv 2404.06654), its part-match score, of questions with several right answers.
    """
    return float(any(_within(prediction, references)))


def _within(prediction: str, references: Sequence[str]) -> list[bool]:
    return [reference.strip().lower() in prediction.lower() for reference in references]

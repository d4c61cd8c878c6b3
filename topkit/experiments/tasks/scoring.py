"""Scores of what was said, by its text: a rule a format."""

# pyright: strict
from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from topkit.errors import InputError
from topkit.grammar import nearest

# From what was said and the references of a question to a score in 0..1.
Rule = Callable[[str, Sequence[str]], float]
_CONTROL = re.compile(r"[\x00-\x1f]")
_CHOSEN = (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])")


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


def contains(prediction: str, references: Sequence[str]) -> float:
    """1 where any of the references stands in the prediction to the letter, else 0.

    Source: NoLiMa (arXiv 2502.05167), its metric `contains`.
    """
    return float(any(reference in prediction for reference in references))


def choice(prediction: str, references: Sequence[str]) -> float:
    """1 where the letter that the prediction names as the correct answer is a reference, else 0.

    Source: LongBench v2 (arXiv 2412.15204): the letter in brackets first, then the bare one.
    """
    plain = prediction.replace("*", "")
    chosen = next((match[1] for rule in _CHOSEN if (match := re.search(rule, plain))), None)
    return float(chosen in references)


def exact(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction is one of the references, else 0; both as `normalised`.

    Source: SQuAD's exact match (arXiv 1606.05250), as HELMET judges labels.
    """
    return float(normalised(prediction) in map(normalised, references))


def substring(prediction: str, references: Sequence[str]) -> float:
    """1 where any of the references stands in the prediction, else 0; both as `normalised`.

    Source: Lost in the Middle (arXiv 2307.03172), and HELMET's substring match.
    """
    said = normalised(prediction)
    return float(any(normalised(reference) in said for reference in references))


def normalised(text: str) -> str:
    """A text in lower case, without punctuation and articles, its blanks made one (SQuAD's way)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


# By the name that a task and a row of accuracy give. A module of tasks may add its own.
RULES: dict[str, Rule] = {
    "all": ruler_score,
    "any": ruler_part,
    "contains": contains,
    "choice": choice,
    "exact": exact,
    "substring": substring,
}


def rule_of(name: str) -> Rule:
    """The rule of a name. Raises: InputError for an unknown one."""
    if name not in RULES:
        raise InputError(f"no rule of scoring {name!r}; {nearest(name, RULES)}")
    return RULES[name]


def _within(prediction: str, references: Sequence[str]) -> list[bool]:
    """Which references stand in the prediction, its control characters read as line ends."""
    said = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in said for reference in references]

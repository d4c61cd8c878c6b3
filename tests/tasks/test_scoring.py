"""Scores against the formats' own rules, written independently."""

from __future__ import annotations

import random
import re

import pytest

from topkit.errors import InputError
from topkit.experiments.tasks import RULES, rule_of

LETTERS = ["a", "B", "c", "Å", "ß", " ", "\n", "\t", "\x07", "1", "2", ".", ",", "the "]


def pairs(count: int, seed: int = 0):
    """What was said and references: parts of it, parts of it in another case, and others."""
    rng = random.Random(seed)
    for _ in range(count):
        said = "".join(rng.choices(LETTERS, k=rng.randrange(30)))
        references = []
        for _ in range(rng.randrange(1, 5)):
            begin = rng.randrange(len(said) + 1)
            part = said[begin : begin + rng.randrange(6)]
            if rng.random() < 0.4:
                part = "".join(rng.choices(LETTERS, k=rng.randrange(1, 4)))
            references.append(rng.choice([str, str.upper, str.lower])(part))
        yield said, references


def rulers(said: str, references: list[str]) -> list[int]:
    """RULER's: its clean-up of a prediction, then each reference for itself."""
    said = "".join("\n" if ord(letter) < 32 else letter for letter in said.strip()).strip()
    return [said.lower().find(reference.lower()) >= 0 for reference in references]


def test_all_and_any_are_rulers_on_3000_pairs() -> None:
    seen = set()
    for said, references in pairs(3000):
        hits = rulers(said, references)
        score = RULES["all"](said, references)
        assert score == pytest.approx(sum(hits) / len(hits))
        assert RULES["any"](said, references) == max(hits)
        seen.add((0 < score < 1, score == 0, score == 1))
    assert len(seen) == 3  # none, some and all of them


def test_contains_is_to_the_letter() -> None:
    for said, references in pairs(500, 1):
        found = [said.find(reference) >= 0 for reference in references]
        assert RULES["contains"](said, references) == any(found)


def squads(text: str) -> str:
    """Words without punctuation and articles, one blank between them."""
    bare = re.sub(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]""", "", text.lower())
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", bare).split())


def test_exact_and_substring_are_squads() -> None:
    for said, references in pairs(1000, 2):
        plain = [squads(reference) for reference in references]
        assert RULES["exact"](said, references) == (squads(said) in plain)
        assert RULES["substring"](said, references) == any(p in squads(said) for p in plain)
    assert RULES["exact"]("The Eiffel-Tower.", ["eiffeltower"]) == 1
    assert RULES["substring"]("It is in the\nUnited  States!", ["The United States"]) == 1


CHOSEN = [
    ("The correct answer is (B).", "B", 1),
    ("**The correct answer is (B)**", "B", 1),
    ("The correct answer is B", "B", 1),
    ("The correct answer is **C**", "C", 1),
    ("The correct answer is A. No: The correct answer is (D)", "D", 1),  # brackets go first
    ("The correct answer is (B)", "A", 0),
    ("(B)", "B", 0),
    ("the correct answer is (B)", "B", 0),
    ("The correct answer is (E)", "E", 0),
    ("", "A", 0),
]


@pytest.mark.parametrize(("said", "right", "score"), CHOSEN)
def test_choice_is_the_letter_that_is_named(said: str, right: str, score: float) -> None:
    assert RULES["choice"](said, [right]) == score


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="no rule of scoring 'contain'; did you mean 'contains'"):
        rule_of("contain")

"""Scores of an answer's text that formats of files have beside the rules of all tasks."""

# pyright: strict
from __future__ import annotations

import math
import re
from collections.abc import Sequence

from topkit.experiments.tasks.scoring import Rule, exact, substring

# HELMET's cut of a ranking.
RANKED = 10


def first_line(said: str, references: Sequence[str]) -> float:
    """As `substring`, of the first line alone. Source: lost in the middle (arXiv 2307.03172)."""
    return substring(said.split("\n")[0].strip(), references)


def line(said: str, references: Sequence[str]) -> float:
    """1 where the first line is the label, "label:" before it aside, else 0.

    Source: HELMET's ICL (arXiv 2410.02694), whose prompt ends with "label:".
    """
    first = said.split("\n")[0].strip()
    return exact(re.sub("^label:", "", first, flags=re.IGNORECASE), references)


def label(said: str, references: Sequence[str]) -> float:
    """As `line`, of what stands behind the first "label:" where there is one. Source: HELMET's ICL in chat."""
    behind = re.search("label:(.*)", said, flags=re.IGNORECASE)
    return line(behind[1] if behind else said, references)


def same(said: str, references: Sequence[str]) -> float:
    """1 where what was said is a reference, blanks around it aside. Source: MQAR (arXiv 2312.04927)."""
    return float(any(said.strip() == reference.strip() for reference in references))


def ndcg(said: str, references: Sequence[str]) -> float:
    """NDCG@10 of a ranking "ID3 > ID1"; references are "ID relevance".

    Source: HELMET (arXiv 2410.02694), by trec_eval's definition: gains as they are, log2 of the place + 1.
    """
    relevance = {name: int(grade) for name, grade in (r.rsplit(" ", 1) for r in references)}
    gains = [relevance.get(name, 0) for name in _ranking(said)]
    best = _discounted(sorted(relevance.values(), reverse=True))
    return _discounted(gains) / best if best else 0.0


def _ranking(said: str) -> list[str]:
    """The longest run of numbers joined by ">", each number once."""
    plain = re.sub(r"[\[\]:]", "", said).lower().replace("id", "")
    runs = [match[0] for match in re.finditer(r"\d+(?:\s*>\s*\d+)*", plain)]
    longest = max(runs, key=len, default="")
    return list(dict.fromkeys(part.strip() for part in longest.split(">") if part.strip()))


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:RANKED]))


# By name, beside those of scoring.RULES.
OF_FORMATS: dict[str, Rule] = {
    "first-line": first_line,
    "line": line,
    "label": label,
    "same": same,
    "ndcg@10": ndcg,
}

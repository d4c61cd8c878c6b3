"""Where NoLiMa puts a needle and its distractor: between lines, at shares of a window's tokens.

NoLiMa, arXiv 2502.05167; the rule for distractors is that of the authors' code (adobe-research/NoLiMa,
data/book_haystack.py).
"""

from __future__ import annotations

from typing import Any

from topkit.experiments.tasks.files.needle_sets import Needle

# Of a window: no distractor stands so near to its needle or to an end of the window.
FREE = 0.2
# Tokens of a window that is too short for a distractor to be put at random.
SHORT = 500


def distractor_share(depth: float, drawn: float) -> float:
    """A distractor's share of the window, of a number drawn from 0 to 1: alike everywhere that is not too near.

    It lies in [0.2, depth - 0.2] or in [depth + 0.2, 0.8].
    """
    before, after = max(0.0, depth - 2 * FREE), max(0.0, 1 - (depth + 2 * FREE))
    share = drawn * (before + after)
    return share + FREE if share <= before else depth + FREE + (share - before)


def placed(
    needle: Needle, ids: list[int], room: int, depths: tuple[float, float], tokenizer: Any
) -> str:
    """A window of so many tokens with a needle between two of its lines, the first behind its depth.

    Its distractor stands in the same manner, with an empty line behind it; depths: of both. In a window of less than
    500 tokens it stands at .7 where the needle's depth is below .6, at .6 where that is above .75, and at .5 between.
    """
    depth, away = depths
    room = min(room, len(ids))
    wanted = round(room * depth)
    place = _line_end(ids, min(wanted, len(ids) - 1), tokenizer) if ids else 0
    first = max(0, min(place - wanted, len(ids) - room))
    behind = place + 1 if place else 0
    before = _to_line_end(tokenizer, ids[first : place + 1]) if place else ""
    after = tokenizer.decode(ids[behind : first + room])
    if needle.distractor:
        if room < SHORT:
            away = 0.7 if depth < 0.6 else 0.6 if depth > 0.75 else 0.5
        far = _line_end(ids[: first + room], first + round(room * away), tokenizer)
        if far < place:
            at = len(_to_line_end(tokenizer, ids[first : far + 1]))
            before = f"{before[:at]} {needle.distractor}\n{before[at:]}"
        else:
            at = len(_to_line_end(tokenizer, ids[behind : far + 1]))
            after = f"{after[:at]} {needle.distractor}\n{after[at:]}"
    return f"{before} {needle.fact}\n{after}"


def _line_end(ids: list[int], place: int, tokenizer: Any) -> int:
    """The first token from a place on that ends a line; the last one, if none does."""
    while place and place + 1 < len(ids) and "\n" not in tokenizer.decode([ids[place]]):
        place += 1
    return place


def _to_line_end(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens up to the last of its lines' ends."""
    text = tokenizer.decode(ids)
    return text[: max(text.rfind("\n"), 0)]

"""A verdict in one sentence."""

# pyright: strict
from __future__ import annotations

from collections.abc import Mapping

from topkit.experiments.compare.interval import FEWEST, most_of
from topkit.experiments.compare.verdict import SAFE, UNSAFE, Loss, Verdict, tail_of


def sentence(verdict: Verdict, losses: Mapping[str, Loss]) -> str:
    """The word, the numbers that decide it, and where none do how many sequences would."""
    count, tail = _count(losses), tail_of(losses)
    shown = losses
    if verdict.word == UNSAFE:
        shown = {name: loss for name, loss in losses.items() if loss.unsafe(tail)}
    lost = ", ".join(f"of {n} {_lost(verdict.word, x, tail)}" for n, x in shown.items())
    end = ""
    if verdict.word == SAFE:
        over = max(sum(x > loss.margin for x in loss.mean.losses) for loss in losses.values())
        end = f"; at most {most_of(over, count):.0%} of sequences lose more than a margin"
    elif verdict.word != UNSAFE:
        end = f"; {_enough(verdict, losses)}"
    return f"{verdict.word} over {count} sequence{'s' * (count != 1)}: mean loss {lost}{end}"


def _count(losses: Mapping[str, Loss]) -> int:
    return next(iter(losses.values())).mean.sequences


def _lost(word: str, loss: Loss, tail: float) -> str:
    if word == SAFE:
        return f"at most {loss.mean.high(tail):.2g} (margin {loss.margin:g})"
    own = "" if loss.rerun is None else f" beyond the baseline's own {loss.itself(tail):.2g}"
    if word == UNSAFE:
        return f"at least {loss.mean.low(tail):.2g} (margin {loss.margin:g}{own})"
    return f"{loss.mean.value:.2g} (margin {loss.margin:g})"


def _enough(verdict: Verdict, losses: Mapping[str, Loss]) -> str:
    if verdict.sequences is not None:
        more = verdict.sequences - _count(losses)
        fewest = f"; none is safe below {FEWEST}" if _count(losses) < FEWEST else ""
        return f"{verdict.sequences:,} sequences like these would decide, {more:,} more{fewest}"
    if any(loss.rerun and loss.mean.value > loss.margin for loss in losses.values()):
        return "from run to run, if the second dump is of the same tokens, the baseline changes as much: no number of sequences would decide"
    return "that is at a margin: no number of sequences like these would decide"

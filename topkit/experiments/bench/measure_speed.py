"""`topkit.measure` beside torch: its scores and Top-k alone, and a script that computes its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import topkit
from topkit.experiments.bench import by_hand
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session
from topkit.experiments.capture.capture import Capture
from topkit.indexers.budget import parse_budget

RECIPES = ("quantized()", "sign()", "exact()", "random()")
BY_HAND = {"quantized()": by_hand.int8_scores, "sign()": by_hand.sign_scores}
# Degrees of freedom of Student's t, from which keys are drawn: real keys have heavy tails.
FREEDOM = 4


@dataclass(frozen=True)
class Tensors:
    """One layer in float32: queries [1, Hq, Tq, D] of the newest tokens, keys and values [1, Hk, T, D]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


def measure_cases(session: Session) -> Iterator[Case]:
    """All metrics at several budgets: against torch's Top-k at as many, and against a script."""
    s = session.scale
    size = length_of(s.captured)
    fewer = s.budgets[1:4]

    def beside_topk() -> Iterator[Row]:
        tensors = drawn(session)
        ks = [parse_budget(budget).at(s.captured) for budget in s.budgets]
        ours = {
            f"{recipe}, {len(ks)} budgets x {size}": call
            for recipe, call in _measured(tensors, RECIPES, s.budgets).items()
        }
        plain = lambda: topk_alone(tensors, ks)  # noqa: E731
        shape: Row = {"dtype": "float32", "batch": 1, "length": s.captured}
        yield from session.in_turns("measure", ours, "matmul, a topk a budget", plain, **shape)

    def beside_script() -> Iterator[Row]:
        tensors = drawn(session)
        ks = [parse_budget(budget).at(s.captured) for budget in fewer]
        for recipe, call in _measured(tensors, list(BY_HAND), fewer).items():
            what = {f"{recipe}, {len(ks)} budgets x {size}": call}
            script = lambda scores=BY_HAND[recipe]: by_hand.measured(  # noqa: E731
                tensors.queries, tensors.keys, tensors.values, scores, ks
            )
            shape: Row = {"dtype": "float32", "batch": 1, "length": s.captured}
            yield from session.in_turns("measure", what, "a script of torch", script, **shape)

    yield f"{len(s.budgets)} budgets x {size}", beside_topk
    yield f"{len(fewer)} budgets x {size}", beside_script


def drawn(session: Session) -> Tensors:
    """Normal queries and values, heavy-tailed keys."""
    s = session.scale

    def normal(heads: int, count: int) -> Tensor:
        return session.drawn(1, heads, count, s.dim, dtype=torch.float32)

    spread = torch.stack([normal(s.groups, s.captured).square() for _ in range(FREEDOM)]).mean(0)
    keys = normal(s.groups, s.captured) / spread.sqrt()
    return Tensors(normal(s.heads, s.captured_queries), keys, normal(s.groups, s.captured))


def _measured(
    tensors: Tensors, recipes: Sequence[str], budgets: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """A call of `measure` a recipe, with the index built anew and every query at once."""
    capture = Capture.from_tensors(tensors.queries, tensors.keys, tensors.values)
    return {
        recipe: lambda recipe=recipe: topkit.measure(capture, recipe, list(budgets))
        for recipe in recipes
    }


def topk_alone(tensors: Tensors, ks: Sequence[int]) -> list[Tensor]:
    """The slots of the best keys of every head at each budget, and no metric of them."""
    grouped = tensors.queries.unflatten(1, (tensors.keys.shape[1], -1)).flatten(2, 3)
    scores = grouped @ tensors.keys.mT
    return [scores.topk(k).indices for k in ks]

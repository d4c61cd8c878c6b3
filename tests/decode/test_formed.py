"""What is no selection is refused by the recipe's name, whichever driver reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import topkit
from tiny import READS_REFERENCE, tiny
from topkit.errors import InputError
from topkit.experiments.model.load import load
from topkit.indexers import Rest, Selection, Traits
from topkit.indexers.stateless import Stateless

HEADS, WIDTH = 4, 8
NAN = float("nan")


def filled(shape: Any, value: float) -> torch.Tensor:
    return torch.full(tuple(shape), value)


def rested(one: Selection, values: float = 0.0, **parts: float) -> Selection:
    """With one pseudo-key a query."""
    shape = (*one.indices.shape[:3], 1)
    parts_of: Any = {name: filled(shape, x) for name, x in parts.items()}
    return replace(one, rest=Rest(filled((*shape, WIDTH), values), **parts_of))


FORMS: dict[str, tuple[Any, str]] = {
    "nothing": (lambda one: None, "a NoneType; expected a Selection"),
    "a list": (lambda one: Selection(one.indices.tolist()), "indices that are a list"),
    "floats": (lambda one: Selection(one.indices.float()), r"indices that are float32 \["),
    "flags": (lambda one: Selection(one.indices > 0), r"indices that are bool \["),
    "no heads": (lambda one: Selection(one.indices[:, :0]), r"expected whole numbers \[\d+, 1 or 2 or 4"),
    "twice the heads": (lambda one: Selection(one.indices.repeat(1, 2, 1, 1)), "indices that are"),
    "twice the rows": (lambda one: Selection(one.indices.repeat(2, 1, 1, 1)), "indices that are"),
    "a query more": (lambda one: Selection(one.indices[:, :, [0, *range(one.indices.shape[2])]]), "indices"),
    "a row alone": (lambda one: Selection(one.indices[0]), "indices that are int64"),
    "fewer weights": (lambda one: replace(one, log_weights=filled(one.indices.shape, 0)[..., :-1]), "log_weights"),
    "whole weights": (lambda one: replace(one, log_weights=one.indices * 0), "log_weights that are int64"),
    "weights of nan": (lambda one: replace(one, log_weights=filled(one.indices.shape, NAN)), "hold NaN"),
    "endless weights": (lambda one: replace(one, log_weights=filled(one.indices.shape, torch.inf)), "infinity"),
    "negative cost": (lambda one: replace(one, keys_scored=-1.0), "keys_scored -1.0; expected a number of 0"),
    "cost of nan": (lambda one: replace(one, bytes_read=NAN), "bytes_read nan"),
    "cost in words": (lambda one: replace(one, keys_scored="many"), "keys_scored 'many'"),
    "cost a head": (lambda one: replace(one, keys_scored=torch.zeros(7, 3, 2)), r"keys_scored float32 \[7, 3, 2\]"),
    "shares of 2": (lambda one: rested(one, share=2.0), "above 1 together"),
    "shares below 0": (lambda one: rested(one, share=-0.5), "below 0"),
    "neither": (lambda one: rested(one), "a rest with 0 of logits and share"),
    "both": (lambda one: rested(one, share=0.5, logits=0.0), "a rest with 2 of logits and share"),
    "rest of nan": (lambda one: rested(one, NAN, share=0.5), "a rest that holds NaN"),
    "narrow rest": (lambda one: replace(one, rest=Rest(filled((1, 4, 1, 1, 7), 0))), "rest.values that are"),
}  # fmt: skip


@dataclass(frozen=True)
class Misshapen(Stateless):
    """The newest keys, in a form of its own."""

    form: str = "right"
    family: ClassVar[str] = "own"

    def traits(self) -> Traits:
        return Traits(weighted="weights" in self.form)

    def choose(self, queries: torch.Tensor, k: int, step: Any, length: int) -> Selection:
        stops = step.stops(length, queries.shape[2], queries.device)[:, None, :, None]
        slots = (stops - 1 - torch.arange(min(k, length))).clamp_min(-1)
        right = Selection(slots.expand(*queries.shape[:3], -1).clone())
        return FORMS[self.form][0](right) if self.form in FORMS else right


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Evaluation, measurement and attachment of a recipe."""
    model = tiny("qwen3", **{**READS_REFERENCE, "head_dim": WIDTH})
    tokenizer = load("reference")[1]
    folder = tmp_path_factory.mktemp("formed")
    topkit.capture(
        model, task="niah-single", length=96, samples=1, out=folder / "c", tokenizer=tokenizer
    )

    def evaluate(recipe: Any, out: Path) -> None:
        how: Any = dict(out=out, tokenizer=tokenizer)
        topkit.evaluate(model, "niah-single", 96, 1, recipe, 4, **how)

    def measure(recipe: Any, out: Path) -> None:
        topkit.measure(folder / "c", recipe, 4)

    def attach(recipe: Any, out: Path) -> None:
        with topkit.attach(model, recipe, 4):
            model.generate(torch.arange(3, 30)[None], max_new_tokens=2, do_sample=False)

    return evaluate, measure, attach


@pytest.mark.parametrize("driver", range(3), ids=["evaluate", "measure", "attach"])
def test_what_is_no_selection_is_refused_by_the_recipes_name(
    drivers: Any, driver: int, tmp_path: Path
) -> None:
    drivers[driver](Misshapen(), tmp_path / "right")
    for form, (_, said) in FORMS.items():
        recipe = Misshapen(form)
        with pytest.raises(InputError, match=rf"^{re.escape(repr(recipe))} gave .*{said}"):
            drivers[driver](recipe, tmp_path / form)
        assert not (tmp_path / form).exists()

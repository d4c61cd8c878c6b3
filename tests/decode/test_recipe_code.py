"""An error in the code of a recipe names the recipe, its method and the line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import topkit
from tiny import prompt
from topkit.cli.exits import BAD_INPUT, exit_code
from topkit.errors import InputError, Undecided
from topkit.experiments.decode.attach import attach
from topkit.experiments.decode.recipe_code import recipe_code
from topkit.indexers import keep, sign
from topkit.indexers.base import Index, Step


@dataclass(frozen=True)
class faulty(sign):
    """Signs, by a recipe whose methods divide by zero."""

    where: str = "build"

    def build(self, keys: Any, step: Step) -> Index:
        index: Any = super().build(keys, step)
        method = {"append": "append", "select": "select_many"}.get(self.where)
        if method is None:
            index.length = index.length // 0
        else:
            setattr(index, method, self._break)
        return index

    def _break(self, *_: Any) -> None:
        raise IndexError("no such\nkey")


@pytest.mark.parametrize("where", ["build", "append", "select"])
def test_of_a_recipe_from_outside(model: Any, where: str) -> None:
    error = "ZeroDivisionError" if where == "build" else "IndexError: no such"
    line = rf"faulty\(.*\) failed in {where}, at .*test_recipe_code.py:\d+: {error}"
    with attach(model, faulty(where=where), 4), pytest.raises(InputError, match=line) as refusal:
        model.generate(**prompt(), max_new_tokens=4)
    assert isinstance(refusal.value.__cause__, ZeroDivisionError | IndexError)


def test_the_line_is_the_recipes_own(model: Any) -> None:
    _, first = inspect.getsourcelines(faulty._break)
    with (
        attach(model, keep(faulty(where="select"), sink=1), 4),
        pytest.raises(InputError, match=f":{first + 1}: IndexError"),
    ):
        model.generate(**prompt(), max_new_tokens=4)


def test_the_console_script_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    keys = torch.randn(1, 2, 50, 8)
    capture = topkit.Capture.from_tensors(torch.randn(1, 4, 3, 8), keys, keys)
    code = exit_code(lambda: topkit.measure(capture, faulty(where="select"), 4))
    said = capsys.readouterr().err
    assert code == BAD_INPUT and said.count("\n") == 1
    assert "failed in select, at" in said and "IndexError: no such key" in said


def test_of_a_recipe_of_topkits_own_is_a_fault_with_a_note(monkeypatch: Any, model: Any) -> None:
    monkeypatch.setattr("topkit.indexers.scored.ScoredIndex.select_many", torch.Tensor.view)
    with attach(model, "sign", 4), pytest.raises(TypeError) as fault:
        model.generate(**prompt(), max_new_tokens=4)
    assert fault.value.__notes__ == ["sign() failed in select"]


@pytest.mark.parametrize(
    "error",
    [InputError("mine"), Undecided("mine"), MemoryError(), torch.OutOfMemoryError(), ImportError()],
)
def test_what_callers_look_for_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as same, recipe_code(sign(), "build"):
        raise error
    assert same.value is error

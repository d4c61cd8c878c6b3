"""Arguments of a wrong type: one line that says what was expected, from every public function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import topkit
from fuzz import line_of
from topkit.kernels import cache_append, gather_attention, quantize_append, score, score_select
from topkit.kernels.select_topk import select_topk

Call = Callable[[Any], object]
T = torch.ones(1, 1, 4, 4)
WRONG = (None, 3, [], {}, b"", "\0", object(), 1.5)
TASK = "niah-multikey"

PUBLIC: dict[str, Call] = {
    "load": topkit.load,
    "capture": lambda x: topkit.capture(x, length=100, samples=1, out="never"),
    "measure": lambda x: topkit.measure(x, "sign", 4),
    "evaluate": lambda x: topkit.evaluate(x, TASK, 640, 1, "sign", 4, out="never"),
    "study": lambda x: topkit.study(x, "quick", "never"),
    "report": topkit.report,
    "verify": topkit.verify,
    "attach": lambda x: topkit.attach(x, "sign", 4),
    "Capture.open": topkit.Capture.open,
    "task": topkit.task,
    "indexer": topkit.indexer,
    "tasks": lambda x: topkit.evaluate.plan("reference", x, 640, 1, "sign", 4, out="never"),
    "evaluate out": lambda x: topkit.evaluate.plan("reference", TASK, 640, 1, "sign", 4, out=x),
}
KERNELS: dict[str, Call] = {
    "select_topk": lambda x: select_topk(x, 1),
    "score_codes": lambda x: score.score_codes(x, T, dtype="fp32"),
    "score_lightning": lambda x: score.score_lightning(x, T, T),
    "score_select": lambda x: score_select.score_select(x, T, 1, dtype="fp32"),
    "score_select_lightning": lambda x: score_select.score_select_lightning(x, T, T, 1),
    "gather_attention": lambda x: gather_attention.gather_attention(x, T, T, T, scaling=1.0),
    "quantize_append": lambda x: quantize_append.quantize_append(x, T, None, 0, dtype="fp32"),
    "cache_append": lambda x: cache_append.cache_append(
        x, T, T, T, torch.zeros(1, dtype=torch.int64)
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_public_function_does_not_take(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in WRONG:
        assert line_of(lambda wrong=wrong: PUBLIC[name](wrong)), f"{name} takes {wrong!r}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_kernel_does_not_take(name: str) -> None:
    for wrong in WRONG:
        said = line_of(lambda wrong=wrong: KERNELS[name](wrong))
        assert said and "must be a tensor" in said


@pytest.mark.parametrize(
    "name", ["load", "measure", "report", "verify", "Capture.open", "evaluate out"]
)
@pytest.mark.parametrize("path", ["a" * 300, "x/" * 3000, "\ud800"])
def test_a_path_longer_than_paths_may_be(name: str, path: str) -> None:
    assert line_of(lambda: PUBLIC[name](path))

"""What a process is given of a memory that others share: rows are cut to it, by arithmetic, and runs say so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from topkit.errors import InputError
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.evaluate.gpu_share import CONTEXT, GRAPHS, rows_within, share_of
from topkit.experiments.evaluate.memory import graphed, memory_of
from topkit.experiments.evaluate.shape import Asked, Shape
from topkit.experiments.model.load import REFERENCE
from topkit.experiments.runs.cells import parse_cells
from topkit.experiments.runs.plan import WITH_TRANSFORMERS
from topkit.experiments.study.study import run_study

# SmolLM2 in float32, at 2K, on a GPU of which a process is given 11 GB.
SMOL = Shape(
    weights=538_000_000,
    layers=30,
    heads=(9, 3),
    width=(64, 64),
    passing=6912,
    vocabulary=49152,
    bytes=4,
    on_device=True,
    device=11 * 10**9 - CONTEXT,
    own=True,
)
ASKED = Asked(2017, questions=1, tail=37, answer=6, judged=84)
CELLS = parse_cells(
    ["sign", "quantized", "quest", "moba", "clusterkv", "h2o", "exact", "loki"],
    [4 * n for n in range(1, 9)],
)


def rows(shape: Shape, most: int) -> int:
    needs = partial(memory_of, shape, ASKED, CELLS)
    return rows_within(
        shape.device, min(most, len(CELLS)), needs, partial(graphed, shape, ASKED, CELLS)
    )


def test_rows_are_cut_until_their_graphs_fit_too():
    cut = rows(SMOL, 128)
    assert 1 < cut < len(CELLS)
    assert memory_of(SMOL, ASKED, CELLS, cut) <= SMOL.device
    assert graphed(SMOL, ASKED, CELLS, cut) <= GRAPHS * SMOL.device
    assert graphed(SMOL, ASKED, CELLS, cut * 8 // 7 + 1) > GRAPHS * SMOL.device
    # Nothing is cut that fits, and more memory never means fewer rows.
    assert rows(SMOL, 3) == 3
    each = [rows(replace(SMOL, device=n * 10**9), 128) for n in (4, 12, 60)]
    assert each == sorted(each) and each[-1] == 65


def test_graphs_that_stay_never_take_what_answers_need():
    """Of turns as many as there are: without a share of its own, each takes a quarter of what the last one left."""
    for count in (8, 16, 32):
        one = memory_of(replace(SMOL, device=0), ASKED, CELLS, count)
        assert memory_of(SMOL, ASKED, CELLS, count) <= one + GRAPHS * SMOL.device


def test_where_no_number_of_rows_has_graphs_the_most_go_kernel_by_kernel():
    needs, graphs = lambda n: 100 * n, lambda n: 10_000 * n
    assert rows_within(1000, 64, needs, graphs) == 10
    with pytest.raises(InputError, match=r"one row takes about 0.0 GB.*say more memory"):
        rows_within(99, 64, needs, graphs)


def test_a_process_takes_some_before_there_are_tensors():
    assert share_of(2, torch.device("cpu")) == 2 * 10**9 - WITH_TRANSFORMERS
    with pytest.raises(InputError, match=r"memory=0.25 GB is less than the 0.5 GB"):
        share_of(0.25, torch.device("cpu"))


@pytest.mark.slow
def test_a_run_keeps_to_what_it_was_given(tmp_path):
    """Its rows go into run.json: a rerun that is given as much goes on, and the rows are those of that batch size."""
    model = AutoModelForCausalLM.from_pretrained(REFERENCE)
    how = {"tokenizer": AutoTokenizer.from_pretrained(REFERENCE), "lengths": 300, "samples": 1}
    given = {"tasks": "niah-single", "indexers": ["sign", "exact"], "k": [4, 8, 16, 32], **how}
    least = (evaluate.plan(model, out=tmp_path / "a", **given).memory - 1) / 1e9
    plan: Any = evaluate.plan(model, out=tmp_path / "a", memory=least, **given)
    cut = plan.request.setting.rows
    assert 1 <= cut < 9 and plan.memory <= least * 1e9
    assert any(f"{cut} rows of 128 go together, to keep to" in line for line in plan.notes)
    whole: Any = evaluate.plan(model, out=tmp_path / "a", memory=20, **given)
    assert whole.request.setting.rows == 128 and len(whole.jobs) < len(plan.jobs)
    table = evaluate(model, out=tmp_path / "a", memory=least, **given)
    assert table.equals(evaluate(model, out=tmp_path / "b", batch_size=cut, **given))
    assert evaluate.plan(model, out=tmp_path / "a", memory=least, **given).jobs == ()


@pytest.mark.parametrize("memory", [0, -1, float("nan"), float("inf"), "12"])
def test_no_memory_is_refused(tmp_path, memory):
    with pytest.raises(InputError, match="memory must be a number of GB above 0"):
        evaluate.plan("reference", "niah-single", 300, 1, out=tmp_path / "a", memory=memory)


def test_a_study_that_keeps_to_no_memory_says_so(tmp_path):
    with pytest.raises(InputError, match="kind lightning-precision keeps to no memory"):
        run_study.plan("lightning-precision", out=tmp_path, model="reference", memory=8)

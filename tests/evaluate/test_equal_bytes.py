"""Evaluating, and a study, at a budget of bytes: at each length the cells that read alike there."""

import pytest

from topkit.errors import InputError
from topkit.experiments.evaluate.evaluate import evaluate
from topkit.experiments.evaluate.plan import EvaluatePlan
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_plan import StudyPlan
from topkit.indexers.spec import parse

INDEXERS = ["exact", "quest", "refine(quest(page_size=64))"]


def cells_of(parts):
    return {part.lengths: [cell.name for cell in part.cells[2:]] for part in parts}


def test_each_length_has_cells_of_its_own(tmp_path):
    # 2 KV heads of 64 numbers in float32 are 512 bytes of keys a token.
    plan = evaluate.plan(
        "reference", "niah-single", [512, 1024], 1, INDEXERS, 16, out=tmp_path,
        budget="bytes=0.5", dtype="float32", device="cpu",
    )  # fmt: skip
    quest, pages = parse("quest(page_size=4)"), "refine(quest(page_size=64), factor={})"
    assert isinstance(plan, EvaluatePlan)
    assert cells_of(plan.request.parts) == {
        (512,): [repr(quest), repr(parse(pages.format(5)))],
        (1024,): [repr(quest), repr(parse(pages.format(10)))],
    }
    assert "bytes=0.5: 256 bytes a token and layer at 1,024 tokens" in plan.notes
    with pytest.raises(
        InputError, match=r"bytes=2 cannot be met: quantized\(dtype=int2\) reads 40"
    ):
        evaluate.plan(
            "reference", "niah-single", 512, 1, [*INDEXERS, "quantized"], 16, out=tmp_path,
            budget="bytes=2", device="cpu",
        )  # fmt: skip


def test_a_study_leaves_out_what_reads_more_and_says_so(tmp_path):
    plan = run_study.plan(
        "quick", out=tmp_path, model="reference", tasks="niah-single", lengths=512, haystacks=2,
        budgets=16, indexers=[*INDEXERS, "quantized", "sign", "lightning"], pilot=False, device="cpu",
        budget=["bytes=0.12", {"bytes": 128}], dtype="float32",
    )  # fmt: skip
    assert isinstance(plan, StudyPlan)
    (part,) = plan.evaluations[0].request.parts
    names = [parse(cell.name) for cell in part.cells if cell.indexer is not None]
    specs = ["exact", "quantized:dtype=int2", "quantized:dtype=int8", "quest:page_size=17", "quest:page_size=8",
             "refine(quest(page_size=64), factor=1)", "refine(quest(page_size=64), factor=2)", "sign"]  # fmt: skip
    assert set(names) == {parse(spec) for spec in specs}
    assert "left out: lightning(weights=reference) reads 256 bytes a token, of 61.44" in plan.notes
    assert "quantized(dtype=int2) reads 40 bytes a token, of 61.44" in plan.notes
    assert "sign() reads 16 bytes a token, of 61.44" in plan.notes

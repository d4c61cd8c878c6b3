"""Exact Top-k against full attention at a margin, by a study's both protocols; and what predicts accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.equality import EQUAL, equality
from topkit.experiments.study.equivalence import require_equivalent
from topkit.experiments.study.exact_topk import blocks, sentences, verdicts
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.planner import haystacks_needed
from topkit.experiments.study.predictors import NEITHER, NULL, predicted
from topkit.experiments.study.predictors import blocks as prediction_blocks
from topkit.experiments.study.sections import sections
from topkit.experiments.study.sentences import BETTER, FLOOR, UNDECIDED, WORSE
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.indexers.budget import parse_budget
from topkit.indexers.degraded import degraded
from topkit.indexers.spec import parse


def cell(spec: str, k: str) -> Cell:
    return Cell(parse(spec), parse_budget(k))


def curve(rates: dict[Cell, np.ndarray], **fidelity: np.ndarray) -> Curve:
    """A curve of one question a haystack; fidelity by cell [C]."""
    cells, count = tuple(rates), len(next(iter(rates.values())))
    grid = {name: np.tile(np.array(x)[:, None], count).astype(float) for name, x in fidelity.items()}  # fmt: skip
    nothing = np.full((len(cells), count), np.nan)
    grid = {"recall": nothing, "mass": nothing, "kept": nothing, **grid}
    return Curve(
        "t", 1000, "question", "score", cells, tuple(range(count)), np.ones(count), np.stack(list(rates.values())),
        np.stack(list(rates.values())), {"nll": nothing, "kl": nothing}, grid, 4.0, {},
    )  # fmt: skip


def right(share: float, count: int) -> np.ndarray:
    return (np.arange(count) < share * count).astype(float)


COUNT = 2000
BOTH = curve(
    {
        Cell(): right(1.0, COUNT),
        cell("exact()", "5%"): right(0.999, COUNT),
        cell("exact()", "0.4%"): right(0.5, COUNT),
        cell("exact()", "0.8%"): right(0.99, COUNT),
        cell("sign()", "5%"): right(0.1, COUNT),
    }
)


def test_verdicts_of_exact_topk():
    found = {f"{one.share:.1%}": one.found for one in verdicts([BOTH], 0.01)}
    assert {share: one.word for share, one in found.items()} == {
        "0.4%": WORSE,
        "0.8%": UNDECIDED,
        "5.0%": EQUAL,
    }
    needed = found["0.8%"].needed
    assert needed == haystacks_needed(0.01, (0.01 * COUNT + 1) / (COUNT + 1))
    text = " ".join(sentences(verdicts([BOTH], 0.01)))
    assert f"undecided at 0.8% ({needed:,} haystacks would decide)" in text
    assert "equal at 5.0% of the keys; worse at 0.4% of the keys" in text
    shown = str(list(blocks([BOTH], 0.01)))
    assert "within 0.01" in shown and "sign" not in shown and f"{needed:,} haystacks" in shown


def test_verdicts_both_ways_and_at_the_floor():
    exact = cell("exact()", "5%")
    floor = curve({Cell(): right(0.01, 500), exact: right(0.0, 500)})
    assert equality(floor, 1, 0, 0.01).word == FLOOR
    above = curve({Cell(): right(0.5, 500), exact: right(0.9, 500)})
    assert equality(above, 1, 0, 0.01).word == BETTER
    alone = curve({Cell(): right(0.5, 9)})
    assert verdicts([alone], 0.01) == []
    assert "were not run side by side" in str(list(blocks([alone], 0.01)))


def test_a_margin_that_the_sample_cannot_decide_names_the_planners_number():
    few = curve({Cell(): right(1.0, 40), cell("exact()", "5%"): right(0.975, 40)})
    needed = haystacks_needed(0.01, 2 / 41)
    with pytest.raises(Undecided, match=f"about {needed:,} haystacks would show it; 40 were run"):
        require_equivalent([few], "exact()", margin=0.01)
    with pytest.raises(
        Undecided, match=r"-0\.025 \["
    ):  # at so small a margin, a digit beyond its own
        require_equivalent([few], "exact()", margin=0.01)
    with pytest.raises(GateFailed, match="worse"):
        require_equivalent([BOTH], "exact()", margin=0.01, budget="0.4%")


def test_presets_ask_each_share_on_both_protocols_of_own_and_official_tasks():
    shares = ["0.4%", "0.8%", "1.6%", "5%", "10%", "20%"]
    for name in ("exact-topk", "exact-topk-quick"):
        made = read_study(name)
        assert (made.margin, made.sparse_from) == (0.01, ("question", "answer"))
        assert [str(budget) for budget in made.budgets] == shares
        kinds = {task.name for model in made.model for task, _ in made.of(model).settings}
        assert "ruler" in kinds and len(kinds) > 1
    full = read_study("exact-topk")
    assert full.model == ("smollm2", "reference")
    # Were the two equal and never apart, so many would say so.
    assert all(full.at(n) >= (haystacks_needed(0.01, 0) or 0) for _, n in full.settings)
    assert read_study("exact-topk-quick").model == ("reference",)


@pytest.mark.slow
def test_a_study_of_both_protocols_runs_to_its_report(tmp_path: Path):
    report = run_study(both(tmp_path), out=tmp_path / "run")
    page = report.read_text()
    for words in ("within 0.01", "sparse from the question", "sparse from the answer", "undecided at 1.2%"):  # fmt: skip
        assert words in page


def both(tmp_path: Path) -> Path:
    """A study of two haystacks by both protocols."""
    path = tmp_path / "both.yaml"
    keys: dict[str, Any] = {
        "tasks": ["niah-multikey:wording=trained,questions=1,distractors=2"],
        "lengths": [512],
        "haystacks": 2,
        "budgets": ["1%"],
        "indexers": ["exact()"],
        "pilot": False,
        "sparse_from": ["question", "answer"],
        "margin": 0.01,
        "observe": "no",
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def plan_of(*given: Any, **options: Any) -> Any:
    return run_study.plan(*given, **options)


def test_each_protocol_has_a_folder_and_seeds_have_theirs_below(tmp_path: Path):
    path, out = both(tmp_path), tmp_path / "run"
    stages = plan_of(path, out=out).course.stages
    assert [(one.out, one.sparse_from) for one in stages] == [
        (out / "from-question", "question"),
        (out / "from-answer", "answer"),
    ]
    seeds = plan_of(path, out=out, seed=[3, 4]).course.stages
    assert [one.out for one in seeds][1:3] == [out / "from-question/seed-4", out / "from-answer/seed-3"]  # fmt: skip
    one = plan_of(path, out=tmp_path / "one", sparse_from="answer")
    assert [stage.out for stage in one.course.stages] == [tmp_path / "one"]
    with pytest.raises(InputError, match="margin: expected a share between 0 and 1"):
        run_study.plan(path, out=tmp_path / "no", margin=0)


SPECS = {
    "quantized(dtype='int4')": 0.9,
    "quest(page_size=4)": 0.35,
    "streaming_llm()": 0.1,
    "faiss_ivf(nlist=64)": 0.55,
    "top_p(sign(), mass=0.9)": 0.7,
    "snapkv(window=8)": 0.2,
    "degraded(0.8)": 0.6,
    "degraded(0.5)": 0.3,
    "degraded(0.8, fill='next')": 0.8,
    "degraded(0.5, fill='next')": 0.4,
}


def of_ws(**more: np.ndarray) -> Curve:
    """A curve whose scores are what ws is, and have nothing to do with recall."""
    cells = {cell("exact()", "16"): 1.0} | {cell(spec, "16"): x for spec, x in SPECS.items()}
    count, ws = 200, np.array(list(cells.values()))
    unrelated = np.random.default_rng(0).random(len(ws))
    return curve(
        {one: right(score, count) for one, score in cells.items()},
        **{"recall": unrelated, "mass": 0.5 + ws / 10 + unrelated / 20, "output_error": 1 - ws, **more},
    )  # fmt: skip


def test_a_family_left_out_is_predicted_best_by_what_decides():
    ws = np.array([1.0, *SPECS.values()])
    found = {one.name: one for one in predicted(Findings(of_ws(ws=ws)))}
    nulls = {NULL.format(name) for name in ("recall", "mass")}
    assert set(found) == {"recall", "mass", "output_error", "ws", NEITHER, *nulls}
    errors = {name: float(one.real.value) for name, one in found.items() if one.real is not None}
    assert errors["ws"] == pytest.approx(errors["output_error"])  # the same order, turned round
    assert errors["ws"] < errors["recall"]
    gap = found["ws"].minus_mass
    assert gap is not None
    assert float(gap.value) == pytest.approx(errors["ws"] - errors["mass"])
    assert found["mass"].minus_mass is None
    assert found["ws"].manners is not None and found["ws"].manners < 0.15
    text = str(list(prediction_blocks([Findings(of_ws(ws=ws))])))
    assert "There is no ws" not in text and "`ws`" in text


def test_the_null_begins_at_exact_topks_own_score_and_fits_nothing():
    made = of_ws()
    place = made.place(
        parse("streaming_llm()")
    )  # a short window, which tells how many tokens need a key
    assert place is not None
    found = {one.name: one for one in predicted(Findings(made))}
    null = found[NULL.format("recall")]
    tokens = 4.0 * (1 - float(made.rates[place].mean()))
    exact = made.place(parse("exact()"))
    assert exact is not None
    recall = made.mean("recall")
    errors: list[float] = []
    for spec in SPECS:
        if not spec.startswith("degraded"):
            at = made.place(parse(spec))
            assert at is not None
            p = min(float(recall[at] / recall[exact]), 1)
            errors.append(abs(p**tokens - float(made.rates[at].mean())))
    assert null.real is not None
    assert float(null.real.value) == pytest.approx(np.mean(errors))


def test_without_a_known_key_there_is_no_ws_and_the_section_says_so():
    text = str(list(sections({"predict": True}, [Findings(of_ws())], Path())))
    assert "There is no ws: of t no answer's key was observed" in text
    few = curve({Cell(): right(1, 9), cell("exact()", "16"): right(1, 9)})
    assert "Nothing is shown" in str(list(prediction_blocks([Findings(few)])))


def test_precision_has_every_manner_of_loss():
    made = read_study("precision")
    manners = {repr(replace(i, precision=1.0)) for i, _ in made.indexers if isinstance(i, degraded)}  # fmt: skip
    reach = 2 * 4 * 2 * 3  # lost at random: miss, fill, persist, per
    assert len(manners) == reach + 3 * 4
    assert made.predict and made.model == ("smollm2", "reference")
    assert read_study("precision-quick").model == ("reference",)

"""Which heads must be right: pairs that differ, Holm over groups, and what a page says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert as vlc

from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.blocks import Drawn, Items, as_markdown
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import compiled, filled
from topkit.experiments.study.each_group import groups_of
from topkit.experiments.study.heads import mcnemar, mended
from topkit.experiments.study.heads_page import blocks
from topkit.experiments.study.report import write_report
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.indexers import exact, exact_group, sign
from topkit.indexers.budget import parse_budget

K = parse_budget(16)
GROUPS = [(layer, group) for layer in range(3) for group in range(2)]


def curve(rates: dict[Any, list[float]], weights: Any = None) -> Curve:
    """Cells on haystacks of one question: full attention, exact Top-k, sign, and sign mended in groups."""
    cells = tuple(Cell() if one is None else Cell(one, K) for one in rates)
    table = np.array(list(rates.values()), dtype=float)
    haystacks = table.shape[1]
    return Curve(
        task="niah-single",
        length=512,
        sparse_from="question",
        measure="score",
        cells=cells,
        haystacks=tuple(range(haystacks)),
        questions=np.ones(haystacks),
        rates=table,
        token_rates=table,
        losses={},
        fidelity={},
        answer_tokens=5.0,
        heads={},
        weights={} if weights is None else {Cell(exact(), K): weights},
    )


def made(right: dict[tuple[int, int], int], haystacks: int = 40, base: int = 10) -> dict[Any, Any]:
    """sign is right on the first `base` haystacks; mended, on as many more as are said."""

    def line(count: int) -> list[float]:
        return [1.0] * count + [0.0] * (haystacks - count)

    rates: dict[Any, Any] = {
        None: line(haystacks),
        exact(): line(haystacks - 2),
        sign(): line(base),
    }
    for group in GROUPS:
        rates[exact_group(sign(), *group)] = line(base + right.get(group, 0))
    return rates


def slow_mcnemar(better: int, worse: int) -> float:
    """The share of 2^n signs that are as far from half as these."""
    n = better + worse
    far = abs(better - n / 2)
    return sum(math.comb(n, i) for i in range(n + 1) if abs(i - n / 2) >= far - 1e-9) / 2**n


def test_mcnemar_counts_the_pairs_that_differ() -> None:
    pairs = [(0, 0), (1, 0), (5, 0), (0, 6), (7, 2), (4, 4), (12, 1)]
    better, worse = (np.array(x) for x in zip(*pairs, strict=True))
    assert mcnemar(better, worse).tolist() == pytest.approx([slow_mcnemar(*pair) for pair in pairs])


def test_groups_are_tested_against_the_indexer_alone_by_holm() -> None:
    # Of six groups the least p must be below 0.05 / 6: 8 pairs of one sign, 0.0078; the next below 0.01.
    for right, shown in (
        ({(1, 0): 8}, [(1, 0)]),
        ({(1, 0): 7}, []),
        ({(1, 0): 12, (2, 1): 8}, [(1, 0), (2, 1)]),
        ({(0, 0): -10, (2, 0): 9}, [(0, 0), (2, 0)]),
    ):
        (one,) = mended(curve(made(right)))
        assert one.groups == tuple(GROUPS) and (one.score, one.exact, one.full) == (0.25, 0.95, 1.0)
        assert [one.groups[n] for n in np.flatnonzero(one.shown)] == shown
        gains = {group: value for group, value in zip(GROUPS, one.gain.value, strict=True)}
        assert gains == pytest.approx({g: right.get(g, 0) / 40 for g in GROUPS})
        assert [one.groups[n] for n in one.helping] == sorted(
            (g for g in shown if right[g] > 0), key=lambda g: -right[g]
        )
        assert one.grid(one.gain.value).shape == (3, 2)


def test_several_questions_of_a_haystack_are_one_sign() -> None:
    rates = made({}, haystacks=4, base=0)
    rates[exact_group(sign(), 0, 1)] = [0.5, 0.25, 0.0, 1.0]
    rates[sign()] = [0.0, 0.5, 0.0, 0.0]
    for group in GROUPS:
        if group != (0, 1):
            rates[exact_group(sign(), *group)] = rates[sign()]
    (one,) = mended(curve(rates))
    assert (one.better[1], one.worse[1]) == (2, 1) and one.better.sum() == 2


def test_the_page_says_what_is_shown_and_whether_it_is_where_the_answer_is_read() -> None:
    weights = np.zeros((3, 4))
    weights[2, 2:], weights[1, :2] = 0.8, 0.1  # of heads 2 and 3 of the last layer: group 1
    shown = list(blocks([curve(made({(2, 1): 20}), weights)]))
    text = as_markdown([b for b in shown if not isinstance(b, Drawn)], "")
    assert "shown to raise it in 1 of 6: layer 2 group 1 by 0.50" in text
    assert "layer 2 group 1 (0.80), layer 1 group 0 (0.10)" in text
    assert "Of the 1 groups shown under any indexer 1 are among the 3" in text
    (figure,) = [b for b in shown if isinstance(b, Drawn)]
    gains, read = [panel.data["groups"] for panel in figure.panels]
    framed = [(row["layer"], row["group"], row["value"]) for row in gains if row["shown"]]
    assert framed == [(2, 1, 0.5)] and len(gains) == len(read) == 6
    assert max(read, key=lambda row: row["value"]) == {"layer": 2, "group": 1, "value": 0.8}
    svg = vlc.vega_to_svg(filled(compiled(figure.draw()), figure.data))
    assert svg.count("KV group<") == 2
    nothing = list(blocks([curve(made({}))]))
    lines = [line for b in nothing if isinstance(b, Items) for line in b.lines]
    assert any("In none of 6 groups" in line for line in lines)
    assert any("not known where the answers stand" in line for line in lines)
    (unread,) = [b for b in nothing if isinstance(b, Drawn)]
    assert "where it is read" in figure.caption and len(figure.panels) == 2
    assert "where it is read" not in unread.caption and len(unread.panels) == 1
    assert not any(isinstance(b, Items) for b in blocks([curve({None: [1.0], sign(): [0.0]})]))


def test_each_group_of_a_model_is_a_cell_and_no_other() -> None:
    study = read_study("heads-quick")
    own = study.of("reference")
    cells = [c.indexer for c in own.cells if isinstance(c.indexer, exact_group)]
    assert len(cells) == 3 * 8 * 2 and {c.layer for c in cells} == set(range(8))
    assert groups_of("reference", (), None, None) == tuple(
        (n, g) for n in range(8) for g in range(2)
    )
    some = read_study("heads-quick", groups="3/1,7/0").of("reference")
    assert len([c for c in some.cells if isinstance(c.indexer, exact_group)]) == 3 * 2
    assert read_study("heads").model == ("reference", "smollm2")
    for wrong, why in (("8/0", "no layer 8"), ("0/2", "no KV group 2"), ("3.1", "LAYER/GROUP")):
        with pytest.raises(InputError, match=why):
            replace(read_study("heads-quick", groups=wrong)).of("reference")
    with pytest.raises(InputError, match="all, or KV groups"):
        read_study("heads-quick", groups="most")


@pytest.mark.slow
def test_a_study_of_heads_comes_to_its_page(tmp_path: Path) -> None:
    given: dict[str, Any] = {"lengths": 256, "haystacks": 2, "groups": "7/1,0/0", "jobs": 1}
    tasks = ["niah-multikey:wording=trained,questions=1,distractors=2"]
    path = run_study("heads-quick", out=tmp_path, tasks=tasks, budgets=8, **given)
    assert path == tmp_path / "report.html"
    text = (tmp_path / "heads.md").read_text()
    assert "layer 7 group 1" in text and "weight" in text
    assert len(list((tmp_path / "figures").glob("heads-*.png"))) == 1
    again = write_report(tmp_path, out=tmp_path / "again")
    assert (again.parent / "heads.md").read_text() == text

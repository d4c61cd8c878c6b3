"""The report: sentences follow the numbers, figures are legible, the page stands alone."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from known_study import REAL, WHOLE, cell, cells, keep, tables, with_accuracy, write
from topkit.errors import GateFailed, InputError, Undecided
from topkit.experiments.evaluate.condensed import condensed
from topkit.experiments.runs.cells import DENSE
from topkit.experiments.study import pictures
from topkit.experiments.study.aims import checks
from topkit.experiments.study.cell_rows import cell_rows
from topkit.experiments.study.curve import settings_of
from topkit.experiments.study.curves import curves, load
from topkit.experiments.study.equivalence import require_equivalent
from topkit.experiments.study.findings import Findings
from topkit.experiments.study.first_screen import overview
from topkit.experiments.study.kinds import EXACT, family_of, kind_of
from topkit.experiments.study.null import null_of
from topkit.experiments.study.ordering import Ordering, Prediction
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.report import MOST_DRAWN, reported, write_report
from topkit.experiments.study.section import lines_of, save_by_budget
from topkit.experiments.study.sentences import FLOOR, judged, orders, predicts
from topkit.experiments.study.stats import Interval
from topkit.experiments.study.trivial import note
from topkit.indexers import sign
from topkit.indexers.budget import Budget

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Pages without their PNG and SVG, but where these are what is tested."""
    if "page" not in request.fixturenames:
        monkeypatch.setattr(Pictures, "add", lambda *_: None)
        monkeypatch.setattr(pictures, "FEWEST", 10**6)


@pytest.fixture(scope="module")
def curve():
    return curves(*tables())[0]


def test_cells_are_told_apart_by_what_they_know():
    kinds = {
        "dense": DENSE,
        "exact()": "oracle",
        "shared(exact())": "oracle",
        "degraded(0.5)": "oracle",
        "keep(sign())": "real",
        "random()": "control",
    }
    assert {spec: kind_of(cell(spec)) for spec in kinds} == kinds


def test_a_curve_holds_every_cell_and_haystack(curve):
    assert len(curve.cells) == len(cells()) and len(curve.haystacks) == 24
    assert curve.budget == Budget(32)
    place = curve.place(sign(), Budget(32))
    assert curve.mean("recall")[place] == pytest.approx(REAL["sign()"][0], abs=0.01)
    assert np.isnan(curve.mean("recall")[curve.place(None)])
    assert curve.heads[curve.cells[place]].shape == (8, 6)


def test_a_haystack_that_a_cell_lacks_is_left_out_of_all():
    haystacks, heads = tables(haystacks=6)
    rows = [r for r in haystacks.to_pylist() if (r["indexer"], r["haystack"]) != ("sign()", 3)]
    found = curves(pa.Table.from_pylist(rows), heads)[0]
    assert found.haystacks == (0, 1, 2, 4, 5) and found.dropped == 1


def test_accuracy_made_of_mass_is_predicted_by_mass():
    curve = curves(*tables(haystacks=64))[0]
    level, notices, real, oracle = Findings(curve, margin=0.06).sentences()
    assert "full attention scores 1.00 [0.9" in level.lower()
    assert re.match(r"A recall of 0\.\d\d is enough for .* a loss of more than 0\.06", notices)
    assert real.startswith("12 real indexers of 5 families at k = 32: each family was left out")
    assert oracle.startswith("15 oracles at k = 32 (chosen, not sampled, hence no intervals)")
    assert not re.search(r"\[[-+]?\d", oracle)
    errors = re.search(r"mean error is (\S+) by recall, (\S+) by mass, and (\S+) by", oracle)
    assert errors is not None
    by_recall, by_mass, by_neither = map(float, errors.groups())
    assert by_mass < by_recall / 2 and by_recall < by_neither


def test_sentences_are_of_one_budget_and_a_copy_of_an_indexer_changes_no_prediction():
    """Cells at another budget, and a second cell of a family, leave what is said of families."""
    haystacks, heads = tables()
    rows = haystacks.to_pylist()
    other = [{**r, "budget": "64", "exact_match": 0.0} for r in rows if r["indexer"] in REAL]
    more = curves(pa.Table.from_pylist(rows + other), heads)[0]
    one = Findings(curves(haystacks, heads)[0]).sentences()
    assert Findings(more, budget=Budget(32)).sentences() == one
    assert "at k = 64" in Findings(more, budget=Budget(64)).sentences()[0]
    families = {family_of(cell(spec)) for spec in REAL}
    assert families == {"quantized", "pages", "window", "ann", "adaptive", "control"}


@pytest.mark.parametrize("by", ["cells", "rows"])
def test_on_shuffled_accuracies_nothing_is_shown(by):
    """Shuffled between cells (whole, or haystack by haystack), accuracy says nothing of fidelity."""
    rng = np.random.default_rng(0)

    def shuffled(rows):
        names = list(dict.fromkeys((r["indexer"], r["budget"]) for r in rows))
        rates = {(r["indexer"], r["budget"], r["haystack"]): r["exact_match"] for r in rows}
        haystacks = sorted({r["haystack"] for r in rows})
        grid = np.array([[rates[(*name, h)] for h in haystacks] for name in names])
        grid = rng.permutation(grid) if by == "cells" else rng.permuted(grid, axis=0)
        where = {name: i for i, name in enumerate(names)}
        return [grid[where[r["indexer"], r["budget"]], r["haystack"]] for r in rows]

    haystacks, heads = tables()
    sentences = Findings(curves(with_accuracy(haystacks, shuffled), heads)[0]).sentences()
    real = next(line for line in sentences if "real indexers" in line)
    assert (
        "That accuracy rises with recall or mass from family to family is not shown" in real
        and "is not decided" in real
    )
    assert not re.search(r"(Mass|Recall) (predicts|orders it) better", real)


def test_too_few_families_show_nothing():
    haystacks, heads = tables()
    rows = [r for r in haystacks.to_pylist() if r["indexer"] in (DENSE, "exact()", "sign()", WHOLE)]
    sentences = Findings(curves(pa.Table.from_pylist(rows), heads)[0]).sentences()
    assert "real indexers is not shown: there are fewer than 5 families" in sentences[2]
    assert len(sentences) == 3  # nor is anything said of oracles


def interval(*numbers):
    return Interval(*(np.array(x) for x in numbers))


@pytest.mark.parametrize(
    ("recall", "mass", "gap", "trend", "better"),
    [
        ((0.8, 0.4, 0.9), (0.9, 0.6, 1), (0.1, 0.02, 0.2), "rises with both", "Mass orders"),
        (
            (0.1, -0.4, 0.5),
            (0.9, 0.6, 1),
            (0.8, 0.1, 1.2),
            "rises with mass, which is not shown of recall",
            "Mass",
        ),
        ((-0.8, -1, -0.4), (0.9, 0.6, 1), (1.7, 1, 2), "falls with recall and rises", "Mass"),
        ((0.9, 0.6, 1), (0.8, 0.4, 0.9), (-0.1, -0.2, -0.01), "both", "Recall orders"),
        ((0.9, 0.6, 1), (0.8, 0.4, 0.9), (-0.1, -0.2, 0.01), "both", "is not decided"),
    ],
)
def test_an_order_in_words(recall, mass, gap, trend, better):
    words = orders("accuracy", Ordering(5, interval(*recall), interval(*mass), interval(*gap)))
    assert trend in words and better in words


@pytest.mark.parametrize(
    ("gap", "better"),
    [
        ((-0.1, -0.2, -0.01), "Mass predicts better"),
        ((0.1, 0.01, 0.2), "Recall predicts better"),
        ((-0.1, -0.2, 0.01), "is not decided"),
    ],
)
def test_a_prediction_in_words(gap, better):
    error = interval(0.1, 0.05, 0.15)
    words = predicts("Over 9", "accuracy", Prediction(5, error, error, error, interval(*gap)))
    assert words.count("0.10 [0.05, 0.15]") == 3 and better in words


def test_nll_stands_for_accuracy_at_its_floor_or_ceiling():
    """All answers right: only NLL, here a function of mass, tells the cells apart."""
    haystacks, heads = tables(haystacks=48)
    rows = [r | {"exact_match": 1.0} for r in haystacks.to_pylist()]
    for row in rows:
        row["nll"] = 0.0 if row["indexer"] == DENSE else 1 - row["mass"]
    findings = Findings(curves(pa.Table.from_pylist(rows), heads)[0])
    sentences = findings.sentences()
    assert "Full attention's NLL is 0.000" in sentences[1]
    real = next(line for line in sentences if "real indexers" in line)
    assert "and its minus NLL, in nats a token, predicted from the others" in real
    assert "minus NLL rises with" in real
    others = Findings(curves(*tables(haystacks=48))[0])
    assert others.goal(others.compared("real"))[0] == "accuracy"


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        ((-0.01, -0.04, 0.02), "as good"),
        ((-0.01, -0.06, 0.04), "undecided"),
        ((-0.2, -0.3, -0.1), "worse"),
        ((-0.07, -0.09, -0.04), "undecided"),
        ((0.1, 0.02, 0.2), "better: audit"),
    ],
)
def test_verdicts(gap, verdict):
    assert judged(interval(*gap), 0.05) == verdict


def test_nothing_is_as_good_as_what_fails():
    """Full attention answers nothing: that an indexer loses no more than the margin is no test."""
    assert judged(interval(0.0, -0.01, 0.01), 0.05, base=0.02) == FLOOR
    haystacks, heads = tables(haystacks=64)
    failed = curves(with_accuracy(haystacks, lambda rows: [0.0] * len(rows)), heads)
    findings = Findings(failed[0])
    place = failed[0].place(sign(), Budget(32))
    assert place is not None and findings.verdict(place) == FLOOR
    assert "Exact Top-k itself scores 0.00 at k = 32" in findings.sentences()[2]
    for against in ("dense", "exact"):
        with pytest.raises(Undecided, match=r"scores 0\.00: no loss of 0\.2 could show"):
            require_equivalent(failed, WHOLE, 0.2, against=against)


def test_sparse_above_dense_is_flagged_and_so_is_a_control_above_chance():
    def leak(rows):
        lifted = {DENSE: 0.5, "sign()": 1.0, "random()": 0.75}
        return [lifted.get(r["indexer"], r["exact_match"]) for r in rows]

    haystacks, heads = tables()
    audits = Findings(curves(with_accuracy(haystacks, leak), heads)[0]).audits()
    assert any("sign() at k = 32 beats full attention by +0.50" in line for line in audits)
    assert any("control random()" in line for line in audits)


def test_gates(curve):
    haystacks, heads = tables()
    perfect = with_accuracy(haystacks, lambda rows: [1.0] * len(rows))
    assert require_equivalent(curves(perfect, heads), WHOLE, 0.2).startswith("as good")
    with pytest.raises(GateFailed, match=r"streaming_llm.*full attention"):
        require_equivalent([curve], "streaming_llm:sink=4,window=64", 0.05)
    with pytest.raises(Undecided, match=r"undecided at a margin of 0\.01"):
        require_equivalent(curves(perfect, heads), WHOLE, 0.01)
    with pytest.raises(InputError, match="no cell of quest"):
        require_equivalent([curve], "quest(page_size=8)")
    with pytest.raises(
        InputError,
        match=r"no cell of sign\(\) at k = 999 in this run; ask for one of: --require 'sign\(\)' -k 32$",
    ):
        require_equivalent([curve], "sign", budget="32,999")


def test_a_gate_against_exact_top_k_forgives_what_the_budget_costs():
    """Exact Top-k loses a third, and the indexer no more: worse than full attention, as good as exact."""
    costly = {DENSE: 1.0, "exact()": 0.67, WHOLE: 0.67, "sign()": 0.0}
    haystacks, heads = tables(haystacks=64)
    lost = with_accuracy(haystacks, lambda rows: [costly.get(r["indexer"], 0.5) for r in rows])
    found = curves(lost, heads)
    with pytest.raises(GateFailed, match="to full attention"):
        require_equivalent(found, WHOLE, 0.1)
    assert "to exact Top-k at its budget" in require_equivalent(found, WHOLE, 0.1, against="exact")
    with pytest.raises(GateFailed, match=r"-0\.67 .* to exact Top-k"):
        require_equivalent(found, "sign", 0.1, against="exact")
    rows = [r for r in haystacks.to_pylist() if (r["indexer"], r["budget"]) != ("exact()", "32")]
    without = curves(pa.Table.from_pylist(rows), heads)
    with pytest.raises(InputError, match=r"not run with exact Top-k at k = 32; run it too"):
        require_equivalent(without, WHOLE, 0.1, against="exact")
    with pytest.raises(InputError, match="against must be dense or exact"):
        require_equivalent(found, WHOLE, 0.1, against="full")


def of_books(haystacks=24, tokens=256):
    """Books of very unlike difficulty; sign() costs 0.03 nats on each of them, give or take 0.01."""
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, haystacks)
    table, heads = tables(haystacks=haystacks, questions=1, task="books")
    rows = table.to_pylist()
    for row in rows:
        lost = 0.0 if row["indexer"] == DENSE else 0.03 + rng.normal(0, 0.01)
        row |= {"nll": hard[row["haystack"]] + lost, "kl": lost, "answer_tokens": float(tokens)}
        row["token_accuracy"] = rng.binomial(tokens, 0.45) / tokens
    return pa.Table.from_pylist(rows), heads


def test_books_are_told_by_their_nll(tmp_path):
    curve = curves(*of_books())[0]
    findings, place = Findings(curve), curve.place(sign(), Budget(32))
    assert findings.losses["nll"].reach[place] > 0.3
    gap = findings.nll_to_dense
    assert gap is not None and gap.reach[place] < 0.01
    assert abs(gap.value[place] - 0.03) < gap.reach[place]
    assert "differs by +0.0" in findings.sentences()[1]
    page = write_report(write(tmp_path, *of_books())).read_text()
    assert "<td>+0.03" in page and "NLL minus full attention" in page


def test_tokens_are_counted_one_by_one():
    """6,144 tokens, each right or wrong, say more than 24 questions would."""
    accuracy = Findings(curves(*of_books())[0]).accuracy
    assert np.all((accuracy.reach > 0.007) & (accuracy.reach < 0.03))


def test_one_haystack_has_no_interval():
    findings = Findings(curves(*of_books(haystacks=1))[0])
    assert all("[one haystack]" in text for text in findings.nats(1))


def by_percent(haystacks=3):
    """Three recipes and full attention at 32 keys and at 1 % of 4,096; top_p keeps fewer than k."""
    names = (DENSE, "exact()", "sign()", "top_p(sign(), mass=0.9)")
    table, heads = tables(haystacks=haystacks)
    rows = [r for r in table.to_pylist() if r["indexer"] in names and r["budget"] in ("", "32")]
    for row in rows:
        row["kept"] = (
            None if row["indexer"] == DENSE else 12.5 if "top_p" in row["indexer"] else 32.0
        )
    sparse = [r for r in rows if r["indexer"] != DENSE]
    wider = [{**r, "budget": "1%", "kept": r["kept"] + 9.0} for r in sparse]
    return pa.Table.from_pylist(rows + wider, table.schema), heads


def test_budgets_in_per_cent_stand_at_the_keys_kept_and_every_recipe_has_a_line():
    curve = curves(*by_percent())[0]
    lines = {}
    for row in cell_rows(Findings(curve)):
        if row["kept"] is not None:
            lines.setdefault(row["name"], []).append((row["budget"], row["kept"], row["last"]))
    assert lines == {
        "top_p(sign())": [("32", 12.5, False), ("1%", 21.5, True)],
        "exact Top-k": [("32", 32.0, False), ("1%", 41.0, True)],
        "sign()": [("32", 32.0, False), ("1%", 41.0, True)],
    }
    rows = [r | {"kept": None} for r in by_percent()[0].to_pylist()]
    unseen = curves(pa.Table.from_pylist(rows, by_percent()[0].schema), by_percent()[1])[0]
    assert set(unseen.kept[1:]) == {32.0, 41.0}  # nothing was counted: k itself


def test_the_null_starts_at_exact_top_k_and_counts_the_tokens_that_need_a_key():
    """Of six tokens a window gets the first alone: five need a key, and exact Top-k has 0.9 of them right."""
    haystacks, heads = tables()
    rows = haystacks.to_pylist()
    for row in rows:
        if row["indexer"] == "exact()":
            row["exact_match"] = 0.9
        if row["indexer"].startswith("streaming_llm"):
            row["token_accuracy"] = 1 / 6
    curve = curves(pa.Table.from_pylist(rows), heads)[0]
    null = null_of(curve, Budget(32))
    assert null is not None and null.tokens == pytest.approx(5)
    assert null.at(np.array([1.0, 0.5, 0.0])) == pytest.approx([0.9, 0.9 / 32, 0.0])
    lines = lines_of(Findings(curve, budget=Budget(32)))
    for metric in ("recall", "mass"):
        end = [row for row in lines if row["line"] == f"null {metric}"][-1]
        exact = curve.mean(metric)[curve.place(EXACT, Budget(32))]
        assert (end["x"], end["y"]) == pytest.approx((exact, 0.9), abs=1e-4)
    without = [r for r in rows if not r["indexer"].startswith("streaming_llm")]
    curve = curves(pa.Table.from_pylist(without), heads)[0]
    assert null_of(curve, Budget(32)) is None
    lines = lines_of(Findings(curve, budget=Budget(32)))
    assert [row["line"] for row in lines] == ["exact", "margin", "dense"]


def test_a_report_shows_the_budgets_that_were_chosen(tmp_path):
    run = write(tmp_path, *by_percent())
    page = write_report(run, k="32, 1%").read_text()
    slug = "niah-multikey-4096-question"
    for name in ("accuracy-by-recall", "accuracy-by-mass", "accuracy-by-bytes", "bytes-by-mass"):
        for k in ("32", "1pct"):
            assert f'<figure id="{name}-{slug}-k-{k}">' in page
    assert "exact Top-k at k = 32 scores" in page and "exact Top-k at k = 1% scores" in page
    one = write_report(run, k=["1%"]).read_text()
    assert f'<figure id="accuracy-by-recall-{slug}">' in one
    assert not re.search(r'<figure id="[^"]*-k-(32|1pct)"', one)
    table = one[one.index("Cells at these budgets") :]
    assert len(re.findall(r"<td>1%</td>", table)) == 3 and "<td>32</td>" not in table
    with pytest.raises(InputError, match=r"nothing was run at k = 7; there is -k 32,1%"):
        write_report(run, k=[32, 7])


@pytest.mark.slow
def test_pictures_of_many_settings_are_written_where_asked_for(tmp_path, monkeypatch):
    drawn = list[str]()
    monkeypatch.setattr(Pictures, "add", lambda _, spec, path: drawn.append(path.name))
    names = (DENSE, "exact()", "sign()")
    rows = [r for r in tables(haystacks=2)[0].to_pylist() if r["indexer"] in names]
    none = tables(haystacks=2)[1].slice(0, 0)
    several = [{**row, "task": f"task-{n}"} for n in range(MOST_DRAWN + 1) for row in rows]
    run = write(tmp_path / "many", pa.Table.from_pylist(several), none)
    path, lines = reported(run)
    assert not drawn and not (run / "figures").exists()
    assert "5 settings stand in the page alone; --pictures" in lines[0]
    assert "stand in the page alone" not in path.read_text()
    assert reported(run, pictures=True)[1] == []
    assert sum(name.startswith("accuracy-by-fidelity-task-") for name in drawn) == 5
    drawn.clear()
    one = write(tmp_path / "one", pa.Table.from_pylist(rows), none)
    assert reported(one, pictures=False)[1] == [] and not drawn
    assert reported(one)[1] == [] and "accuracy-by-k" in drawn


def test_one_task_of_two_protocols_is_two_settings(curve):
    """A panel and a row each: a line through both would go to and fro."""
    other = replace(curve, sparse_from="answer")
    both = [curve.title, other.title]
    assert settings_of([curve]) == [curve.setting] and settings_of([curve, other]) == both
    assert [row[0] for row in overview([Findings(curve), Findings(other)], {})] == both
    drawn = list[str]()
    sheet: Any = SimpleNamespace(save=lambda *given: drawn.extend(row["setting"] for row in given[-1]["cells"]))  # fmt: skip
    rows = {id(one): cell_rows(Findings(one)) for one in (curve, other)}
    save_by_budget([curve, other], rows, sheet, [])
    assert list(dict.fromkeys(drawn)) == both


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(write(tmp_path_factory.mktemp("run"), *tables()))


def test_the_page_stands_alone_and_shows_every_figure(page):
    run, page = page.parent, page.read_text()
    # What is between scripts' tags may speak of addresses; the page itself loads nothing.
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.S)
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<link|<iframe", markup)
    slug = "niah-multikey-4096-question"
    for name in ("accuracy-by-k", "accuracy-by-recall", "accuracy-by-mass", "recall-by-head"):
        assert re.search(f'<figure id="{name}-{slug}(-0)?">', page)
    for name in (
        "accuracy-by-bytes",
        "bytes-by-fidelity",
        "accuracy-by-fidelity",
        "recall-by-head",
    ):
        assert (run / "figures" / f"{name}-{slug}.png").read_bytes()[:4] == b"\x89PNG"
        assert (run / "figures" / f"{name}-{slug}.svg").stat().st_size > 1000
    assert (run / "figures" / "accuracy-by-k.svg").exists()
    assert "What this does not show" in page
    # A line below each figure; maps share one.
    alone = re.findall(r"<figcaption>(?:(?!</figcaption>).)*Cite: ", page, re.S)
    assert len(alone) == len(re.findall(r'<figure id="(?!recall-by-head)', page))


def test_nothing_of_the_tables_is_markup_or_script_in_the_page(tmp_path):
    """A task and an indexer whose names hold markup: shown as texts, whole."""
    evil = "</script><img src=x onerror=alert(1)>"
    haystacks, heads = tables(haystacks=3, task=evil)
    rows = [{**r, "indexer": f"gone.package:{'z'}()"} if r["indexer"] == "sign()" else r for r in haystacks.to_pylist()]  # fmt: skip
    page = write_report(write(tmp_path, pa.Table.from_pylist(rows), heads)).read_text()
    markup = re.sub(r"(<script>).*?</script>", r"\1", page, flags=re.S)
    assert "<img" not in markup and "&lt;img src=x onerror=alert(1)&gt;" in page
    held = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert len(held) == 1 and json.loads(held[0])["figures"]
    assert "Content-Security-Policy" in page and "unsafe-eval" not in page


def test_figures_of_what_was_never_judged_are_left_out(tmp_path):
    """Every visible key fits in k: there is no recall, mass or cost to draw."""
    haystacks, heads = tables(haystacks=3)
    rows = [row for row in haystacks.to_pylist() if row["indexer"] in (DENSE, "exact()", "sign()")]
    for row in rows:
        row |= dict.fromkeys(("recall", "mass", "output_error", "kept", "bytes_read"))
    typed = pa.Table.from_pylist(rows, haystacks.schema)
    page = write_report(write(tmp_path, typed, heads.slice(0, 0))).read_text()
    assert re.findall('<figure id="([a-z-]+)', page) == ["accuracy-by-k-niah-multikey-"]


@pytest.mark.parametrize(
    "held",
    [
        *('{"aims": {"re', "[1]", "[" * 100_000, '{"aims": {"reach": "x"}}', '{"model": 1}'),
        *('{"aims": {"exact_between": [1]}}', '{"model": "a\\u0000"}', '{"aims": 1, "aims": {}}'),
    ],
    ids=range(8),
)
def test_a_damaged_study_is_named(tmp_path, held):
    run = write(tmp_path, *tables(haystacks=2))
    (run / "study.json").write_text(held)
    with pytest.raises(
        InputError, match=r"study\.json.*; run the study again, or delete the file$"
    ):
        write_report(run)


def test_every_accuracy_on_the_page_has_an_interval(page):
    table = page.read_text().split('aria-label="Every cell"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', table)
    assert len(rows) == len(cells())
    for row in rows:
        accuracy = re.split("</t[hd]><td>", row)[3]
        assert re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", accuracy)


@pytest.mark.slow
def test_the_page_is_the_same_when_written_again(page):
    before = page.read_text()
    assert write_report(page.parent).read_text() == before


def test_the_aims_of_a_study_are_checked(curve):
    met = checks(Findings(curve), {"aims": {"reach": 0.12, "exact_between": [0.3, 0.95]}})
    assert "the aim of ±0.12 is met" in met[0] and "is met at k = 4, 8" in met[1]
    missed = checks(Findings(curve), {"aims": {"reach": 0.01, "exact_between": [0.1, 0.2]}})
    assert "NOT met" in missed[0] and "NOT met" in missed[1]


def test_held_out_wordings_are_reported_apart():
    haystacks, heads = tables()
    rows = haystacks.to_pylist()
    for row in rows:
        row["family"] = "held-out" if row["haystack"] < 6 else "trained"
    curve = curves(pa.Table.from_pylist(rows), heads)[0]
    findings = Findings(curve)
    assert findings.sentences()[-1].startswith("On the 6 of 24 haystacks")
    trained, held_out = (findings.apart[name] for name in ("trained words", "held-out words"))
    whole = findings.accuracy.value
    assert trained.value * 18 / 24 + held_out.value * 6 / 24 == pytest.approx(whole)
    assert list(Findings(curves(haystacks, heads)[0]).apart) == ["trained words"]


def test_rows_are_condensed_as_by_hand(tmp_path):
    """Two cells, two haystacks, two questions: means over questions, trivial rows left out."""
    setting = {"task": "t", "length": 64, "sparse_from": "question"}
    cell = {"indexer": "sign()", "budget": "4", "k": 4}
    accuracy, fidelity = [], []
    for haystack in (0, 1):
        for question in (0, 1):
            place = {"haystack": haystack, "question": question}
            scores = {"exact_match": float(question), "score": 0.5, "token_accuracy": 0.75}
            rest = {"nll": 1.0, "kl": 0.0, "answer_tokens": 3 + question}
            words = {"wording": "code", "family": "trained"}
            for one in ({"indexer": DENSE, "budget": None, "k": None}, cell):
                accuracy.append(setting | one | place | words | scores | rest)
            for head, recall in ((0, 0.25), (1, 0.75)):
                numbers = {"recall": recall, "mass": recall / 2, "kept": 4, "layer": 1}
                judged = {"head": head, "level": "head", "trivial": False, "position": question}
                fidelity.append(setting | cell | place | judged | numbers)
                fidelity.append(fidelity[-1] | {"trivial": True, "recall": 1.0})
                fidelity.append(fidelity[-2] | {"level": "group", "recall": 0.0})
    keep(tmp_path, "accuracy", pa.Table.from_pylist(accuracy))
    keep(tmp_path, "fidelity", pa.Table.from_pylist(fidelity))
    haystacks, heads = condensed(tmp_path)
    rows = {(r["indexer"], r["haystack"]): r for r in haystacks.to_pylist()}
    assert len(rows) == 4
    sparse = rows["sign()", 1]
    assert (sparse["questions"], sparse["exact_match"], sparse["answer_tokens"]) == (2, 0.5, 3.5)
    assert (sparse["recall"], sparse["mass"], sparse["token_accuracy"]) == (0.5, 0.25, 0.75)
    assert (sparse["unit_recall"], sparse["unit_mass"]) == (0.0, 0.25)
    assert (sparse["rows"], sparse["trivial_rows"]) == (4, 4)
    assert rows[DENSE, 0]["recall"] is rows[DENSE, 0]["trivial_rows"] is None
    assert {(r["layer"], r["head"]): r["recall"] for r in heads.to_pylist()} == {
        (1, 0): 0.25,
        (1, 1): 0.75,
    }
    again = condensed(tmp_path)
    assert again[0].equals(haystacks)


def test_haystacks_whose_k_covers_all_count_only_where_all_do(tmp_path):
    """Two cells on three haystacks: one has a trivial haystack, the other nothing else."""
    setting = {"task": "t", "length": 64, "sparse_from": "question"}
    scores = {"exact_match": 1.0, "score": 1.0, "token_accuracy": 1.0, "nll": 1.0, "kl": 0.0}
    words = {"wording": "code", "family": "trained", "answer_tokens": 3, "question": 0}
    accuracy, fidelity = [], []
    for haystack in range(3):
        for k, recalls in ((4, (0.25, 0.75, 1.0)), (64, (1.0, 1.0, 0.5))):
            place = {"indexer": "sign()", "budget": str(k), "k": k, "haystack": haystack}
            accuracy.append(setting | place | words | scores)
            numbers = {"recall": recalls[haystack], "mass": 0.5, "kept": 4, "layer": 1}
            trivial = {"trivial": k == 64 or haystack == 2, "level": "head", "question": 0}
            fidelity += [setting | place | numbers | trivial | {"head": head} for head in (0, 1)]
    keep(tmp_path, "accuracy", pa.Table.from_pylist(accuracy))
    keep(tmp_path, "fidelity", pa.Table.from_pylist(fidelity))
    haystacks, heads = condensed(tmp_path)
    rows = {(r["budget"], r["haystack"]): r for r in haystacks.to_pylist()}
    counts = [tuple(rows["4", h][n] for n in ("rows", "trivial_rows", "trivial")) for h in (0, 2)]
    assert counts == [(2, None, False), (2, 2, True)]
    assert {r["budget"] for r in heads.to_pylist()} == {"4"}
    (curve,) = curves(haystacks, heads)
    assert curve.mean("recall").tolist() == [0.5, pytest.approx(2.5 / 3)]
    assert curve.trivial.tolist() == [False, True]
    assert note(curve, 0) == "2 of 6 rows left out: k covers all that they see"
    assert note(curve, 1) == "k covers the whole context"


def rows(run):
    """A run's rows: two haystacks of one question, in full attention and by one indexer."""
    setting = {"task": "t", "length": 64, "sparse_from": "question", "question": 0}
    cell = {"indexer": "sign()", "budget": "4", "k": 4}
    scores = {"exact_match": 1.0, "score": 1.0, "token_accuracy": 1.0, "nll": 0.5, "kl": 0.0}
    words = {"wording": "code", "family": "trained", "answer_tokens": 3}
    dense = {"indexer": DENSE, "budget": "", "k": None}
    accuracy = [
        {**setting, **one, **scores, **words, "haystack": n}
        for one in (dense, cell)
        for n in (0, 1)
    ]
    judged = {"layer": 0, "head": 0, "level": "head", "trivial": False, "recall": 0.5, "mass": 0.5}
    more = {"output_error": 0.1, "kept": 4.0, "bytes_read": 64.0, "index_bytes": 64.0}
    fidelity = [{**setting, **cell, **judged, **more, "haystack": n} for n in (0, 1)]
    keep(run, "accuracy", pa.Table.from_pylist(accuracy))
    keep(run, "fidelity", pa.Table.from_pylist(fidelity))
    return run


def test_reading_a_run_writes_nothing_and_its_report_keeps_the_condensed_tables(tmp_path):
    run = rows(tmp_path)
    before = sorted(run.rglob("*"))
    (curve,) = load(run)
    assert sorted(run.rglob("*")) == before
    page = write_report(run).read_text()
    for folder in ("accuracy", "fidelity"):
        shutil.rmtree(run / folder)
    (kept,) = load(run)
    assert (kept.cells, kept.haystacks) == (curve.cells, curve.haystacks)
    assert np.array_equal(kept.fidelity["recall"], curve.fidelity["recall"], equal_nan=True)
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("curve/*/*")}
    assert write_report(run).read_text() == page
    assert {path: path.stat().st_mtime_ns for path in run.glob("curve/*/*")} == stamps


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)


def test_two_runs_of_one_truth_agree_and_a_shifted_cell_is_found(tmp_path, capsys):
    agree = runpy.run_path(str(ROOT / "tools" / "agree.py"))["main"]
    one = write(tmp_path / "one", *tables(seed=1))
    haystacks, heads = tables(haystacks=96, seed=2)
    agree([one, write(tmp_path / "other", haystacks, heads)])
    out = capsys.readouterr().out
    assert f"{len(cells())} cells: A lies in B's interval in" in out and "; 0 differ" in out
    assert out.count("| yes |\n") == len(cells())

    spoilt = with_accuracy(
        haystacks, lambda rows: [0.1 if r["indexer"] == WHOLE else r["exact_match"] for r in rows]
    )
    with pytest.raises(GateFailed, match=f"1 of {len(cells())} cells differ"):
        agree([one, write(tmp_path / "spoilt", spoilt, heads)])
    assert re.search(r"quantized\(dtype=int8\) at k = 32 .* \| NO \|\n", capsys.readouterr().out)
    with pytest.raises(InputError, match="no cell in common"):
        agree([one, write(tmp_path / "apart", *tables(task="recite"))])

"""Leaderboards: what stands in topkit's own, what joins one, and what is said of known numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
import vl_convert as vlc
import yaml

from topkit.errors import InputError
from topkit.experiments.runs.cells import Cell
from topkit.experiments.study.blocks import Heading, Items, Paragraph, Table, as_markdown, in_page
from topkit.experiments.study.board_figures import board_rows, by_bytes, by_k, points
from topkit.experiments.study.board_tables import families, front_line, table
from topkit.experiments.study.curve import Curve
from topkit.experiments.study.drawing import compiled, filled
from topkit.experiments.study.drawing import families as families_of
from topkit.experiments.study.equal_recipes import KEY_BYTES, LEADERBOARD, RAN, ran
from topkit.experiments.study.leaderboard import boards_of, of_model
from topkit.experiments.study.page import render
from topkit.experiments.study.pictures import Pictures
from topkit.experiments.study.preset_files import FOLDER
from topkit.experiments.study.reading import Reading
from topkit.experiments.study.report import write_report
from topkit.experiments.study.sheet import Sheet
from topkit.experiments.study.standings import Standings, standings
from topkit.experiments.study.study import run_study
from topkit.experiments.study.study_file import read_study
from topkit.experiments.study.surprises import surprises
from topkit.indexers import INDEXERS
from topkit.indexers.budget import Budget
from topkit.indexers.equal_bytes import parse_byte_budgets
from topkit.indexers.spec import parse
from topkit.indexers.stated_cost import Shape

PAGE = Path(__file__).parents[2] / "docs" / "leaderboard.md"
# SmolLM2's, in float32: 768 bytes of keys a token.
SHAPE = Shape(Hq=9, Hk=3, D=64, Dv=64, T=2048, e=4)


def names(recipe: Any) -> set[str]:
    """A recipe's own name, and those of what is in it."""
    base = getattr(recipe, "base", None)
    return {type(recipe).__name__} | (names(base) if base is not None else set())


def test_no_recipes_sinks_and_window_fill_the_shortest_list():
    """A list of nothing but the ends of the context says nothing of how a recipe chooses."""
    text = (FOLDER / "leaderboard.yaml").read_text()
    least = min(int(k) for ks in re.findall(r" budgets: \[(.*)\]", text) for k in ks.split(","))
    forced = {
        type(recipe).__name__: getattr(recipe, "sink", 0)
        + (getattr(recipe, "window", 0) or 0)
        + max(getattr(recipe, "update", 0) - 1, 0)  # of those that wait to be clustered
        for recipe, _ in read_study("leaderboard").indexers
        if recipe.family != "window"
    }
    assert least == 8 and forced["squeezed"] == forced["snapkv"] == 4
    assert {name: keys for name, keys in forced.items() if keys >= least} == {}


@pytest.mark.parametrize("name", ["leaderboard", "leaderboard-quick"])
def test_every_recipe_stands_in_it_or_is_named_with_the_reason(name: str):
    study = read_study(name)
    there = {one for recipe, _ in study.indexers for one in names(recipe)}
    absent = {
        n for n, kind in INDEXERS.items() if kind.family != "combinator" and n not in there
    }  # fmt: skip
    assert absent == {"degraded", "faiss_flat", "indices", "hashattention"}
    told = PAGE.read_text()
    assert all(f"- `{one}`" in told for one in absent)


def test_three_budgets_of_bytes_and_three_of_keys_on_two_models():
    study = read_study("leaderboard")
    assert len(study.budget) == 3 and study.model == ("smollm2", "reference")
    for model in study.model:
        of = study.of(model)
        recipes = {cell.indexer for cell in of.cells if cell.indexer is not None}
        assert len({cell.budget for cell in of.cells if cell.budget is not None}) == 3
        assert len(of.cells) == 1 + 3 * len(recipes)
    assert all(budget.share for budget in study.budget)


def test_whoever_joins_stands_beside_the_others():
    study = read_study("leaderboard-quick", indexers=["sign:center=True", "sign()"])
    before = read_study("leaderboard-quick").indexers
    assert study.indexers == (*before, (parse("sign:center=True"), None))
    alone = read_study("quick", indexers=["sign:center=True"]).indexers
    assert alone == ((parse("sign:center=True"), None),)


@pytest.mark.parametrize("value", ["yes", 1, "[]"])
def test_leaderboard_is_true_or_false(tmp_path: Path, value: object):
    path = tmp_path / "mine.yaml"
    path.write_text(f"like: quick\nleaderboard: {value if value != 'yes' else repr('yes')}\n")
    with pytest.raises(InputError, match="leaderboard: expected true or false; got"):
        read_study(path)


def test_each_recipe_is_told_as_it_ran():
    cells = [Cell(parse(spec), Budget(16)) for spec in ("quest()", "sign()", "faiss_sq()")]
    rows = ran(cells, parse_byte_budgets("bytes=0.08,bytes=0.4"), {2048: SHAPE})[RAN]
    told = {(row["recipe"], row["bytes"]): row for row in rows}
    assert len(rows) == 6
    quest = told[repr(parse("quest()")), "bytes=0.08"]
    assert quest["ran"] == repr(parse("quest(page_size=25)")) and "why" not in quest
    assert told[repr(parse("sign()")), "bytes=0.4"]["why"] == "reads 24 bytes a token, of 307.2"
    assert told[repr(parse("faiss_sq()")), "bytes=0.08"]["over"] is True
    assert [row["ran"] for row in ran(cells, (), {2048: SHAPE})[RAN]] == [repr(c.indexer) for c in cells]  # fmt: skip


KS = ("8", "16")
RECIPES = {  # mean accuracy, mass, share of the keys' bytes read
    "sign()": (0.8, 0.5, 0.03),
    "rabitq()": (0.8, 0.52, 0.05),
    "quest()": (0.2, 0.45, 0.08),
    "moba()": (0.5, 0.2, 0.08),
    "streaming_llm()": (0.45, 0.3, 0.0),
    "random()": (0.02, 0.02, 0.0),
}


def known(
    model: str,
    recipes: Mapping[str, tuple[float, float, float]],
    seed: int = 0,
    haystacks: int = 40,
) -> list[Standings]:
    """Standings whose truth is known: haystacks of four questions at two k."""
    rng = np.random.default_rng(seed)
    every = {"exact()": (0.95, 0.6, 1.0), **recipes}
    cells = [Cell(), *(Cell(parse(spec), Budget(int(k))) for spec in every for k in KS)]
    truth = [1.0, *(row[0] for row in every.values() for _ in KS)]
    rates = rng.binomial(4, np.array(truth)[:, None], (len(cells), haystacks)) / 4
    mass = np.array([np.nan, *(row[1] for row in every.values() for _ in KS)])
    read = np.array([np.nan, *(768.0 * 1024 * row[2] for row in every.values() for _ in KS)])
    shape = (len(cells), haystacks)
    curve = Curve(
        "niah", 1024, "question", "score", tuple(cells), tuple(range(haystacks)), np.full(haystacks, 4.0), rates,
        rates, {}, {"mass": mass[:, None] + rng.normal(0, 0.02, shape), "bytes_read": np.broadcast_to(read[:, None], shape)},
        4.0, {}, tokens=np.full(haystacks, 1024.0), model=model,
    )  # fmt: skip
    rows = [
        {"recipe": repr(parse(spec)), "bytes": "bytes=0.08", "length": 1024, "k": k, "ran": repr(parse(spec))}
        for spec in every
        for k in KS
    ]  # fmt: skip
    rows += [{**rows[-1], "recipe": repr(parse("faiss_sq()")), "over": True, "why": "reads 288 bytes a token, of 61.44"}]  # fmt: skip
    return standings(model, [curve], {RAN: rows, KEY_BYTES: 768.0})


def test_standings_of_known_recipes():
    (board,) = known("one", RECIPES)
    of = {type(recipe).__name__: place for place, recipe in enumerate(board.recipes)}
    accuracy, mass = board.goals["accuracy"], board.goals["mass"]
    assert {accuracy.rank(of[name]) for name in ("sign", "rabitq")} == {"1 to 2"}
    assert {accuracy.rank(of[name]) for name in ("moba", "streaming_llm")} == {"3 to 4"}
    assert (accuracy.rank(of["quest"]), accuracy.rank(of["random"])) == ("5", "6")
    assert (mass.rank(of["moba"]), mass.rank(of["quest"])) == ("5", "3")
    assert board.reads[of["quest"]] / board.key_bytes == pytest.approx(0.08)
    assert board.exact["accuracy"].mean() == pytest.approx(0.95, abs=0.05)
    assert board.left_out == ("faiss_sq(bits=8) reads 288 bytes a token, of 61.44",)
    assert "exact" not in of and accuracy.values.shape == (6, 2)
    assert set(accuracy.families) == {"quantized", "pages", "window", "control"}
    assert accuracy.of_families.words(accuracy.families.index("quantized")) == "1"


@pytest.mark.parametrize("haystacks", [9, 10, 40])
def test_too_few_haystacks_for_ranks_are_said(haystacks: int):
    """Of six recipes 15 pairs ask for 10 haystacks, of four families 6 pairs for 8, of which a third chooses."""
    boards = known("one", RECIPES, haystacks=haystacks)
    told = [block.text for block in of_model(boards, "", 3) if isinstance(block, Paragraph)]
    said = [text for text in told if text.startswith("Accuracy ranks nobody here")]
    assert [text.split(": of ")[1].split(" no two")[0] for text in said] == {
        9: ["6 recipes", "4 families"],
        10: ["4 families"],
        40: [],
    }[haystacks]
    assert all("15 pairs asks for 10" in text or "6 pairs asks for 8" in text for text in said)


def test_tables_and_front_follow_the_standings():
    boards = known("one", RECIPES)
    rows = table(boards[0]).rows
    assert [row[1] for row in rows[:2]] == ["quantized", "quantized"]
    assert rows[-1][0] == "`random()`" and rows[-1][3] == "6"
    line = front_line(boards, "mass")
    assert line.index("streaming_llm") < line.index("sign") < line.index("rabitq")
    assert not {"quest", "moba", "random"} & set(line.replace("(", "`").split("`"))
    assert families(boards).rows[0][0] == "quantized"
    x, y, recipes = points(boards, "accuracy", 0)
    assert len(x) == len(y) == len(recipes) == 6


def test_surprises_are_what_tests_show():
    turned = {**RECIPES, "quest()": RECIPES["sign()"], "moba()": RECIPES["sign()"], "sign()": RECIPES["quest()"], "rabitq()": RECIPES["quest()"]}  # fmt: skip
    lines = surprises([*known("one", RECIPES), *known("two", turned, 1)])
    told = "\n".join(lines)
    assert "one, bytes=0.08, by accuracy: `streaming_llm(sink=4)` (window), which reads nothing, is better than `quest(page_size=16)`" in told  # fmt: skip
    assert "`streaming_llm(sink=4)` reads" not in told
    assert (
        "one, bytes=0.08, by mass: `sign()` reads 0.030 of the keys' bytes" not in told
    )  # two dearer alone
    assert "mass ranks otherwise than accuracy" in told and "`quest(page_size=16)` (5 by accuracy, 3 by mass)" in told  # fmt: skip
    (reverse,) = [line for line in lines if "families by accuracy" in line]
    assert "quantized above pages" in reverse and "with one, and the reverse with two" in reverse
    assert "above quantized" not in reverse
    plain = {"sign()": (0.5, 0.5, 0.03), "quest()": (0.5, 0.5, 0.08), "random()": (0.01, 0.01, 0.0)}
    assert surprises(known("one", plain)) == ["The haystacks show none: no recipe is told apart from what one would expect."]  # fmt: skip


def test_what_reads_little_and_is_better_than_many_is_told():
    dear = {spec: (0.2, 0.3, 0.08) for spec in ("quest()", "moba()", "infllm()")}
    lines = surprises(known("one", {"sign()": (0.8, 0.5, 0.03), **dear}))
    assert lines[0].startswith("one, bytes=0.08, by accuracy: `sign()` reads 0.030 of the keys' bytes and is better than 3 recipes")  # fmt: skip


def test_a_study_of_two_models_has_the_boards_of_both(tmp_path: Path):
    """By the folders that its runs stand in; of several seeds of one model it is one board."""
    for names, seeds, wanted in ((["a", "b"], [0], ["a", "b"]), (["m"], [0, 1], ["m"])):
        runs = [
            {"model": n, "seed": s, "folder": (f"{n}/seed-{s}" if len(seeds) > 1 else n) if len(names) > 1 else f"seed-{s}"}
            for n in names
            for s in seeds
        ]  # fmt: skip
        cell = Cell(parse("sign()"), Budget(8))
        about = ran([cell], (), {1024: SHAPE})
        for one in runs:
            folder = tmp_path / str(len(seeds)) / one["folder"]
            folder.mkdir(parents=True)
            (folder / "study.json").write_text(json.dumps(about))
        ones = np.ones((1, 4))
        curves = [
            Curve("t", 1024, "question", "score", (cell,), (0, 1, 2, 3), np.ones(4), ones, ones, {},
                  {"mass": ones, "bytes_read": ones}, 1.0, {}, model=n if len(names) > 1 else "")
            for n in names
        ]  # fmt: skip
        boards = boards_of(Reading(curves, [], []), tmp_path / str(len(seeds)), {"runs": runs})
        assert [board.model for (board,) in boards] == wanted


def test_figures_show_every_recipe_the_front_and_exact_top_k():
    boards = known("one", RECIPES)
    rows = board_rows(boards, "accuracy")
    names = families_of(rows)
    assert names == ["exact", "quantized", "pages", "window", "control"]
    recipes = {row["name"]: row for row in rows if row["kind"] == "recipe"}
    assert len(recipes) == 6 and all(row["last"] for row in recipes.values())
    assert recipes["sign()"]["front"] and not recipes["quest(page_size=16)"]["front"]
    (exact,) = (row for row in rows if row["kind"] == "exact")
    assert exact["gain"] == pytest.approx(0.95, abs=0.05)
    at = [board_rows(boards, "accuracy", k) for k in (0, 1)]
    assert [{row["k"] for row in its} for its in at] == [{"k = 8"}, {"k = 16"}]
    for chart, data in ((by_bytes(names, "mass"), "cells"), (by_k(names, "mass", ["8"]), "mass")):
        spec = filled(compiled(chart), {data: board_rows(boards, "mass", 0)})
        vector = vlc.vega_to_svg(spec)
        assert "sign()" in vector and "mass: attention weight kept" in vector


def test_several_k_are_drawn_for_both_goals_in_one_figure():
    boards = known("one", RECIPES)
    goals = ("accuracy", "mass")
    data = {goal: [row for k in (0, 1) for row in board_rows(boards, goal, k)] for goal in goals}
    names = families_of([row for rows in data.values() for row in rows])
    spec = compiled(alt.vconcat(*(by_k(names, goal, ["8", "16"], True) for goal in goals)))
    vector = vlc.vega_to_svg(filled(spec, data))
    assert "accuracy" in vector and "mass: attention weight kept" in vector
    # In the order of numbers, not of words; twice, for both goals.
    assert re.findall(r">k = (\d+)<", vector) == ["8", "16"] * 2


def test_blocks_say_the_same_in_markdown_and_html(tmp_path: Path):
    blocks = [Heading("A & B", 3), Paragraph("so `x<y`"), Items(["one"]), Table(["a"], [["`b`"]])]
    assert as_markdown(blocks, "") == "### A & B\n\nso `x<y`\n\n- one\n\n| a |\n| --- |\n| `b` |"
    made = in_page(blocks, Sheet(tmp_path, Pictures(None)))
    page = "".join(render("blocks.html", title="t", made=made, families=[]).split("\n"))
    assert "<h3>A &amp; B</h3><p>so <code>x&lt;y</code></p>" in page
    assert "<li>one</li>" in page and '<th scope="row"><code>b</code></th>' in page


@pytest.mark.slow
def test_a_leaderboard_runs_to_its_page_and_lets_another_join(tmp_path: Path):
    """The second run computes the cells of what joins alone."""
    file, out = tmp_path / "small.yaml", tmp_path / "run"
    keys = {
        "leaderboard": True, "lengths": [640], "haystacks": 2, "budgets": [8], "pilot": False,
        "tasks": ["niah-multikey:wording=trained,questions=1,distractors=6"], "dtype": "float32",
        "budget": ["bytes=0.08", "bytes=0.4"], "indexers": ["exact()", "quest()", "faiss_sq()"],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(keys))
    run_study(file, out=out, device="cpu")
    told = (out / "leaderboard.md").read_text()
    assert "quest(page_size=25)" in told and "quest(page_size=5)" in told
    assert "faiss_sq(bits=8) reads 192 bytes a token, of 40.96" in told
    assert json.loads((out / "study.json").read_text())[LEADERBOARD] is True
    shown = re.findall(r"\]\((figures/.*)\)", told)
    assert shown and all((out / path).is_file() for path in shown)
    before = {path.name for path in (out / "accuracy").glob("*.parquet")}
    report = run_study(file, out=out, device="cpu", indexers=["sign()"])
    assert "sign()" in (out / "leaderboard.md").read_text()
    assert "<table" in Path(report).read_text()
    after = {path.name for path in (out / "accuracy").glob("*.parquet")}
    assert before < after
    run_study(file, out=out, device="cpu")
    assert "sign()" in (out / "leaderboard.md").read_text()  # it stays
    assert after == {path.name for path in (out / "accuracy").glob("*.parquet")}
    assert write_report(out, out=tmp_path / "other") == tmp_path / "other" / "report.html"
    assert (tmp_path / "other" / "leaderboard.md").read_text() == (out / "leaderboard.md").read_text()  # fmt: skip

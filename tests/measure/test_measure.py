"""Measuring captures: rows, levels, references, resume, bad input."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

import topkit
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.capture.from_model import capture_model
from topkit.experiments.decode import driver as decode_driver
from topkit.experiments.measure.replay import Replay, joined
from topkit.experiments.measure.summary import interval
from topkit.experiments.runs.jobs import serial
from topkit.indexers import Cache, Step, quantized, sign
from topkit.indexers.base import Rest, Selection
from topkit.indexers.scored import ScoredIndex
from topkit.indexers.spec import parse
from topkit.indexers.traits import Traits


def made(samples=2, heads=4, groups=2, count=3, length=90, width=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Capture.from_tensors(
        torch.randn(samples, heads, count, width, generator=g),
        torch.randn(samples, groups, length, width, generator=g),
        torch.randn(samples, groups, length, width, generator=g),
    )


def rows(measured, **where):
    table = measured.table
    for name, value in where.items():
        table = table.filter(pc.field(name) == value)
    return table.to_pylist()


def same_rows(one, other):
    """The same cells and picks; floats may differ in their last bits, which BLAS does not promise."""
    assert one.num_rows == other.num_rows
    keys = ["sample", "layer", "head", "position", "indexer", "k", "recall", "kept", "trivial"]
    assert one.select(keys).to_pylist() == other.select(keys).to_pylist()
    for name in ("mass", "output_error", "entropy", "score_regret"):
        np.testing.assert_allclose(
            one[name].to_numpy(), other[name].to_numpy(), rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_exact_is_exact_and_random_is_chance():
    found = topkit.measure(made(samples=4, count=8), ["exact", "random"], k=[9])
    exact = rows(found, indexer="exact()")
    assert len(exact) == 4 * 4 * 8
    assert all(r["recall"] == 1 and r["score_regret"] == pytest.approx(0, abs=1e-5) for r in exact)
    chance = [r["recall"] for r in rows(found, indexer="random()")]
    assert sum(chance) / len(chance) == pytest.approx(9 / 86, abs=0.03)


def test_budgets_in_per_cent_and_trivial_rows():
    found = topkit.measure(made(), "sign", k="10%,200")
    assert {r["k"] for r in rows(found, budget="10%")} == {9}
    assert all(r["trivial"] and r["recall"] == 1 for r in rows(found, budget="200"))
    by_budget = {row["budget"]: row for row in found.summary()}
    assert by_budget["200"]["recall"] == 1
    assert by_budget["200"]["mass"] == pytest.approx(1)
    assert by_budget["200"]["note"] == "k covers the whole context"
    assert by_budget["10%"]["rows"] == by_budget["200"]["rows"] == 2 * 4 * 3
    assert by_budget["10%"]["note"] == ""


def test_trivial_rows_beside_others_are_left_out_and_counted():
    found = topkit.measure(made(count=3, length=20), "sign", k=19)
    (row,) = found.summary()
    assert row["rows"] == 2 * 4
    assert row["note"] == "16 of 24 rows left out: k covers all that they see"
    assert row["kept"] == 19


@pytest.mark.parametrize("k", [None, "none", "100%", 5000])
@pytest.mark.parametrize("reduce", [False, True])
def test_without_a_cap_an_adaptive_method_says_its_own_number(k, reduce):
    specs = ["top_p(exact(), mass=0.5)", "sign", "sampled"]
    sampled, sign, adaptive = topkit.measure(made(), specs, k, reduce=reduce).summary()
    assert 0.5 <= adaptive["mass"] < 0.7 and adaptive["kept"] < 60
    assert adaptive["own_recall"] == 1
    assert adaptive["recall"] == pytest.approx(adaptive["kept"] / 89, rel=0.02)
    for row in (sign, sampled):
        assert row["recall"] == row["own_recall"] == 1
    assert all(row["note"] == "k covers the whole context" for row in (adaptive, sign, sampled))
    assert {row["budget"] for row in (adaptive, sign)} == {"5000" if k == 5000 else "100%"}


def test_shared_lists_reach_the_summary_as_units():
    found = topkit.measure(made(), ["sign", "shared(exact(), per='group')"], 12)
    shared, alone = sorted(found.summary(), key=lambda row: row["unit"])
    assert (shared["unit"], alone["unit"]) == ("group", "head")
    assert shared["unit_recall"] > shared["recall"]
    assert shared["unit_mass"] == pytest.approx(
        np.mean([r["mass"] for r in rows(found, level="group")])
    )
    assert (alone["unit_recall"], alone["unit_mass"]) == (alone["recall"], alone["mass"])


@pytest.mark.parametrize(("per", "units"), [("group", 2), ("layer", 1)])
def test_shared_selections_are_judged_per_head_and_once_a_unit(per, units):
    found = topkit.measure(made(), f"shared(exact(), per={per})", k=12)
    heads, once = rows(found, level="head"), rows(found, level=per)
    assert len(heads) == 2 * 4 * 3
    assert len(once) == 2 * units * 3
    assert all(r["reference"] == per and r["entropy"] is None for r in once)
    assert min(r["recall"] for r in heads) < 1


def test_another_indexer_as_reference():
    found = topkit.measure(made(), ["quantized", "sign"], k=10, reference="sign")
    other = rows(found, reference="sign()")
    assert all(r["recall"] == 1 for r in other if r["indexer"] == "sign()")
    assert min(r["recall"] for r in other if r["indexer"] != "sign()") < 1
    assert all(r["mass"] is None for r in other)


def alone(recipe, tensors, i: int, k: int, seed: int = 0):
    """What an index that holds the keys up to query i's own selects, built at once."""
    n = int(tensors.positions[i]) + 1
    cache = Cache(tensors.keys[:, :, :n], tensors.values[:, :, :n])
    step = Step(
        tensors.layer,
        tensors.scaling,
        seed,
        kv_heads=tensors.keys.shape[1],
        inputs={"cache": cache, "values": cache.values},
    ).given_to(recipe)
    return recipe.build(cache.keys, step).select(tensors.queries[:, :, i : i + 1], k, step)


SPECS = (
    "quest(page_size=7)",
    "quantized",
    "keep(sign(), sink=2)",
    "refine(sign(), factor=2)",
    "degraded(0.6)",
    "random",
    "sampled(exact(), top=0.4)",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("piece", [1 << 25, 2000, 1])
def test_several_positions_are_asked_as_one_by_one(spec, piece, monkeypatch):
    """The answer at each position and budget is that of an index that never saw what comes later."""
    monkeypatch.setattr(decode_driver, "PIECE", piece)
    tensors = made(samples=1, count=5).load(0, 0)
    replay = Replay(tensors, 8, seed=3, device=torch.device("cpu"))
    recipe = parse(spec)
    chosen, _ = replay.select(recipe, [3, 8])
    for i in range(5):
        for k in (3, 8):
            single = alone(recipe, tensors, i, k, seed=3)
            ours = chosen[k].indices[:, :, i].sort().values
            assert ours.equal(single.indices[:, :, 0].sort().values)


@pytest.mark.parametrize(
    "spec", ["retroinfer(per_cluster=4, sink=1, window=2, update=8, segment=16)"]
)
def test_rests_that_grow_between_positions_are_judged_as_one_by_one(spec):
    capture = made(samples=1, count=30)
    tensors = capture.load(0, 0)
    assert int(tensors.positions[-1] - tensors.positions[0]) > 20  # clusters are renewed in between
    recipe = parse(spec)
    chosen = Replay(tensors, 12, seed=0, device=torch.device("cpu")).select(recipe, [12])[0][12]
    assert chosen.rest is not None and (chosen.rest.logits == -torch.inf).any()
    errors = [row["output_error"] for row in rows(topkit.measure(capture, spec, 12), level="head")]
    for i in (0, 10, 29):
        until = replace(
            tensors, positions=tensors.positions[: i + 1], queries=tensors.queries[:, :, : i + 1]
        )
        replay = Replay(until, 12, seed=0, device=torch.device("cpu"))
        (one, *_) = replay.exact.judged(replay.select(recipe, [12])[0][12], 12)
        for head in range(4):
            assert errors[30 * head + i] == pytest.approx(
                float(one.columns["output_error"][0, head, i]), rel=1e-4
            )


@pytest.mark.parametrize("spec", ["h2o()", "previous(sign())"])
def test_an_index_that_keeps_a_state_a_budget_is_sized_at_each(spec):
    made_of = made(samples=1, count=4)
    seen = replace(made_of.load(0, 0), prefill_queries=torch.randn(1, 4, 40, 16))
    capture = replace(made_of, tensors={**dict(made_of.tensors or {}), (0, 0): seen})
    together = topkit.measure(capture, spec, [3, 24])
    for k in (3, 24):
        (own,) = {row["index_bytes"] for row in rows(topkit.measure(capture, spec, k))}
        assert {row["index_bytes"] for row in rows(together, k=k)} == {own}
    assert len({row["index_bytes"] for row in rows(together)}) == 2


@dataclass(frozen=True)
class offset(quantized):
    """Codes about the mean of the first keys: they hold nothing of later ones, and drift."""

    def traits(self):
        return replace(super().traits(), drifts=True)

    def build(self, keys, step):
        index = _About(self)
        index.mean = keys.mean(2, keepdim=True)
        index.append(keys, step)
        return index


class _About(ScoredIndex):
    mean: torch.Tensor
    appends = 0

    def append(self, keys, step):
        self.appends += 1
        super().append(keys - self.mean, step)


def test_pseudo_keys_are_those_of_each_query_where_others_have_more_or_none():
    values = torch.randn(1, 2, 1, 3, 4)
    few = Rest(values[:, :, :, :1], logits=torch.tensor([[[[2.0]], [[3.0]]]]))
    many = Rest(values, logits=torch.arange(6.0).view(1, 2, 1, 3))
    slots = torch.zeros(1, 2, 1, 1, dtype=torch.int64)
    rest = joined([Selection(slots), Selection(slots, rest=few), Selection(slots, rest=many)]).rest
    assert rest is not None and rest.logits is not None and rest.share is None
    none = -torch.inf
    assert rest.logits[0, 0].tolist() == [[none] * 3, [2.0, none, none], [0.0, 1.0, 2.0]]
    assert rest.logits[0, 1].tolist() == [[none] * 3, [3.0, none, none], [3.0, 4.0, 5.0]]
    assert torch.equal(rest.values[:, :, 2:], values)
    assert torch.equal(rest.values[:, :, 1:2, :1], values[:, :, :, :1])
    assert not rest.values[:, :, 0].any() and not rest.values[:, :, 1, 1:].any()


def test_clusters_that_come_while_decoding_are_measured():
    queries, keys, values = (torch.randn(1, heads, 40, 8) for heads in (2, 1, 1))
    capture = Capture.from_tensors(queries, keys, values)
    recipe = "retroinfer(per_cluster=2, sink=1, window=2, update=4, segment=8, estimate=1.0)"
    rows = topkit.measure(capture, recipe, 6).table
    assert set(rows["position"].to_pylist()) == set(range(40))
    # A centroid's estimate is never above its cluster's weight, arXiv 2505.02922, equation 3.
    assert max(rows["mass_estimate"].drop_null().to_pylist()) < 1 + 1e-5


def test_a_recipe_that_drifts_is_built_before_the_first_query_and_asked_at_once():
    tensors = made(samples=1, count=5).load(0, 0)
    recipe, first = offset(), int(tensors.positions[0])
    chosen, _ = Replay(tensors, 8, 0, torch.device("cpu")).select(recipe, [8])
    mean = tensors.keys[:, :, :first].mean(2, keepdim=True)
    for i in range(5):
        n = int(tensors.positions[i]) + 1
        step = Step(kv_heads=tensors.keys.shape[1])
        index = quantized().build(tensors.keys[:, :, :n] - mean, step)
        one = index.select(tensors.queries[:, :, i : i + 1], 8, step).indices[:, :, 0]
        assert chosen[8].indices[:, :, i].sort().values.equal(one.sort().values)


def test_quest_does_not_see_the_future():
    """A page bound that holds later keys would find the needle that comes after the query."""
    keys = torch.zeros(1, 1, 16, 4)
    keys[0, 0, 15] = 100.0
    keys[0, 0, 3] = 1.0
    capture = Capture.from_tensors(torch.ones(1, 1, 1, 4), keys, scaling=1.0, positions=[[13]])
    replay = Replay(capture.load(0, 0), 4, 0, torch.device("cpu"))
    chosen, _ = replay.select(parse("quest(page_size=4)"), [4])
    assert set(chosen[4].indices.flatten().tolist()) == {0, 1, 2, 3}


def test_inputs_that_were_not_captured_are_named_and_nothing_is_left_behind(tmp_path):
    from topkit.indexers import Indexer

    class Asks(Indexer):
        def traits(self):
            return Traits(needs=frozenset({"hidden", "rope"}))

        def __repr__(self):
            return "asks()"

    options: list[dict[str, Any]] = [
        {"indexers": Asks()},
        {"indexers": "sign", "reference": Asks()},
    ]
    for asked in options:
        with pytest.raises(InputError, match=r"asks.. needs hidden, rope.*--hidden"):
            topkit.measure(made(), **asked, k=4, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rerun_computes_what_is_missing_and_no_more(tmp_path):
    whole = topkit.measure(made(), ["sign", "exact"], k=[5, 9])
    topkit.measure(made(), "sign", k=5, out=tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "fidelity").glob("*.parquet")}
    again = topkit.measure(made(), ["sign", "exact"], k=[5, 9], out=tmp_path)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    same_rows(again.table, whole.table)


def test_rows_of_two_captures_never_mix(tmp_path):
    topkit.measure(made(seed=1), "sign", k=5, out=tmp_path)
    with pytest.raises(InputError, match=r"holds another run .capture differ"):
        topkit.measure(made(seed=2), "sign", k=5, out=tmp_path)
    topkit.measure(made(seed=2), "sign", k=5, out=tmp_path, force=True)


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    topkit.measure(made(), "sign", k=5, out=tmp_path)
    part = next((tmp_path / "fidelity").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(InputError, match=part.name):
        topkit.measure(made(), "sign", k=5, out=tmp_path)


def test_reduced_rows_are_means_over_positions(tmp_path):
    full = topkit.measure(made(), "sign", k=7)
    small = topkit.measure(made(), "sign", k=7, reduce=True)
    assert small.table.num_rows == 2 * 4
    for row in small.table.to_pylist():
        same = rows(full, sample=row["sample"], head=row["head"])
        assert row["rows"] == 3
        assert row["recall"] == pytest.approx(sum(r["recall"] for r in same) / 3)
        assert row["recall_min"] == min(r["recall"] for r in same)
    a, b = full.summary()[0], small.summary()[0]
    assert a["recall"] == pytest.approx(b["recall"])
    assert a["worst"] == b["worst"]


@pytest.mark.slow
def test_workers_give_the_same_rows():
    alone = topkit.measure(made(), ["sign", "random"], k=7)
    shared = topkit.measure(made(), ["sign", "random"], k=7, jobs=2)
    same_rows(alone.table, shared.table)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_rows(tmp_path):
    """SIGKILL, some times over, then to the end: the rows of one unbroken run."""
    capture = made(samples=6, count=16, length=400)
    capture.save(tmp_path / "capture")
    call = (
        "import topkit, sys; topkit.measure(sys.argv[1], ['quest', 'sign', 'exact'], k='5,20', "
        "out=sys.argv[2])"
    )
    command = [sys.executable, "-c", call, str(tmp_path / "capture"), str(tmp_path / "run")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for pause in (1.2, 1.6, 2.0):
        process = subprocess.Popen(command, env=env)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = topkit.measure(
        tmp_path / "capture", ["quest", "sign", "exact"], k="5,20", out=tmp_path / "run"
    )
    whole = topkit.measure(capture, ["quest", "sign", "exact"], k="5,20")
    same_rows(resumed.table, whole.table)
    assert not list((tmp_path / "run" / "fidelity").glob("*.tmp"))
    assert len(list((tmp_path / "run" / "fidelity").glob("*.parquet"))) == 6
    assert pq.read_table(tmp_path / "run" / "fidelity").num_rows == whole.table.num_rows


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_intervals_cover_what_they_say_with_few_samples(samples):
    """Rows of one sample are alike: taken as independent they would promise too much."""
    rng = np.random.default_rng(0)
    hits, clusters = 0, np.arange(samples).repeat(50)
    for centres in rng.normal(0.5, 0.02, (1000, samples)):
        low, high = interval(centres.repeat(50) + rng.normal(0, 0.001, 50 * samples), clusters)
        assert low is not None and high is not None
        hits += low <= 0.5 <= high
    assert 0.93 < hits / 1000 < 0.97


def test_intervals_are_students_over_the_means_of_samples():
    values, clusters = np.array([0.2, 0.4, 0.5, 0.7, 0.9, 0.9]), np.array([4, 4, 1, 1, 9, 9])
    wanted = stats.t.interval(0.95, 2, 0.6, np.std([0.3, 0.6, 0.9], ddof=1) / 3**0.5)
    assert (
        interval(values, clusters) == pytest.approx((0.0, 1.0)) and wanted[0] < 0 and wanted[1] > 1
    )
    inner = stats.t.interval(0.5, 2, 0.6, np.std([0.3, 0.6, 0.9], ddof=1) / 3**0.5)
    assert interval(values, clusters, 0.5) == pytest.approx(inner)
    assert interval(values, clusters * 0) == (None, None)
    assert interval(values * np.nan, clusters) == (None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "at least 1"),
        ({"k": "150%"}, "per cent"),
        ({"k": []}, "has no budget; say how many keys"),
        ({"indexers": sign}, r"write sign\(\)"),
        ({"indexers": ["exact", sign]}, r"write sign\(\)"),
        ({"indexers": "exat"}, "did you mean 'exact'"),
        ({"indexers": "quest(page_sise=4)"}, "did you mean 'page_size'"),
        ({"layers": [7]}, "no layer"),
        ({"jobs": 0}, "jobs"),
        ({"device": "cuda"}, "no GPU"),
    ],
)
def test_bad_input_is_refused(given, message):
    if "device" in given and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        topkit.measure(**({"capture": made(), "indexers": "sign", "k": 4} | given))


def test_an_undeclared_step_input_stays_hidden():
    with pytest.raises(InputError, match="declare"):
        Step(inputs={"hidden": torch.zeros(1)}).given_to(parse("sign")).hidden  # noqa: B018


def test_the_rows_are_counted_before_the_run(tmp_path):
    """Questions differ in length, and so do the positions captured."""
    capture = capture_model(
        "reference", task="niah-single", length=512, samples=4, layers="0", out=tmp_path
    )
    counts = {len(one["positions"]) for one in capture.manifest["samples"]}
    assert len(counts) > 1
    for reduce in (False, True):
        plan = topkit.measure.plan(capture, ["sign", "random"], k=[4, 8], reduce=reduce)
        heads = topkit.run(plan).table.filter(pc.field("level") == "head").num_rows
        assert plan.rows == heads
        assert plan.lines()[0].startswith(f"4 layers of samples, 4 cells: {heads:,} rows")


def test_a_plan_writes_nothing_and_counts_what_is_there(tmp_path):
    out = tmp_path / "run"
    plan = topkit.measure.plan(made(), "sign", k=[5, 9], out=out)
    assert not out.exists()
    assert (len(plan.jobs), plan.done, plan.rows) == (2, 0, 2 * 2 * 4 * 3)
    topkit.measure(made(), "sign", k=5, out=out)
    assert topkit.measure.plan(made(), "sign", k=5, out=out).done == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    more = topkit.measure.plan(made(), "sign", k=[5, 9], out=out)
    assert (len(more.jobs), more.done) == (2, 0)
    assert topkit.measure.plan(made(), "sign", k=5, out=out, force=True).done == 0
    with pytest.raises(InputError, match="holds another run"):
        topkit.measure.plan(made(seed=1), "sign", k=5, out=out)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_tells_each_job_and_does_none_twice(tmp_path):
    events = []
    plan = topkit.measure.plan(made(), "sign", k=5, out=tmp_path)
    measured = topkit.run(plan, progress=events.append)
    assert [(e.verb, e.done, e.jobs) for e in events] == [("measuring", n, 2) for n in range(3)]
    events.clear()
    same_rows(topkit.run(plan, progress=events.append).table, measured.table)
    assert [(e.done, e.jobs) for e in events] == [(0, 0)]


def test_another_runner_gives_the_same_rows(tmp_path):
    plan = topkit.measure.plan(made(), "sign", k=5)
    backwards = topkit.run(plan, runner=lambda work, jobs: serial(work, jobs[::-1]))
    same_rows(backwards.table, topkit.run(plan).table)


def test_nothing_is_printed(tmp_path, capfd):
    topkit.measure(made(), "sign", k=5, out=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_arguments_of_0_1_still_work_and_warn_once(tmp_path):
    plans: list = []
    old: dict = {"quiet": True, "dry_run": True, "on_plan": plans.append}
    with pytest.warns(FutureWarning) as warned:
        assert topkit.measure(made(), "sign", k=5, out=tmp_path / "run", **old) is None
    assert len(warned) == 1
    assert all(name in str(warned[0].message) for name in old)
    assert warned[0].filename == __file__
    assert [(plan["jobs"], plan["done"], plan["rows"]) for plan in plans] == [(2, 0, 24)]
    assert not (tmp_path / "run").exists()
    quiet: dict = {"quiet": True}
    with pytest.warns(FutureWarning, match="quiet: nothing is printed"):
        assert topkit.measure(made(), "sign", k=5, **quiet).table.num_rows == 24
    wrong: dict = {"quite": True}
    with pytest.raises(TypeError, match="quite"):
        topkit.measure(made(), "sign", k=5, **wrong)


def test_a_metric_that_no_row_has_is_named():
    queries, keys = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 9, 4)
    rows = topkit.measure(Capture.from_tensors(queries, keys), "exact", 2)
    with pytest.raises(InputError, match="the rows have no metric 'nope'; did you mean"):
        rows.summary(["nope"])
    assert rows.summary(["top1"])[0]["top1"] == 1


def test_only_a_plan_is_run():
    with pytest.raises(InputError, match=r"expected a plan, .* got 'x'"):
        topkit.run("x")  # type: ignore[arg-type]

"""The benchmarks, run at toy size on a CPU, and the command that runs them. No test judges a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from topkit.cli import exits
from topkit.cli.commands import app
from topkit.errors import GateFailed, InputError
from topkit.experiments.bench import (
    captured,
    compare,
    cpu_kernels,
    kinds,
    measure_speed,
    rows,
    run,
    targets,
)
from topkit.experiments.bench.machine import processor
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, cases: Any) -> None:
    monkeypatch.setitem(run.BENCHES, name, run.Bench(cases, run.BENCHES[name].devices))


# Those that take a second or more.
SLOW = (
    "step",
    "summary",
    "report",
    "generate",
    "truth",
    "attach",
    "kept",
    "ann",
    "recipes",
    "appends",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in run.BENCHES]
)
def test_a_benchmark_runs_at_toy_size(name: str) -> None:
    seen, saved = [], []
    found = run.run_benches([name], tiny=True, report=seen.append, save=saved.append)
    assert found == seen
    assert saved == [found]
    assert not run.errors(found)
    kernels = {"bandwidth", name} if run.BENCHES[name].of_kernels else {name}
    assert {one["bench"] for one in found} >= kernels
    for one in found:
        assert tuple(one) == rows.COLUMNS
        assert 0 <= one["low"] <= one["median"] <= one["high"]
        assert one["repeats"] and one["unit"]
        if one["ratio"] is not None:
            assert one["against"] and one["ratio_low"] <= one["ratio"] <= one["ratio_high"]
        for fact in ("device", "cores", "torch", "topkit", "python", "date"):
            assert one[fact]
    if name == "step":
        steps = [one for one in found if one["bench"] == "step"]
        assert {one["dtype"] for one in steps} == {"sign", "int4", "lightning"}
        for one in steps:
            assert one["against"] == "SDPA math" and one["speedup"] > 0
            if "projected" in one["what"]:  # by random weights
                assert one["mass_ratio"] is None
                continue
            assert 0 < one["mass_ratio"] <= one["shared_mass_ratio"] <= 1.001
            real = one["smollm2_mass_ratio"]
            assert (real is None) == (one["dtype"] == "lightning")
            assert one["useless"] == ((one["mass_ratio"] if real is None else real) < 0.9)
            if "a head" in one["what"]:  # its own best list is each head's Top-k
                assert one["mass_ratio"] == pytest.approx(one["shared_mass_ratio"], abs=1e-4)
                assert one["mass_ratio"] > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, b in run.BENCHES.items() if run.CUDA in b.devices])
def test_a_benchmark_runs_at_toy_size_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    found = run.run_benches([name], device="cuda", tiny=True, report=lambda _: None)
    assert not run.errors(found)


@pytest.mark.parametrize(
    ("names", "how", "message"),
    [
        (["score"], {}, "score is of a GPU: --device cuda, or --tiny"),
        (["truth", "capture"], {"device": "cuda"}, "capture is of a CPU"),
        (["capture"], {"device": "cuda", "tiny": True}, "capture is of a CPU"),
        (["truth"], {"device": "cuda", "repeats": 3}, "--repeats is of the benchmarks of a CPU"),
        (["truth"], {"layers": 3}, "--layers is of generate"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    names: list[str], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run.run_benches(names, **how)


def test_every_benchmark_of_a_device_runs_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cases(session: Session):
        return iter(())

    for name in run.BENCHES:
        replaced(monkeypatch, name, cases)
    counts = []
    run.run_benches(repeats=3, save=lambda rows: counts.append(len(rows)))
    assert counts == [0] * 13  # all but those of a GPU: truth, measure, ..., recipes, appends, kept


def test_every_limit_is_of_a_case_that_is_run() -> None:
    at = Session(torch.device("cpu"), Scale(), {})
    named = {(name, what) for name, b in run.BENCHES.items() for what, _ in b.cases(at)}
    inner = {("step", f"{kind}, batch {b} x {n}") for kind in kinds.KINDS for b in (1, 8)
             for n in ("128K", "512K", "1M")}  # fmt: skip
    inner |= {("measure", f"{recipe}, 3 budgets x 32K") for recipe in measure_speed.BY_HAND}
    inner |= {("decode", f"a step, {spec}, 16K") for spec in cpu_kernels.SPECS}
    inner |= {("decode", captured.what_of(s, n)) for s in captured.SPECS for n in Scale().contexts}
    inner |= {("truth", "memory above the tensors")}
    inner |= {("summary", f"{what}, 20,000,000 rows, memory") for what in ("measure", "report")}
    inner |= {("topk-attention", f"{what}, {n}, d {d}") for what in ("memory", "thresholds")
              for n in ("16K", "32K") for d in (64, 128)}  # fmt: skip
    assert set(targets.TARGETS) <= named | inner


def test_an_unknown_benchmark_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="'gather'"):
        run.run_benches(["gathr"], tiny=True)


def test_what_fails_is_a_row_and_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(session: Session):
        def fails():
            yield session.row("score", "one", "topkit", [3.0, 1.0, 2.0])
            raise RuntimeError("no such\nkernel")

        def narrow():
            raise torch.OutOfMemoryError("CUDA out of memory")

        yield "two", fails
        yield "three", narrow
        yield "four", lambda: [session.row("score", "four", "topkit", [5.0])]

    replaced(monkeypatch, "score", cases)
    found = run.run_benches(["score"], tiny=True, report=lambda _: None)[2:]
    assert [one["what"] for one in found] == ["one", "two", "three", "four"]
    assert [one["median"] for one in found] == [2.0, None, None, 5.0]
    assert run.errors(found) == ["score, two, topkit: RuntimeError: no such kernel"]
    assert found[2]["note"] == "skipped: out of memory"  # too small a GPU is no error


def test_a_rival_may_lack_an_operation_and_topkit_may_not() -> None:
    session = Session(torch.device("cpu"), Scale.tiny())

    def lacks() -> Any:
        raise NotImplementedError("No operator found\nfor these inputs")

    rival = session.attempt("dense", "one", "xformers", lacks)
    assert rival["note"] == "skipped: No operator found" and not rival["error"]
    ours = session.attempt("dense", "one", "topkit", lacks)
    assert ours["error"].startswith("NotImplementedError: No operator found")


# --- the command


def row(**given: Any) -> dict[str, Any]:
    usual = {"implementation": "topkit", "unit": "us", "device": processor()}
    return dict.fromkeys(rows.COLUMNS) | usual | given


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["bench", "--tiny", *words])


def test_the_command_compares_and_fails_on_what_is_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cases(session: Session):
        yield "one", lambda: [session.row("score", "one", "topkit", [99.0, 100.0, 101.0])]

    replaced(monkeypatch, "score", cases)
    old, path = (
        row(bench="score", what="one", median=100.0, low=99.0, high=101.0),
        tmp_path / "old.csv",
    )
    rows.write_rows(path, [old | {"median": 200.0, "low": 199.0, "high": 201.0}])
    done = call("score", "--compare", str(path))
    assert done.exit_code == 0 and compare.FASTER in done.output
    rows.write_rows(path, [old | {"median": 50.0, "low": 49.0, "high": 51.0}])
    done = call("score", "--compare", str(path))
    assert isinstance(done.exception, GateFailed) and "rows are slower" in str(done.exception)
    rows.write_rows(path, [old | {"device": "NVIDIA H200"}])
    assert isinstance(call("score", "--compare", str(path)).exception, InputError)


def test_json_stays_json_where_runs_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cases(session: Session):
        yield "one", lambda: [session.row("score", "one", "topkit", [99.0, 100.0, 101.0])]

    replaced(monkeypatch, "score", cases)
    path = tmp_path / "old.csv"
    rows.write_rows(path, [row(bench="score", what="one", median=100.0, low=99.0, high=101.0)])
    told = json.loads(call("score", "--json", "--compare", str(path)).stdout)
    assert [one["what"] for one in told["rows"]][-1] == "one"
    assert {"verdict": compare.SAME, "what": "one"}.items() <= told["compared"][0].items()
    alone = json.loads(call("score", "--json").stdout)
    assert [one["what"] for one in alone] == [one["what"] for one in told["rows"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "--out", "x.csv"], "--tiny writes nothing"),
        (["score", "--compare", "nowhere.csv"], "cannot read nowhere.csv"),
        (["mesure"], "'measure'"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(words: list[str], message: str) -> None:
    done = call(*words)
    assert isinstance(done.exception, InputError) and message in str(done.exception)


@pytest.mark.parametrize(
    ("old", "error", "message"),
    [
        ({"device": "NVIDIA H200"}, InputError, "the old rows are of NVIDIA H200, not "),
        ({"what": "another"}, GateFailed, "nothing to compare: no benchmark"),
    ],
)
def test_a_machine_is_compared_with_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    old: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def cases(session: Session):
        yield "one", lambda: [session.row("truth", "one", "topkit", [1.0])]

    replaced(monkeypatch, "truth", cases)
    path = tmp_path / "old.csv"
    given = {"bench": "truth", "what": "one", "median": 1.0, "low": 1.0, "high": 1.0, **old}
    rows.write_rows(path, [row(**given)])
    done = call("truth", "--compare", str(path))
    assert isinstance(done.exception, error) and message in str(done.exception)
    # What was measured is shown all the same.
    assert ("one" in done.output) == (error is GateFailed)


def test_rows_are_written_after_each_benchmark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, seen = tmp_path / "deep" / "rows.csv", []

    def cases(session: Session):
        seen.append(len(rows.read_rows(path)) if path.exists() else 0)
        name = f"case {len(seen)}"
        yield name, lambda: [session.row("x", name, "topkit", [1.0])]

    for name in ("truth", "measure"):
        replaced(monkeypatch, name, cases)
    done = CliRunner().invoke(app, ["bench", "truth", "measure", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert seen == [0, 1] and len(rows.read_rows(path)) == 2


def test_the_command_ends_with_1_where_a_row_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(session: Session):
        yield "one", lambda: 1 / 0

    replaced(monkeypatch, "score", cases)
    done = call("score")
    assert exits.exit_code(lambda: _raise(done.exception)) == exits.GATE_FAILED
    assert "ZeroDivisionError" in done.output


def _raise(error: BaseException | None) -> None:
    assert error is not None
    raise error

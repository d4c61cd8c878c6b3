"""The benchmarks of a GPU, run at toy size on the CPU, and what is made of their rows."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from topkit.cli import exits, summary
from topkit.cli.commands import app
from topkit.errors import GateFailed, InputError
from topkit.experiments.bench import compare, data, formulas, packed, rows, run, step, targets
from topkit.experiments.bench import cpu as bench
from topkit.experiments.bench.session import Scale, Session

CPU = torch.device("cpu")


def session(**machine: Any) -> Session:
    return Session(CPU, Scale.tiny(), {"device": "cpu", **machine})


def row(**given: Any) -> dict[str, Any]:
    """A row of a table, of an H200 unless said otherwise."""
    told = {
        "bench": "step", "what": "sign, batch 8 x 128K", "implementation": "topkit", "unit": "us",
        "median": 100.0, "low": 99.0, "high": 101.0, "device": "NVIDIA H200", "torch": "2.11.0",
        "triton": "3.6.0", "cuda": "13.0", "driver": "580", "date": "2026-11-25",
    }  # fmt: skip
    return dict.fromkeys(rows.COLUMNS) | told | given


# --- the runs


@pytest.mark.parametrize("name", run.SPEEDS)
def test_a_benchmark_runs_at_toy_size(name: str) -> None:
    seen, saved = [], []
    found = run.run_speeds([name], device="cpu", tiny=True, report=seen.append, save=saved.append)
    assert found == seen
    assert saved == [found]
    assert not run.errors(found)
    assert {one["bench"] for one in found} >= {"bandwidth", name}
    for one in found:
        assert tuple(one) == rows.COLUMNS
        assert 0 <= one["low"] <= one["median"] <= one["high"]
        assert one["repeats"] and one["unit"]
        for fact in ("device", "torch", "topkit", "date"):
            assert one[fact]
    if name == "step":
        steps = [one for one in found if one["bench"] == "step"]
        assert {one["dtype"] for one in steps} == {"sign", "int4", "lightning"}
        for one in steps:
            assert 0 < one["mass_ratio"] <= one["shared_mass_ratio"] <= 1.001
            assert one["useless"] == (one["mass_ratio"] < 0.9)
            assert one["against"] == "SDPA math" and one["ratio"] > 0
            if "a head" in one["what"]:  # its own best list is each head's Top-k
                assert one["mass_ratio"] == pytest.approx(one["shared_mass_ratio"], abs=1e-4)
                assert one["mass_ratio"] > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("name", run.SPEEDS)
def test_a_benchmark_runs_at_toy_size_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    found = run.run_speeds([name], device="cuda", tiny=True, report=lambda _: None)
    assert not run.errors(found)


def test_a_cpu_is_for_toys() -> None:
    with pytest.raises(InputError, match="--tiny"):
        run.run_speeds(device="cpu")


def test_an_unknown_benchmark_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="'gather'"):
        run.run_speeds(["gathr"], device="cpu", tiny=True)


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

    monkeypatch.setitem(run.SPEEDS, "score", cases)
    found = run.run_speeds(["score"], device="cpu", tiny=True, report=lambda _: None)[2:]
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


# --- the numbers


def test_bytes_and_roofline_by_hand() -> None:
    # facts: 128K keys, 8 KV heads of 128, bf16, k 2048, 4.3e12 B/s: microseconds of one step.
    length, by_hand = 131072, {"fp8_e4m3": 33.2, "int4": 17.6, "sign": 5.9, "lightning": 6.0}
    for dtype, microseconds in by_hand.items():
        ideal = formulas.step(dtype, 1, length, 8, 128, 2048).ideal
        assert ideal / 4.3e6 == pytest.approx(microseconds, abs=0.06)
    assert formulas.dense(1, length, 8, 128).ideal / 4.3e6 == pytest.approx(124.9, abs=0.1)
    # Counted: a scale of four bytes a key and head, but for sign; lightning has one head.
    assert formulas.index("int4", 2, 10, 8, 128).counted == 2 * 10 * 8 * (64 + 4)
    assert formulas.index("sign", 2, 10, 8, 128).counted == 2 * 10 * 8 * 16
    assert formulas.index("lightning", 2, 10, 8, 128).counted == 2 * 10 * 132
    assert formulas.scores(8, 10, 8).counted == 8 * 10 * 8 * 4
    assert formulas.gather(1, 8, 2048, 128).counted == 8 * 2048 * 2 * 128 * 2
    shared, own = (formulas.step("sign", 1, 0, 8, 128, 2048, heads) for heads in (None, 32))
    assert own.counted == 4 * shared.counted == 4 * 8 * 2048 * 2 * 128 * 2
    shared, own = (formulas.step("sign", 2, 10, 8, 128, 0, heads) for heads in (None, 32))
    assert own.counted - shared.counted == 2 * (2 * 10 * 32 * 4) and own.ideal == shared.ideal


def test_shares_of_a_copy() -> None:
    found = rows.shares(100.0, formulas.Bytes(2e8, 1e8), 4000.0)
    assert found["bandwidth"] == pytest.approx(2000.0)
    assert found["copy_share"] == pytest.approx(0.5)
    assert found["roofline_share"] == pytest.approx(0.25)


def test_ratios_say_how_many_times_faster() -> None:
    at = session()
    time = at.row("x", "y", "topkit", [10.0], against=("torch", 40.0))
    rate = at.row("x", "y", "topkit", [40.0], unit="tokens/s", against=("SDPA", 10.0))
    assert time["ratio"] == rate["ratio"] == 4.0
    assert (time["against"], rate["against"]) == ("torch", "SDPA")


def test_a_limit_is_of_topkit_on_an_h200() -> None:
    kept = targets.judged(row(ratio=12.0))
    assert kept == {"limit": ">= 10 x", "within": True}
    assert targets.judged(row(ratio=9.0))["within"] is False
    assert "H200" in targets.judged(row(ratio=9.0, device="NVIDIA H100"))["note"]
    assert targets.judged(row(implementation="torch")) == {}
    assert targets.judged(row(bench="select", what="64 x 1M, k 2048", median=161.0)) == {
        "limit": "<= 160 us",
        "within": False,
    }
    assert "within" not in targets.judged(row(ratio=None))


def test_every_limit_is_of_a_case_that_is_run() -> None:
    at = Session(CPU, Scale(), {})
    named = {(name, what) for name, cases in run.SPEEDS.items() for what, _ in cases(at)}
    within = {("step", f"{kind}, batch {b} x {n}") for kind in step.KINDS for b in (1, 8)
              for n in ("128K", "512K", "1M")}  # fmt: skip
    assert set(targets.TARGETS) <= named | within | {("truth", "memory above the tensors")}


# --- the captured tensors


@pytest.fixture(scope="module")
def of_model() -> data.Recorded:
    return data.recorded(session())


def test_wider_heads_keep_every_dot_product(of_model: data.Recorded) -> None:
    cache = data.stretched(session(), of_model, 300)
    assert cache.keys.shape == (2, 2, 300, 128)
    for head in range(8):
        group, source = head // 4, head // 4 * 3 + head % 4 % 3
        want = of_model.queries[:, source, 0, None] @ of_model.keys[:, group, :300].mT
        ours = cache.queries[:, head].float() @ cache.keys[:, group].float().mT
        torch.testing.assert_close(ours, want, rtol=0.02, atol=0.02 * want.abs().max().item())


def test_lightning_selects_as_its_own_heads_would(of_model: data.Recorded) -> None:
    at, length = session(), of_model.keys.shape[2]
    cache = data.stretched(at, of_model, length)
    hits = torch.relu(of_model.index_queries @ of_model.index_keys.mT)
    want = (hits * of_model.gates.mT[..., None]).sum(1).topk(32).indices
    _, slots = step.Decoding(cache, step.encoded(at, "lightning", cache.index_keys), 32).step(
        slice(None)
    )
    for theirs, ours in zip(want[:, 0].tolist(), slots[:, 0, 0].tolist(), strict=True):
        assert len({*theirs} & {*ours}) >= 28  # fp8 moves the last few


def test_what_repeats_does_not_tie(of_model: data.Recorded) -> None:
    length = of_model.keys.shape[2]
    keys = data.stretched(session(), of_model, length + 100).keys.float()
    first, again = keys[:, :, :100], keys[:, :, length:]
    assert (first != again).any(-1).all()
    assert (first - again).norm() < 0.1 * first.norm()


# --- the tables


def test_rows_come_back_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.csv"
    rows.write_rows(
        path, [row(median=123.456, high=124.0, bytes=7, useless=True, ratio=None, note="a, b")]
    )
    (found,) = rows.read_rows(path)
    assert tuple(found) == rows.COLUMNS
    assert found["median"] == "123.5" and found["bytes"] == "7" and found["useless"] == "True"
    assert found["ratio"] == "" and found["note"] == "a, b"
    assert summary.gpu([found])[0]["what"] == "step: sign, batch 8 x 128K*"


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no table of benchmarks"):
        rows.read_rows(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot read"):
        rows.read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize("name", rows.TIMES)
def test_times_that_are_no_numbers_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.csv"
    untimed = row(what="untimed", median=None, low=None)
    rows.write_rows(path, [row(), untimed, row(what="third", **{name: "12 us"})])
    with pytest.raises(InputError, match=f"third.*: {name} must be a number; got '12 us'"):
        rows.read_rows(path)
    path.write_text(path.read_text().replace(f",{name},", ",other,"))
    with pytest.raises(InputError, match=rf"it lacks \['{name}'\]"):
        rows.read_rows(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "holds no row that was timed"),
        ([row(median=None)], "holds no row that was timed"),
        ([row(), row(what="another"), row()], "holds step, sign, .* twice"),
        ([row(low=102.0)], "low, median and high must ascend"),
        ([row(note="x" * 200_000)], "cannot read"),
    ],
)
def test_rows_that_no_benchmark_writes_are_refused(
    tmp_path: Path, given: list[Any], message: str
) -> None:
    path = tmp_path / "x.csv"
    rows.write_rows(path, given)
    with pytest.raises(InputError, match=message):
        rows.read_rows(path)


def test_a_csv_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows.write_rows(path, [row()])
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(rows.read_rows(path)) == 1


# --- two runs


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ({"median": 110.0, "low": 109.0, "high": 111.0}, compare.SLOWER),  # 8 apart, 4 of spread
        ({"median": 105.0, "low": 104.0, "high": 106.0}, compare.SAME),
        ({"median": 120.0, "low": 105.0, "high": 135.0}, compare.SAME),
        ({"median": 90.0, "low": 89.0, "high": 91.0}, compare.FASTER),
        ({"median": None, "unit": None, "error": "RuntimeError"}, compare.LOST),
        ({"unit": "ms"}, compare.ONLY_NEW),
        ({"what": "another"}, compare.ONLY_NEW),
    ],
)
def test_compare(new: dict[str, Any], verdict: str) -> None:
    found = compare.compared([row()], [row(**new), row(what="third")])
    told = {(one["what"], one["verdict"]) for one in found}
    assert (row(**new)["what"], verdict) in told
    worse = verdict in (compare.SLOWER, compare.LOST)
    assert len(compare.regressions(found)) == worse
    timed = [row(bench="bandwidth"), row(**new)]
    assert bool(compare.shared(compare.compared([row(), timed[0]], timed))) == (
        verdict in compare.TIMED
    )


def test_more_tokens_a_second_are_no_regression() -> None:
    fast = row(unit="tokens/s", median=200.0, low=199.0, high=201.0)
    slow = row(unit="tokens/s")
    assert compare.compared([slow], [fast])[0]["verdict"] == compare.FASTER
    (found,) = compare.compared([fast], [slow])
    assert found["verdict"] == compare.SLOWER and found["times slower"] == 2.0


def test_another_device_is_refused() -> None:
    with pytest.raises(InputError, match="NVIDIA H200, not NVIDIA H100"):
        compare.require_device([row()], "NVIDIA H100")
    assert compare.compared([row()], [row(device="NVIDIA H100")])[0]["verdict"] == compare.ONLY_NEW


# --- the command


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["bench", "--device", "cpu", "--tiny", *words])


def test_the_command_compares_and_fails_on_what_is_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cases(session: Session):
        yield "one", lambda: [session.row("score", "one", "topkit", [99.0, 100.0, 101.0])]

    monkeypatch.setitem(run.SPEEDS, "score", cases)
    old, path = row(bench="score", what="one", device="cpu"), tmp_path / "old.csv"
    rows.write_rows(path, [old | {"median": 200.0, "low": 199.0, "high": 201.0}])
    done = call("score", "--compare", str(path))
    assert done.exit_code == 0 and compare.FASTER in done.output
    rows.write_rows(path, [old | {"median": 50.0, "low": 49.0, "high": 51.0}])
    done = call("score", "--compare", str(path))
    assert isinstance(done.exception, GateFailed) and "1 of 3 rows" in str(done.exception)
    rows.write_rows(path, [old | {"device": "NVIDIA H200"}])
    assert isinstance(call("score", "--compare", str(path)).exception, InputError)


def test_torch_appends_what_the_kernel_does() -> None:
    at = session()
    keys = at.drawn(2, 2, 1, 128)
    for dtype in ("sign", "int4", "fp8_e4m3"):
        ours, plain = (packed.encoded(at, dtype, at.drawn(2, 2, 9, 128)) for _ in range(2))
        ours.append(keys, 5)
        plain.append_in_torch(keys, 5)
        for one, other in ((ours.codes, plain.codes), (ours.scale, plain.scale)):
            if one is not None and other is not None:
                assert torch.equal(one[:, :, 5].float(), other[:, :, 5].float())


def test_json_stays_json_where_runs_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cases(session: Session):
        yield "one", lambda: [session.row("score", "one", "topkit", [99.0, 100.0, 101.0])]

    monkeypatch.setitem(run.SPEEDS, "score", cases)
    path = tmp_path / "old.csv"
    rows.write_rows(path, [row(bench="score", what="one", device="cpu")])
    told = json.loads(call("score", "--json", "--compare", str(path)).stdout)
    assert [one["what"] for one in told["rows"]][-1] == "one"
    assert {"verdict": compare.SAME, "what": "one"}.items() <= told["compared"][0].items()
    alone = json.loads(call("score", "--json").stdout)
    assert [one["what"] for one in alone] == [one["what"] for one in told["rows"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "--repeats", "3"], "--repeats is of the benchmarks of a CPU"),
        (["score", "--out", "x.csv"], "--tiny writes nothing"),
        (["score", "--compare", "nowhere.csv"], "cannot read nowhere.csv"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(words: list[str], message: str) -> None:
    done = call(*words)
    assert isinstance(done.exception, InputError) and message in str(done.exception)


def test_a_cpu_is_refused_before_a_path_is_sought() -> None:
    done = CliRunner().invoke(app, ["bench", "score", "--device", "cpu"])
    assert isinstance(done.exception, InputError) and "--tiny" in str(done.exception)


@pytest.mark.parametrize(
    ("old", "error", "message"),
    [
        ({"device": "NVIDIA H200"}, InputError, "the old rows are of NVIDIA H200, not "),
        ({"device": None, "what": "another"}, GateFailed, "nothing to compare: no benchmark"),
    ],
)
def test_a_cpu_is_held_against_itself_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    old: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    one = {"bench": "truth", "what": "one", "median": 1.0, "low": 1.0, "high": 1.0}
    monkeypatch.setattr(bench, "BENCHES", {"truth": lambda scale: [one]})
    path = tmp_path / "old.csv"
    rows.write_rows(
        path, [row(bench="truth", **{**old, "device": old["device"] or bench.processor()})]
    )
    done = CliRunner().invoke(app, ["bench", "truth", "--tiny", "--compare", str(path)])
    assert isinstance(done.exception, error) and message in str(done.exception)
    # What was measured is told all the same.
    assert ("one" in done.output) == (error is GateFailed)


def test_the_command_ends_with_1_where_a_row_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(session: Session):
        yield "one", lambda: 1 / 0

    monkeypatch.setitem(run.SPEEDS, "score", cases)
    done = call("score")
    assert exits.exit_code(lambda: _raise(done.exception)) == exits.GATE_FAILED
    assert "ZeroDivisionError" in done.output


def _raise(error: BaseException | None) -> None:
    assert error is not None
    raise error


# --- the README's table


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    module = __import__("readme")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    yield module
    sys.modules.pop("readme", None)


def test_the_table_of_gpus_is_made_from_their_files(readme: Any, tmp_path: Path) -> None:
    assert readme.gpu() == ""
    results = tmp_path / "benchmarks" / "results"
    rows.write_rows(
        results / "nvidia-h200.csv",
        [
            row(bench="bandwidth", what="copy, read and written", unit="GB/s", median=4255.0, high=4256.0),
            row(bench="score", what="untold"),
            row(what="int4 a head", mass_ratio=0.99, shared_mass_ratio=0.99, useless=False),
            row(ratio=9.0, against="SDPA cuDNN", limit=">= 10 x", within=False, mass_ratio=0.8,
                shared_mass_ratio=0.95, useless=True),
        ],
    )  # fmt: skip
    (results / "cpu.csv").write_text("not,this\n")
    table = readme.gpu()
    assert "untold" not in table and "a head" in table
    assert "| step: sign, batch 8 x 128K* | topkit | 100 [99, 101] us |" in table
    assert "9.00 x SDPA cuDNN" in table and ">= 10 x (missed)" in table
    assert "| 0.80 (0.95) |" in table
    assert "NVIDIA H200, driver 580" in table and "copy, read and written 4255 GB/s" in table
    assert "asterisk" in table


def test_a_page_without_marks_waits_for_the_first_gpu(readme: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    readme.PAGES[page] = {"gpu": lambda: ""}
    assert readme.current(page) == "nothing\n"
    readme.PAGES[page] = {"gpu": lambda: "a table"}
    with pytest.raises(SystemExit, match="'gpu'"):
        readme.current(page)
    page.write_text("<!-- gpu: make readme -->\n<!-- /gpu -->\n")
    assert "a table" in readme.current(page)


def test_no_path_and_no_host_is_written(tmp_path: Path) -> None:
    rows.write_rows(tmp_path / "x.csv", [row() | rows.machine(CPU)])
    with (tmp_path / "x.csv").open() as file:
        (found,) = csv.DictReader(file)
    assert not [x for x in found.values() if "/" in x]

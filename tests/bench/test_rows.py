"""The one table of benchmarks: written, read, judged, compared, shown. No test judges a time."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from topkit.cli.speed import bench
from topkit.errors import InputError
from topkit.experiments.bench import compare, formulas, rows, targets
from topkit.experiments.bench.machine import machine as machine_of
from topkit.experiments.bench.machine import other_triton
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.experiments.bench.table import table

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def session(**machine: Any) -> Session:
    return Session(CPU, Scale.tiny(), {"device": "cpu", **machine})


def row(**given: Any) -> dict[str, Any]:
    """A row of a table, of an H200 unless said otherwise."""
    usual = {
        "bench": "step", "what": "sign, batch 8 x 128K", "implementation": "topkit", "unit": "us",
        "median": 100.0, "low": 99.0, "high": 101.0, "device": "NVIDIA H200", "torch": "2.11.0",
        "triton": "3.6.0", "cuda": "13.0", "driver": "580", "date": "2026-11-25",
    }  # fmt: skip
    return dict.fromkeys(rows.COLUMNS) | usual | given


# --- the file


def test_a_run_of_some_benches_leaves_the_rows_of_others(tmp_path: Path) -> None:
    path = tmp_path / "here.csv"
    assert rows.rows_of_others(path, ["step"]) == []
    rows.write_rows(
        path, [row(), row(bench="score"), row(bench="kept", median="", error="no room")]
    )
    assert [one["bench"] for one in rows.rows_of_others(path, ["step"])] == ["score", "kept"]
    assert rows.rows_of_others(path, []) == []  # all run
    before = rows.read_rows(path)
    rows.write_rows(path, [*rows.rows_of_others(path, ["score"]), row(bench="score")])
    assert sorted(map(repr, rows.read_rows(path))) == sorted(map(repr, before))


def test_what_is_no_table_of_benches_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no table of benchmarks"):
        rows.rows_of_others(path, ["step"])


@pytest.mark.slow
def test_bench_writes_beside_the_rows_of_others(tmp_path: Path) -> None:
    path = tmp_path / "here.csv"
    rows.write_rows(path, [row(bench="noise", what="gone"), row(bench="score", what="other")])
    bench(["noise"], None, path, None, False, 1, None, True)
    found = rows.read_rows(path)
    assert [one["what"] for one in found if one["bench"] == "score"] == ["other"]
    assert any(one["bench"] == "noise" for one in found)
    assert "gone" not in {one["what"] for one in found}


# --- a row


def test_shares_of_a_copy() -> None:
    found = rows.shares(100.0, formulas.Bytes(2e8, 1e8), 4000.0)
    assert found["bandwidth"] == pytest.approx(2000.0)
    assert found["copy_share"] == pytest.approx(0.5)
    assert found["roofline_share"] == pytest.approx(0.25)


def test_ratios_say_how_many_times_faster() -> None:
    at = session()
    time = at.row("x", "y", "topkit", [10.0], against=("torch", 40.0))
    rate = at.row("x", "y", "topkit", [40.0], unit="tokens/s", against=("SDPA", 10.0))
    assert time["speedup"] == rate["speedup"] == 4.0
    assert time["ratio"] is None
    assert (time["against"], rate["against"]) == ("torch", "SDPA")


def test_ratios_are_those_of_neighbours_in_time() -> None:
    found = rows.ratios([2.0, 6.0, 20.0], [1.0, 2.0, 10.0])
    assert found == {"ratio": 2.0, "ratio_low": 2.0, "ratio_high": 2.5}


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    ours = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    found = session().in_turns("x", ours, "c", lambda: order.append("c"), turns=2, k=3)
    assert order == ["a", "b", "c"] * 3  # the first turn does not count
    assert [one["what"] for one in found] == ["a", "b"]
    for one in found:
        assert one["repeats"] == 2 and one["against"] == "c" and one["k"] == 3
        assert one["ratio_low"] <= one["ratio"] <= one["ratio_high"]


def test_a_limit_is_of_topkit_on_an_h200() -> None:
    kept = targets.judged(row(speedup=12.0))
    assert kept == {"limit": ">= 10 x", "within": True}
    assert targets.judged(row(speedup=9.0))["within"] is False
    assert "H200" in targets.judged(row(speedup=9.0, device="NVIDIA H100"))["note"]
    assert targets.judged(row(implementation="torch")) == {}
    assert targets.judged(row(bench="select", what="64 x 1M, k 2048", median=161.0)) == {
        "limit": "<= 160 us",
        "within": False,
    }
    assert "within" not in targets.judged(row(speedup=None))


def test_a_limit_of_every_machine_is_kept_by_ratio() -> None:
    of_cpu = row(bench="measure", what="sign(), 3 budgets x 32K", device="AMD EPYC", ratio=1.5)
    assert targets.judged(of_cpu) == {"limit": "<= 1.25 x", "within": False}


def test_another_triton_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2.13.0\ntriton==3.7.1\ntriton-kernels==1.0\n")
    assert other_triton("3.7.1", pins) == ""
    assert other_triton("3.6.0", pins) == "Triton 3.6.0, not the pinned 3.7.1"
    assert "no known version" in other_triton("", pins)
    assert other_triton("3.6.0", tmp_path / "none.txt") == ""
    on_gpu = session(triton="0.1")
    monkeypatch.setattr(Session, "cuda", True)
    noted = on_gpu.row("score", "one", "topkit", [1.0], note="five layers")
    assert noted["note"].startswith("five layers; Triton 0.1, not the pinned ")


# --- the file


def test_rows_come_back_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.csv"
    rows.write_rows(
        path, [row(median=123.456, high=124.0, bytes=7, useless=True, ratio=None, note="a, b")]
    )
    (found,) = rows.read_rows(path)
    assert tuple(found) == rows.COLUMNS
    assert found["median"] == "123.5" and found["bytes"] == "7" and found["useless"] == "True"
    assert found["ratio"] == "" and found["note"] == "a, b"
    assert table([found])[0]["what"] == "step: sign, batch 8 x 128K*"


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


@pytest.mark.parametrize(
    ("text", "today"),
    [
        (  # a CPU's table of 0.1
            "bench,what,unit,median,low,high,repeats,against,ratio,ratio_low,ratio_high,limit,within,"
            "device,cores,torch,topkit,python,date\n"
            "measure,all metrics,s,0.6125,0.5699,0.6228,7,matmul + topk,4.02,3.67,4.16,6.0,True,"
            "AMD EPYC,2,2.13.0,0.1.0,3.11.7,2026-11-26\n",
            {"implementation": "topkit", "ratio": "4.02", "ratio_high": "4.16", "speedup": "",
             "limit": "<= 6 x", "median": "0.6125", "cores": "2", "python": "3.11.7", "triton": ""},
        ),
        (  # its row of memory
            "bench,what,unit,median,low,high,ratio,limit,device\ntruth,memory,GiB,0.2,0.2,0.2,,2.0,x\n",
            {"limit": "<= 2 GiB", "ratio": ""},
        ),
        (  # a GPU's
            "bench,what,implementation,unit,median,low,high,against,ratio,limit,device,triton\n"
            "step,sign,topkit,us,86.07,85.88,86.55,SDPA cuDNN,11.01,>= 10 x,NVIDIA H200,3.6.0\n",
            {"speedup": "11.01", "ratio": "", "limit": ">= 10 x", "triton": "3.6.0"},
        ),
    ],
)  # fmt: skip
def test_tables_of_0_1_are_read(tmp_path: Path, text: str, today: dict[str, str]) -> None:
    path = tmp_path / "old.csv"
    path.write_text(text)
    (found,) = rows.read_rows(path)
    assert tuple(found) == rows.COLUMNS
    assert found.items() >= today.items()
    rows.write_rows(path, [found])  # and stays what it is once it is written anew
    assert rows.read_rows(path) == [found]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.csv")), ids=str)
def test_the_committed_tables_have_todays_columns(path: Path) -> None:
    with path.open() as file:
        assert tuple(csv.DictReader(file).fieldnames or ()) == rows.COLUMNS
    assert table(rows.read_rows(path))


def test_no_path_and_no_host_is_written(tmp_path: Path) -> None:
    rows.write_rows(tmp_path / "x.csv", [row() | machine_of(CPU)])
    with (tmp_path / "x.csv").open() as file:
        (found,) = csv.DictReader(file)
    assert not [x for x in found.values() if "/" in x]


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


# --- the README's tables


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
            row(speedup=9.0, against="SDPA cuDNN", limit=">= 10 x", within=False, mass_ratio=0.8,
                shared_mass_ratio=0.95, useless=True),
        ],
    )  # fmt: skip
    rows.write_rows(
        results / "cpu.csv",
        [
            row(
                bench="truth",
                what="exact",
                device="AMD EPYC",
                cores=2,
                ratio=1.61,
                ratio_low=1.58,
                ratio_high=1.64,
                against="matmul + topk",
            )
        ],
    )
    table = readme.gpu()
    assert "untold" not in table and "a head" in table
    assert "| step: sign, batch 8 x 128K* | topkit | 100 [99, 101] us |" in table
    assert "9.00 x SDPA cuDNN" in table and ">= 10 x (missed)" in table
    assert "| 0.80 (0.95) |" in table
    assert "NVIDIA H200, driver 580" in table and "copy, read and written 4255 GB/s" in table
    assert "asterisk" in table and "Triton 3.6.0, not the pinned" in table
    assert "SmolLM2" not in table
    assert "truth" not in table and "1.61 [1.58, 1.64] x matmul + topk" in readme.speed()
    assert "AMD EPYC, 2 threads" in readme.speed()


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


def test_an_asterisk_says_whose_tensors_it_is_of(readme: Any, tmp_path: Path) -> None:
    rows.write_rows(
        tmp_path / "benchmarks" / "results" / "nvidia-h200.csv",
        [
            row(bench="kept", what="sign, 128K", mass_ratio=0.77, shared_mass_ratio=0.86,
                smollm2_mass=0.76, smollm2_mass_ratio=0.89, smollm2_shared_mass_ratio=0.91, useless=True),
            row(what="int4, batch 8 x 128K", mass_ratio=0.85, shared_mass_ratio=0.96,
                smollm2_mass=0.82, smollm2_mass_ratio=0.96, smollm2_shared_mass_ratio=0.98, useless=False),
        ],
    )  # fmt: skip
    table = readme.gpu()
    assert "| kept: sign, 128K* |" in table and "| 0.77 (0.86) | 0.76 | 0.89 (0.91) |" in table
    assert (
        "| step: int4, batch 8 x 128K |" in table
        and "| 0.85 (0.96) | 0.82 | 0.96 (0.98) |" in table
    )
    assert "on SmolLM2's tensors" in table
    assert "| SmolLM2: mass | SmolLM2: mass ratio (to shared) |" in table


def test_a_selection_is_of_use_by_a_real_models_tensors_where_it_was_judged_there() -> None:
    assert rows.quality({"mass_ratio": 0.85})["useless"]
    assert not rows.quality({"mass_ratio": 0.85, "smollm2_mass_ratio": 0.96})["useless"]
    assert rows.quality({"mass_ratio": 0.95, "smollm2_mass_ratio": 0.8})["useless"]

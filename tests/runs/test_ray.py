"""Ray for real: two workers on this machine. Slow: Ray takes seconds to begin and to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import topkit
from topkit.errors import InputError
from topkit.experiments.runs.jobs import Job
from topkit.experiments.runs.ray_runner import on_ray

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

TASK = "niah-multikey:distractors=3,questions=2,wording=trained"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def made() -> topkit.Capture:
    g = torch.Generator().manual_seed(0)
    shapes = ((6, 2, 2, 8), (6, 1, 40, 8), (6, 1, 40, 8))
    queries, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return topkit.Capture.from_tensors(queries, keys, values)


def evaluate(out: Path, **options: Any) -> Any:
    return topkit.evaluate("reference", TASK, 384, 6, "sign", 8, out=out, **options)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def own_workers(title: bytes = b"ray::_work") -> Iterator[int]:
    """Workers of this process's own Ray that are at a job."""
    for entry in Path("/proc").iterdir():
        try:
            pid = int(entry.name)
            if not (entry / "cmdline").read_bytes().startswith(title):
                continue
            above = pid
            while above > 1 and above != os.getpid():
                above = parent(above)
            if above == os.getpid():
                yield pid
        except (ValueError, OSError):
            continue


def test_rows_are_those_of_one_process_also_where_a_worker_is_killed(tmp_path: Path) -> None:
    whole, killed = evaluate(tmp_path / "whole"), []

    def kill(event: object) -> None:
        for worker in [] if killed else own_workers():
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    plan = topkit.evaluate.plan(
        "reference", TASK, 384, 6, "sign", 8, out=tmp_path / "run", runner="ray", jobs=2
    )
    assert topkit.run(plan, progress=kill).equals(whole)
    assert killed and topkit.verify(tmp_path / "run").files == 14
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert not topkit.evaluate.plan(
        "reference", TASK, 384, 6, "sign", 8, out=tmp_path / "run", runner="ray"
    ).jobs


def test_a_worker_lives_on_and_reads_paths_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a job raises is what is raised here."""
    monkeypatch.chdir(tmp_path)

    def where(number: int) -> tuple[int, int, str, int]:
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 7:
            raise InputError("said by a job")
        return number, os.getpid(), str(Path.cwd()), torch.get_num_threads()

    jobs = [Job({"n": n}, (n,)) for n in range(6)]
    done = list(on_ray(2)(where, jobs))
    assert sorted(number for number, *_ in done) == list(range(6))
    assert len({pid for _, pid, *_ in done}) <= 2
    assert {place[2:] for place in done} == {(str(tmp_path), 1)}
    with pytest.raises(InputError, match=r"^said by a job$"):
        list(on_ray(1)(where, [Job({"n": 7}, (7,))]))
    with pytest.raises(InputError, match="1 of 1 jobs were not done: their workers died"):
        list(on_ray(1)(where, [Job({"n": 9}, (9,))]))


def test_a_measurement_without_a_folder_and_a_shard_of_it_come_back_from_ray() -> None:
    whole = topkit.measure(made(), ["sign", "exact"], 4)
    assert topkit.measure(made(), ["sign", "exact"], 4, runner="ray", jobs=2).table.equals(
        whole.table
    )


def test_what_ray_has_no_room_for_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"Ray has 1 CPUs and 0 GPUs.*ask for less") as refused:
        topkit.measure(made(), "sign", 4, runner="ray:gpus=99")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="cannot reach Ray at 127") as refused:
        topkit.measure(made(), "sign", 4, runner="ray:address='127.0.0.1:1'")
    assert "\n" not in str(refused.value)


def test_the_command_line_joins_a_ray_by_its_address(tmp_path: Path) -> None:
    """The rows go to stdout alone."""
    import ray

    made().save(tmp_path / "capture")
    context: Any = ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20
    )
    try:
        words = [*("measure", str(tmp_path / "capture"), "--indexer", "sign", "-k", "4", "--json")]
        words += ["--runner", "ray", "--out", str(tmp_path / "run")]
        env = os.environ | {"RAY_ADDRESS": context.address_info["address"]}
        command = [sys.executable, "-m", "topkit", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["indexer"] == "sign()"
        # In a process that has joined a Ray, that one is used, and stays.
        topkit.measure(made(), "sign", 4, runner="ray")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert topkit.verify(tmp_path / "run").files == 6


def _raylets(of: int) -> list[int]:
    """The daemons of Ray that a process began."""
    begun = list[int]()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (place / "cmdline").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if parent == of and words[0].endswith("raylet/raylet"):
            begun.append(int(place.name))
    return begun


def test_a_daemon_of_ray_that_dies_ends_the_run_in_a_line_and_a_rerun_goes_on(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    words = [
        *("evaluate", "reference", "--task", "niah-single", "--length", "400"),
        "--samples",
        "8",
    ]
    words += ["--indexer", "exact", "-k", "8", "--out", str(out)]
    command = [sys.executable, "-m", "topkit", *words]
    on_ray = [*command, "--runner", "ray", "--jobs", "1"]
    with subprocess.Popen(on_ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and len(list(out.glob("accuracy/*.parquet"))) < 2:
            time.sleep(0.05)
        (raylet,) = _raylets(run.pid)
        os.kill(raylet, signal.SIGKILL)
        said = run.communicate(timeout=300)[1]
    assert run.returncode == 2, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("topkit: Ray itself ended on this machine"), said
    assert "Traceback" not in said and "state-dump" not in said
    kept = {part: part.read_bytes() for part in out.glob("accuracy/*.parquet")}
    assert 2 <= len(kept) < 8
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and f"{len(kept)} of them done" in again.stderr, again.stderr
    assert all(part.read_bytes() == content for part, content in kept.items())
    assert pq.read_table(out / "accuracy").num_rows == 16

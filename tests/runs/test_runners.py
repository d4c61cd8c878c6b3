"""What runs the jobs: this process, spawned ones, Ray's; and what is lost where a worker dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from topkit.errors import InputError
from topkit.experiments.runs.attempts import ATTEMPTS
from topkit.experiments.runs.jobs import Job, serial
from topkit.experiments.runs.pool import pool
from topkit.experiments.runs.ray_runner import on_ray
from topkit.experiments.runs.runners import MOST, crew


def dies(folder: str, number: int, times: int) -> int:
    """A job that kills its own worker so many times, and then says its number."""
    marks = Path(folder)
    for attempt in range(times):
        mark = marks / f"{number}-{attempt}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    (marks / f"{number}-done").touch()
    return number


def jobs(folder: Path, times: dict[int, int], count: int = 6) -> list[Job]:
    return [Job({"n": n}, (str(folder), n, times.get(n, 0))) for n in range(count)]


@pytest.mark.slow
def test_a_lost_worker_loses_its_job_alone_which_is_done_again_or_given_up(tmp_path: Path) -> None:
    results, done = pool(2)(dies, jobs(tmp_path, {1: ATTEMPTS, 2: 1}, 5)), list[int]()
    with pytest.raises(InputError, match=r"1 of 5 jobs were not done: their workers died") as lost:
        done.extend(results)
    assert "\n" not in str(lost.value)
    assert sorted(done) == [0, 2, 3, 4]
    assert len(list(tmp_path.glob("1-*"))) == ATTEMPTS


@pytest.mark.slow
def test_workers_that_all_die_are_not_begun_for_ever(tmp_path: Path) -> None:
    every = dict.fromkeys(range(40), 9)
    with pytest.raises(InputError, match="40 of 40 jobs were not done"):
        list(pool(1)(dies, jobs(tmp_path, every, 40)))
    assert len(list(tmp_path.iterdir())) == ATTEMPTS


@pytest.mark.slow
def test_what_a_job_raises_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        list(pool(1)(os.listdir, [Job({"n": n}, (__file__,)) for n in range(50)]))


def test_names_of_runners() -> None:
    cores = os.cpu_count() or 1
    assert (
        crew().runner is serial and crew(jobs=1).runner is serial and crew("serial").threads is None
    )
    assert crew(jobs=2).runner == pool(2) == crew("pool", 2).runner == crew("pool:workers=2").runner
    assert crew("pool").workers == min(cores, MOST)
    assert crew("pool", 2).threads == max(1, cores // 2)
    assert crew("ray", 3).runner == on_ray(3, gpus=0) and crew("ray").runner == on_ray(gpus=0)
    assert crew("ray", device="cuda").runner == on_ray(gpus=1)
    assert crew("ray:gpus=0.25", 8, "cuda").runner == on_ray(8, gpus=0.25)
    assert crew("ray:cpus=4").threads == 4 and crew("ray:cpus=0.5").threads == 1
    own = pool(2)
    assert crew(lambda work, jobs: own(work, jobs), 3).workers == 3


REFUSED = [
    (("serial", 2), "serial does one job at a time"),
    (("rai", 2), "unknown runner 'rai'; did you mean 'ray'"),
    (("ray:gpu=1", 2), "ray has no parameter 'gpu'; did you mean 'gpus'"),
    (("ray:gpus=1.5", 2), "gpus must be a share of one, or a whole number"),
    (("ray:cpus=-1", 2), "cpus must be a share of one"),
    (("ray:workers=2", 3), "2 workers and 3 jobs"),
    (("pool:workers=0", None), "workers must be at least 1"),
    ((None, 0), "jobs must be at least 1"),
    ((3, None), "expected serial, pool, ray or"),
    (("ray", 2, "cuda:1"), "Ray says which GPU a worker has"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[str(words) for words, _ in REFUSED])
def test_what_is_no_runner_is_refused_in_a_line(words: tuple, said: str) -> None:
    with pytest.raises(InputError) as refused:
        crew(*words)
    assert said in str(refused.value) and "\n" not in str(refused.value)

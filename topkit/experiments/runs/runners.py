"""Runners by name: serial, pool, ray; how many workers, and how many threads each has."""

# pyright: strict
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.runs.jobs import Engine, Job, Runner, serial
from topkit.experiments.runs.pool import pool
from topkit.experiments.runs.ray_runner import on_ray
from topkit.grammar import Registry, parse

# Workers of a pool whose number nobody says: each may take 3 GB.
MOST = 4


@dataclass(frozen=True)
class in_process(Engine):
    """The runner that is no other process."""

    def __call__(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterable[Any]:
        return serial(function, jobs)


RUNNERS: Registry[Engine] = Registry(
    "runner",
    Engine,
    {"serial": in_process, "pool": pool, "ray": on_ray},
    "topkit.runners",
    "serial, pool, ray or ray:cpus=4,gpus=1",
)


@dataclass(frozen=True)
class Crew:
    """What runs a plan's jobs: so many workers, as far as they are known, of so many torch threads.

    threads: None for torch's own number.
    """

    runner: Runner
    workers: int
    threads: int | None


def crew(runner: str | Runner | None = None, jobs: int | None = None, device: str = "") -> Crew:
    """What `--runner` and `--jobs` say: a name, with parameters or without, or a Runner.

    Without a runner one job is run in this process, and several in a pool. jobs: at one time; by default
    1, in a pool one a core and at most MOST, with Ray as many as its machines have room for.
    Raises: InputError for an unknown runner, and a number of jobs that it cannot have.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs must be at least 1; got {jobs}")
    made = _made(runner, jobs)
    if made is serial or isinstance(made, in_process):
        if jobs not in (None, 1):
            raise InputError(
                f"the runner serial does one job at a time; for {jobs}, name pool or ray"
            )
        return Crew(serial, 1, None)
    if isinstance(made, on_ray):
        ray = replace(made.for_device(device), workers=_number(made.workers, jobs))
        return Crew(ray, ray.workers or 1, ray.threads)
    if isinstance(made, pool):
        jobs = _number(made.workers, jobs) or min(_cores(), MOST)
        made = pool(jobs)
    return Crew(made, jobs or 1, None if jobs is None else max(1, _cores() // jobs))


def _made(runner: object, jobs: int | None) -> Runner:
    if runner is None:
        runner = "serial" if jobs in (None, 1) else "pool"
    if isinstance(runner, str):
        return parse(runner, RUNNERS)
    if not callable(runner):
        raise InputError(f"expected {RUNNERS.example}, or a function; got {quote(runner)}")
    return cast("Runner", runner)


def _number(workers: int | None, jobs: int | None) -> int | None:
    """Raises: InputError where a runner is to have two numbers of workers."""
    if None not in (jobs, workers) and jobs != workers:
        raise InputError(f"{workers} workers and {jobs} jobs at one time: say one of the two")
    return workers or jobs


def runner(workers: int) -> Runner:
    """The runner for `--jobs N`.

    Raises: InputError for a number of workers below 1.
    """
    return crew(None, workers).runner


def _cores() -> int:
    return os.cpu_count() or 1

"""What a run is going to do, known before anything is written; and doing it."""

# pyright: strict
from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from inspect import Signature, signature
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, cast

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.runs.jobs import Job, Runner, serial
from topkit.experiments.runs.runners import crew
from topkit.experiments.runs.runners import runner as runner_of
from topkit.kernels.precision import full_precision

# Bytes of a process that has imported what a run needs, before it loads anything: without
# transformers, and with it.
PROCESS, WITH_TRANSFORMERS = 350 << 20, 500 << 20

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


@dataclass(frozen=True)
class Event:
    """Where a run stands: how many of its jobs are done; `verb` says what a job does.

    lines: of a plan that follows on another one, what it is going to do, at its start.
    """

    verb: str
    done: int
    jobs: int
    lines: tuple[str, ...] = ()


Progress = Callable[[Event], object]


@dataclass(frozen=True, kw_only=True)
class Plan(ABC, Generic[R]):
    """What a run is going to do. A plan creates no folder, takes no lock and writes nothing.

    jobs: those that are left, which `opened` prepares; done: the number of the others. rows and bytes: of
    all that is asked for, in the table and on disk at the run's end, also of what is done already; what the
    folder holds of other requests comes on top. memory: bytes at the peak, of all workers together. Bytes
    and memory are estimates, whose formulas stand in each kind of plan. workers: processes, as far as they
    are known; runner: what runs the jobs, by default so many processes. shares_model: its jobs use a model
    of this process, and cannot leave it. notes: what is left out, and why, a line each.
    """

    jobs: tuple[Job, ...] = field(repr=False)
    done: int
    rows: int
    bytes: int
    memory: int
    workers: int = 1
    runner: Runner | None = field(default=None, repr=False)
    shares_model: bool = False
    notes: tuple[str, ...] = ()
    # What a job does, as "measuring"; and the function that does one, called with the job's arguments.
    verb: ClassVar[str]
    work: ClassVar[Callable[..., Any]]

    @property
    def numbers(self) -> dict[str, int]:
        """The plan's numbers by name; "jobs" counts all, also those that are done."""
        return {
            "jobs": len(self.jobs) + self.done,
            "done": self.done,
            "rows": self.rows,
            "bytes": self.bytes,
            "memory": self.memory,
        }

    @property
    def left_over(self) -> int:
        """Of a shard that is done: the jobs of others that are not."""
        return 0

    @abstractmethod
    def describe(self) -> list[dict[str, Any]]:
        """The plan for a program: JSON-like, one mapping a part of the run."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The plan for people, a line a part of the run."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Sequence[Job]]:
        """Keeps the run's folder for this process; gives the jobs that are left by then.

        Raises: InputError when another process writes there, or it has become another run's.
        """

    @abstractmethod
    def result(self, results: Sequence[Any]) -> R | Plan[R]:
        """What the run gives, from the results of the jobs that it ran; a plan is what follows on it."""


@full_precision()
def run(
    plan: Plan[R], *, runner: str | Runner | None = None, progress: Progress | None = None
) -> R:
    """Do what a plan says; what another run has done in the meantime is not done again.

    runner: serial, pool, ray, or a Runner; by default the plan's. progress: called with an Event at the
    start and after each job.
    Raises: InputError as the jobs do, and for a folder that another process writes to.
    """
    if not isinstance(plan, Plan):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"expected a plan, as topkit.measure.plan(...) makes; got {quote(plan)}; to do it at once, "
            "call topkit.measure(...)"
        )
    if isinstance(runner, str):
        runner = crew(runner).runner
    runner = runner or plan.runner
    if plan.shares_model and runner not in (None, serial):
        raise InputError(
            "the plan's jobs share a loaded model, and run in this process: leave `runner` out, or "
            "plan with the model's folder"
        )
    made = _run(plan, runner, progress or _silent)
    while isinstance(made, Plan):
        following = cast("Plan[R]", made)
        lines = (*following.notes, *following.lines())
        made = _run(following, runner, progress or _silent, lines)
    return made


def _run(
    plan: Plan[R], runner: Runner | None, report: Progress, lines: tuple[str, ...] = ()
) -> R | Plan[R]:
    run_jobs = runner or runner_of(plan.workers)
    results: list[Any] = []
    with plan.opened() as jobs:
        report(Event(plan.verb, 0, len(jobs), lines))
        for result in run_jobs(plan.work, jobs):
            results.append(result)
            report(Event(plan.verb, len(results), len(jobs)))
        return plan.result(results)


def _silent(event: Event) -> None:
    pass


class Planned(Protocol[P, R]):
    """A run in one call; `plan`, with the same arguments, gives what it is going to do."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @property
    def plan(self) -> Callable[P, Plan[R]]: ...


# Arguments of 0.1, and what stands for each now.
RETIRED = {
    "quiet": "nothing is printed",
    "dry_run": "the function's `.plan(...)` says what would be done",
    "on_plan": "the function's `.plan(...)` says what is going to be done",
}


def planned(plan: Callable[P, Plan[R]]) -> Planned[P, R]:
    """The function that does at once what `plan` plans; `plan` itself stays at hand as its `.plan`."""

    precise = full_precision()(plan)

    @wraps(plan)
    def call(*args: Any, **kwargs: Any) -> Any:
        old = {name: kwargs.pop(name) for name in RETIRED if name in kwargs}
        if old:
            now = "; ".join(f"{name}: {RETIRED[name]}" for name in old)
            warnings.warn(f"arguments that will go: {now}", FutureWarning, stacklevel=2)
        made: Plan[Any] = precise(*args, **kwargs)
        for part in made.describe() if "on_plan" in old else ():
            old["on_plan"](part)
        return None if old.get("dry_run") else run(made)

    call.__signature__ = signature(plan).replace(return_annotation=Signature.empty)  # type: ignore[attr-defined]
    call.plan = precise  # type: ignore[attr-defined]
    return cast("Planned[P, R]", call)

"""Jobs over workers that may die: a lost worker loses the job that it had, which is tried again."""

# pyright: strict
from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, TypeVar

from topkit.errors import InputError
from topkit.experiments.runs.jobs import Job

# How often a job is begun before it is given up.
ATTEMPTS = 3

H = TypeVar("H")


class WorkerLost(Exception):
    """The worker of a job died, and said nothing of it."""


class Workers(ABC, Generic[H]):
    """Processes that run jobs; a handle stands for a job under way."""

    # Jobs under way at one time.
    number: int

    @abstractmethod
    def begin(self, function: Callable[..., Any], job: Job) -> H:
        """Hand a job to a worker that is free."""

    @abstractmethod
    def ended(self, handles: Collection[H]) -> Collection[H]:
        """Waits until at least one job has ended."""

    @abstractmethod
    def result(self, handle: H) -> Any:
        """What a job gave.

        Raises: WorkerLost where its worker died, and what the job itself raised.
        """

    @abstractmethod
    def leave(self, handles: Collection[H]) -> None:
        """Dismiss the workers once their jobs have ended, or have been ended."""


def attempted(
    workers: Workers[H], function: Callable[..., Any], jobs: Sequence[Job]
) -> Iterator[Any]:
    """The results of jobs as they come; whoever leaves early leaves no job under way.

    What a job raises ends the run. One whose worker died is begun up to ATTEMPTS times; so many losses a
    worker, and no result between them, end the run as well: no worker can do the work.
    Raises: InputError, at the end, for jobs whose workers died each time.
    """
    left, under_way = deque(jobs), dict[H, Job]()
    losses, lost, row = Counter[str](), 0, 0
    try:
        while left or under_way:
            while left and len(under_way) < workers.number and row < ATTEMPTS * workers.number:
                job = left.popleft()
                under_way[workers.begin(function, job)] = job
            if not under_way:
                break
            for handle in workers.ended(under_way):
                job = under_way.pop(handle)
                try:
                    result = workers.result(handle)
                except WorkerLost:
                    row += 1
                    losses[job.name] += 1
                    again = losses[job.name] < ATTEMPTS
                    lost += not again
                    left.extend([job] if again else [])
                    continue
                row = 0
                yield result
    finally:
        workers.leave(under_way)
    if lost or left:
        raise InputError(
            f"{lost + len(left)} of {len(jobs)} jobs were not done: their workers died (killed, or out of "
            "memory?); what the others wrote is kept: run the same command again, with a smaller --jobs "
            "where memory is short"
        )

"""Spawned processes as workers; forked ones hang once torch has used its threads."""

# pyright: strict
from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from topkit.experiments.runs.attempts import WorkerLost, Workers, attempted
from topkit.experiments.runs.jobs import Engine, Job
from topkit.kernels.checks import at_least_one


@dataclass(frozen=True)
class pool(Engine):
    """A runner over so many spawned processes."""

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            at_least_one("workers", self.workers)

    def __call__(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[Any]:
        return attempted(_Spawned(min(self.workers or 1, len(jobs))), function, jobs)


class _Spawned(Workers["Future[Any]"]):
    """Executors of one process each: of several, nobody could tell whose worker died."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = list[ProcessPoolExecutor]()
        self._busy = dict["Future[Any]", ProcessPoolExecutor]()

    def begin(self, function: Callable[..., Any], job: Job) -> Future[Any]:
        executor = self._free.pop() if self._free else _executor()
        try:
            handle = executor.submit(function, *job.arguments)
        except BrokenProcessPool:  # its worker died between two jobs
            executor.shutdown()
            return self.begin(function, job)
        self._busy[handle] = executor
        return handle

    def ended(self, handles: Collection[Future[Any]]) -> Collection[Future[Any]]:
        return wait(handles, return_when=FIRST_COMPLETED).done

    def result(self, handle: Future[Any]) -> Any:
        executor = self._busy.pop(handle)
        try:
            result = handle.result()
        except BrokenProcessPool as error:
            executor.shutdown()
            raise WorkerLost from error
        except BaseException:
            self._free.append(executor)
            raise
        self._free.append(executor)
        return result

    def leave(self, handles: Collection[Future[Any]]) -> None:
        # The jobs that run now end before the folder that they write to is another's.
        for executor in (*self._free, *self._busy.values()):
            executor.shutdown()


def _executor() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _leave_with_parent)


def _leave_with_parent() -> None:
    """End this worker with its parent process: it would wait for jobs for ever."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    parent = parent_process()
    if parent is not None:
        Thread(target=watch, args=(parent,), daemon=True).start()

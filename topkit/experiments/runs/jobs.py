"""Jobs, and what runs them: in this process, or in spawned ones."""

# pyright: strict
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from topkit.errors import InputError
from topkit.experiments.runs.parts import digest


@dataclass(frozen=True)
class Job:
    """One independent piece of work: a function of plain values that writes its own parts.

    `inputs` name it: JSON-like, everything that its result depends on and nothing else.
    """

    inputs: Mapping[str, Any]
    arguments: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return digest(self.inputs)


Runner = Callable[[Callable[..., Any], Sequence[Job]], Iterable[Any]]


def serial(function: Callable[..., Any], jobs: Sequence[Job]) -> Iterable[Any]:
    """Run jobs one after the other in this process."""
    return (function(*job.arguments) for job in jobs)


def pool(workers: int) -> Runner:
    """A runner over spawned processes; forked ones hang once torch has used its threads."""

    def run(function: Callable[..., Any], jobs: Sequence[Job]) -> Iterable[Any]:
        spawned = get_context("spawn")
        executor = ProcessPoolExecutor(workers, spawned, _leave_with_parent)
        futures = [executor.submit(function, *job.arguments) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            # Those that wait are given up one by one: the executor does not, neither as a context manager
            # nor where it is collected before its own thread has looked. The jobs that run now end
            # before the folder that they write to is another's.
            for future in futures:
                future.cancel()
            executor.shutdown()
            raise
        executor.shutdown()

    return run


def _leave_with_parent() -> None:
    """End this worker with its parent process: it would wait for jobs for ever."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    parent = parent_process()
    if parent is not None:
        Thread(target=watch, args=(parent,), daemon=True).start()


def runner(workers: int) -> Runner:
    """The runner for `--jobs N`.

    Raises: InputError for a number of workers below 1.
    """
    if workers < 1:
        raise InputError(f"jobs must be at least 1; got {workers}")
    return serial if workers == 1 else pool(workers)


def threads_of(workers: int) -> int | None:
    """The torch threads of each of some workers, None for torch's own number where there is one.

    Raises: InputError for a number of workers below 1.
    """
    return None if runner(workers) is serial else max(1, (os.cpu_count() or 1) // workers)

"""Jobs, and what runs them: by default one after the other in this process."""

# pyright: strict
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

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


class Engine(ABC):
    """A runner that has a name: a dataclass whose parameters follow it, as in ray:gpus=1."""

    @abstractmethod
    def __call__(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterable[Any]:
        """The results of all jobs, as they come."""


def serial(function: Callable[..., Any], jobs: Sequence[Job]) -> Iterable[Any]:
    """Run jobs one after the other in this process."""
    return (function(*job.arguments) for job in jobs)


class _Process:
    """Whether this process is a worker."""

    is_worker = False


def become_worker() -> None:
    """Mark this process as a worker of another one that is not its parent."""
    _Process.is_worker = True


def is_worker() -> bool:
    """Whether this process runs another one's jobs, with code that it imported itself."""
    return _Process.is_worker or parent_process() is not None

"""Ray's workers: a job is a task, on this machine or on those of a cluster."""

# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topkit.errors import InputError, extras_named
from topkit.experiments.runs.attempts import WorkerLost, Workers, attempted
from topkit.experiments.runs.jobs import Engine, Job, become_worker
from topkit.kernels.checks import at_least_one

# Bytes of the store through which tasks pass their values; rows go to files.
STORE = 256 << 20


@dataclass(frozen=True)
class on_ray(Engine):
    """A runner over Ray's workers, each with so many CPUs and GPUs of a machine.

    workers: jobs at one time, by default as many as there is room for. gpus: by default 1 where the run is
    one on GPUs. address: of the cluster to join; "" stands for that of RAY_ADDRESS, or else for a Ray of
    this run's own, on this machine. A machine of a cluster sees the run's folder under the same path, and
    has the same topkit.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None
    address: str = ""

    def __post_init__(self) -> None:
        if self.workers is not None:
            at_least_one("workers", self.workers)
        for name, number in (("cpus", self.cpus), ("gpus", self.gpus or 0)):
            # Ray has parts of one, and whole ones.
            if not (0 <= number < 1 or (1 <= number < math.inf and number == int(number))):
                raise InputError(
                    f"ray: {name} must be a share of one, or a whole number; got {number}"
                )

    @property
    def threads(self) -> int:
        """Torch threads of a worker."""
        return max(1, int(self.cpus))

    def for_device(self, device: str) -> on_ray:
        """With the GPUs that a run on a device is to have. Raises: InputError for one GPU by its number."""
        if device.startswith("cuda:"):
            raise InputError(f"Ray says which GPU a worker has: --device cuda, not {device}")
        gpus = float(device == "cuda") if self.gpus is None else self.gpus
        return replace(self, gpus=gpus)

    def __call__(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[Any]:
        if not jobs:
            return
        with ExitStack() as stack:
            self._connect(stack)
            number = min(self._room(), len(jobs))
            yield from attempted(_Tasks(number, self), function, jobs)

    @extras_named()
    def _connect(self, stack: ExitStack) -> None:
        """Join the cluster, or begin one that ends with the run; a Ray that is there already is used."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Of a daemon that ended Ray would print the log, beside the line that says so here.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if ray.is_initialized():
            return
        address = self.address or os.environ.get("RAY_ADDRESS", "") or "local"
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            cpus = at_least_one("workers", self.workers or 1) * self.cpus
            quiet |= {"num_cpus": max(1, round(cpus)), "include_dashboard": False}
            quiet |= {"object_store_memory": STORE}
        try:
            _require_reachable(address)
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"cannot reach Ray at {address}: {error}; start one there (`ray start --head`), or leave "
                "the address and RAY_ADDRESS out"
            ) from error
        stack.callback(ray.shutdown)

    def _room(self) -> int:
        """Jobs at one time. Raises: InputError where no machine there has room for one."""
        import ray

        there = ray.cluster_resources()
        gpus = self.gpus or 0
        wanted = {"CPU": self.cpus, "GPU": gpus}
        rooms = [int(there.get(name, 0) / each) for name, each in wanted.items() if each]
        room = min(rooms, default=1)
        if room < 1:
            raise InputError(
                f"Ray has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, and a worker is to "
                f"have {self.cpus:g} and {gpus:g}: ask for less, as ray:cpus=1,gpus=0"
            )
        return room if self.workers is None else min(self.workers, room)


class _Tasks(Workers[Any]):
    """Tasks of one job each; Ray's workers live on from task to task, and a model with them."""

    def __init__(self, number: int, wanted: on_ray) -> None:
        import ray

        self.number = number
        # Without max_calls a worker with a GPU would end with its task. Lost ones are counted here.
        self._task: Any = ray.remote(
            num_cpus=wanted.cpus, num_gpus=wanted.gpus or 0, max_calls=0, max_retries=0
        )(_work)

    def begin(self, function: Callable[..., Any], job: Job) -> Any:
        return self._task.remote(function, job.arguments, str(Path.cwd()))

    def ended(self, handles: Collection[Any]) -> Collection[Any]:
        import ray

        return ray.wait(list(handles), num_returns=1)[0]

    def result(self, handle: Any) -> Any:
        import ray
        from ray import exceptions as of_ray

        lost = (
            of_ray.WorkerCrashedError,
            of_ray.OutOfMemoryError,
            of_ray.NodeDiedError,
            of_ray.ObjectLostError,
        )
        try:
            return ray.get(handle)
        except lost as error:
            raise WorkerLost from error
        except of_ray.LocalRayletDiedError as error:
            raise InputError(
                "Ray itself ended on this machine (killed, or out of memory?); what was written is kept: run the "
                "same command again"
            ) from error
        except of_ray.RayTaskError as error:
            # Ray's own class says it with a page of traceback.
            raise error.cause from None

    def leave(self, handles: Collection[Any]) -> None:
        import ray

        for handle in handles:
            ray.cancel(handle, force=True)
        # The folder that they write to may be another's next.
        ray.wait(list(handles), num_returns=len(handles)) if handles else None


def _require_reachable(address: str) -> None:
    """Raises: OSError where nothing listens at HOST:PORT; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    """One job, in a worker process; paths are read as where the run was started."""
    become_worker()
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder} is not to be reached on {os.uname().nodename}, where Ray has a worker: "
            f"{error.strerror}; start the run in a folder that all machines share"
        ) from error
    return function(*arguments)

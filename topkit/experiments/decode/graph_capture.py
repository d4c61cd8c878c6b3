"""The kernels of a function, captured in a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from topkit.errors import InputError
from topkit.indexers.lasting import held

# Kernels of a graph that may run at a time, where they do not wait for one another.
BRANCHES = 8
# The stream that is captured on serves one capture at a time.
_lock = threading.Lock()


def capture(call: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of what `call` launches on a GPU, and the output that each replay writes anew.

    `call` runs twice: first to compile and to make workspaces. What waits for the GPU fails in the capture:
    torch's own mode that refuses to wait is the whole process's, and would fail other threads.
    Raises: InputError where the capture fails; before, what `call` does.
    """
    with _lock, torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), _warmed(call)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        how: Any = {"pool": pool, "stream": side, "capture_error_mode": "thread_local"}
        try:
            # The outer context gives the stream back where a capture fails.
            with torch.cuda.stream(current), torch.cuda.graph(graph, **how):
                output = call()
        except Exception as error:
            _recover(pool)
            raise InputError(str(error.__context__ or error)) from error
        return graph, output


class CannotCapture(InputError):
    """A capture met an operation that no CUDA graph can contain."""


class Parts:
    """Graphs of what a function launches, one behind the other, and what its host does between them."""

    def __init__(self) -> None:
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.between: list[Callable[[], object]] = []
        # What its graphs read that was made once for many: files of weights.
        self.held: dict[int, object] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @classmethod
    def of(cls, call: Callable[[], Any], device: torch.device) -> tuple[Parts, Any]:
        """The parts of `call`, and the output that each replay writes anew.

        `call` runs once before: to compile and to make workspaces.
        Raises: CannotCapture where the capture fails; before, what `call` does.
        """
        with _lock, torch.cuda.device(device), held() as found:
            side = _warmed(call)
            parts = _here.parts = cls()
            parts.held = found
            torch.cuda.synchronize()
            # Workspaces of its own: others may run beside it that were captured on the same stream.
            _let_go_of_workspaces()
            # What torch holds for later is given back: graphs cannot have it, nor can a capture free it, and a
            # process that is held to a share of the GPU would find its memory full.
            torch.cuda.empty_cache()
            try:
                with torch.cuda.stream(side):
                    parts._begin()
                    output = call()
                    parts.graphs[-1].capture_end()
            except Exception as error:
                with suppress(Exception), torch.cuda.stream(side):
                    parts.graphs[-1].capture_end()
                _recover(parts._pool)
                raise CannotCapture(str(error.__context__ or error)) from error
            finally:
                _here.parts = None
                _let_go_of_workspaces()
            return parts, output

    def replay(self) -> None:
        self.graphs[0].replay()
        for call, graph in zip(self.between, self.graphs[1:], strict=True):
            call()
            graph.replay()

    def _begin(self) -> None:
        self.graphs.append(torch.cuda.CUDAGraph())
        self.graphs[-1].capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def split(self, call: Callable[[], object]) -> None:
        self.graphs[-1].capture_end()
        self.between.append(call)
        self._begin()


class _Here(threading.local):
    parts: Parts | None = None


_here = _Here()


def on_the_host(call: Callable[[], object]) -> None:
    """Call a function on the host; in a capture of parts, at this place of each replay."""
    if _here.parts is None:
        call()
    else:
        _here.parts.split(call)


def _let_go_of_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]


def side_by_side(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[Any]:
    """What some calls give; in a capture those of one branch behind one another, and branches side by side.

    The calls are of much the same length, and none reads what another makes.
    """
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return [call() for call in calls]
    current, branches = torch.cuda.current_stream(), _branches(torch.cuda.current_device())
    begun, outputs = current.record_event(), []
    for n, call in enumerate(calls):
        branch = branches[n % len(branches)]
        branch.wait_event(begun)
        with torch.cuda.stream(branch):
            outputs.append(call())
    for branch in branches[: len(calls)]:
        current.wait_stream(branch)
    return outputs


@cache
def _branches(device: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(BRANCHES)]


def _warmed(call: Callable[[], Any]) -> torch.cuda.Stream:
    """The stream that graphs are captured on, after one run of `call` on it."""
    side, current = _side(torch.cuda.current_device()), torch.cuda.current_stream()
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            call()
    finally:
        current.wait_stream(side)
    return side


@cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream that graphs are captured on: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


def _recover(pool: Any) -> None:
    """Undo what a failed capture leaves behind: its memory pool in use, a generator that records."""
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)  # type: ignore[attr-defined]
    # The end of a capture that succeeds sets the generator free.
    with suppress(Exception), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")

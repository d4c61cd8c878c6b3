"""The kernels of a function, captured in a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from topkit.errors import InputError

# The stream that is captured on serves one capture at a time.
_lock = threading.Lock()


def capture(call: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of what `call` launches on a GPU, and the output that each replay writes anew.

    `call` runs twice: first to compile and to make workspaces. What waits for the GPU fails in the capture:
    torch's own mode that refuses to wait is the whole process's, and would fail other threads.
    Raises: InputError where the capture fails; before, what `call` does.
    """
    with _lock, torch.cuda.device(device):
        side, current = _side(torch.cuda.current_device()), torch.cuda.current_stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                call()
        finally:
            current.wait_stream(side)
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


@cache
def _side(device: int) -> torch.cuda.Stream:
    """The stream that graphs are captured on: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream(device)


def _recover(pool: Any) -> None:
    """Undo what a capture that failed leaves: a pool that is allocated from, a generator that records."""
    with suppress(Exception):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)  # type: ignore[attr-defined]
    # The end of a capture that succeeds sets the generator free.
    with suppress(Exception), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")

"""How long a call takes: on a GPU inside a CUDA graph whose calls find nothing in L2."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch

Call = Callable[[], Any]

# Seconds of replays, and their numbers: long cases are replayed a few times, short ones often.
SECONDS, FEWEST, MOST = 0.2, 5, 25
# Microseconds of calls, timed one by one, that make a graph: far more than an event costs.
GRAPH = 8000.0
# Calls before those of a stream that are timed.
WARM = 2
# How many times larger than L2 the sets of inputs are together.
COLDER = 3


def timed(calls: Sequence[Call], device: torch.device) -> list[float]:
    """Microseconds of one call, a number a replay; the calls are one thing on other inputs, in turns.

    Nothing is counted before every call has run. Elsewhere than on a GPU a replay is a turn, by the
    clock.
    """
    for call in calls:
        call()
    if device.type != "cuda":
        return clocked(calls, FEWEST, device)
    once = min(clocked(calls[:1], 3, device))
    turns = max(1, math.ceil(GRAPH / once / len(calls)))
    graph = _captured(calls, turns)
    spans: list[float] = []
    graph.replay()
    while len(spans) < FEWEST or (len(spans) < MOST and sum(spans) < SECONDS * 1e6):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        spans.append(begin.elapsed_time(end) * 1e3)
    return [span / (turns * len(calls)) for span in spans]


def _captured(calls: Sequence[Call], turns: int) -> torch.cuda.CUDAGraph:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Not `torch.cuda.graph`, which collects garbage first: that would be most of the time.
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for _ in range(turns):
                for call in calls:
                    call()
        except BaseException:
            with suppress(RuntimeError):  # of a capture that is broken off: the cause says more
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return graph


def clocked(calls: Sequence[Call], turns: int, device: torch.device) -> list[float]:
    """Microseconds of one call by the clock, a number a turn: what waits for the host counts."""
    spans = []
    for _ in range(turns):
        settle(device)
        began = time.perf_counter()
        for call in calls:
            call()
        settle(device)
        spans.append((time.perf_counter() - began) * 1e6 / len(calls))
    return spans


def in_turns(calls: Sequence[Call], turns: int, device: torch.device) -> list[list[float]]:
    """Seconds of each call by the clock, in turns, after one turn of warm-up."""
    spans: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for call, its in zip(calls, spans, strict=True):
            (microseconds,) = clocked([call], 1, device)
            if turn:
                its.append(microseconds / 1e6)
    return spans


def streamed(call: Call, device: torch.device) -> list[float]:
    """Microseconds of calls of a few milliseconds each on a GPU, one launched behind the other.

    Nothing waits for the host, which is ahead of the GPU from the second call on.
    """
    for _ in range(WARM):
        call()
    if device.type != "cuda":
        return clocked([call], FEWEST, device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(MOST + 2)]
    settle(device)
    for event in events:
        call()
        event.record()
    settle(device)
    spans = [begin.elapsed_time(end) * 1e3 for begin, end in pairwise(events)]
    return spans[1:]


def settle(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sets(nbytes: int, device: torch.device) -> int:
    """How many sets of inputs, of so many bytes each, are more than a GPU's L2 holds, by far."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return math.ceil(COLDER * cache / nbytes)


def bandwidth(device: torch.device, elements: int) -> tuple[list[float], list[float]]:
    """GB/s of a copy by a kernel (read and written) and of reading alone, of float32 tensors."""
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    copies = timed([lambda: torch.add(source, 1.0, out=target)], device)
    reads = timed([source.sum], device)
    size = 4 * elements / 1e3
    return [2 * size / span for span in copies], [size / span for span in reads]

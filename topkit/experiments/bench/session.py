"""One run of the benchmarks: its machine, its ceilings, and rows that outlive failures."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topkit.experiments.bench import rows, timing
from topkit.experiments.bench.formulas import Bytes
from topkit.experiments.bench.machine import other_triton, release
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.targets import judged

# Bytes that stay free beside a case's own.
MARGIN = 1 << 30
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}


class DoesNotFit(Exception):
    """A case needs more memory than is free: a row says so."""


@dataclass
class Session:
    """What the benchmarks share."""

    device: torch.device
    scale: Scale
    machine: Row = field(default_factory=dict)
    # Microseconds of each dense backend, by batch and length: steps are compared with the fastest.
    dense: dict[tuple[int, int], dict[str, list[float]]] = field(default_factory=dict)
    # What selections keep on SmolLM2's tensors, as columns, by kind of step and length.
    kept: dict[tuple[str, int], Row] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def backend(self) -> str:
        """What runs topkit's kernels; never a silent fallback."""
        return "triton" if self.cuda else "torch"

    @cached_property
    def bandwidths(self) -> tuple[list[float], list[float]]:
        return timing.bandwidth(self.device, self.scale.copied)

    @property
    def copy(self) -> float:
        """GB/s."""
        return float(np.median(self.bandwidths[0]))

    @cached_property
    def other_triton(self) -> str:
        """A note where a GPU's kernels are compiled by another Triton than the pinned one."""
        return other_triton(str(self.machine.get("triton", ""))) if self.cuda else ""

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def drawn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers."""
        empty = torch.empty(*shape, dtype=dtype, device=self.device)
        return empty.normal_(generator=self.generator)

    def timed(self, calls: Sequence[timing.Call]) -> list[float]:
        return timing.timed(calls, self.device)

    def sets(self, nbytes: float) -> int:
        """How many sets of inputs, of so many bytes each, leave nothing in L2 for the next turn."""
        return timing.sets(int(nbytes), self.device) if self.scale.cold else 2

    def require(self, nbytes: float) -> None:
        """Raises: DoesNotFit."""
        if not self.cuda:
            return
        self.release()
        if nbytes + MARGIN > self._free():
            gc.collect()  # slow beside most cases, so only where it may help
            self.release()
        if nbytes + MARGIN > (free := self._free()):
            raise DoesNotFit(f"needs {nbytes / 2**30:.0f} GiB, {free / 2**30:.0f} are free")

    def _free(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def release(self) -> None:
        """Return torch's cached memory to the GPU."""
        if self.cuda:
            torch.cuda.empty_cache()

    def row(
        self,
        bench: str,
        what: str,
        implementation: str,
        spans: Sequence[float] | None = None,
        moved: Bytes | None = None,
        unit: str = "us",
        against: tuple[str, float] | None = None,
        compared: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Row:
        """A row of microseconds (or of another unit), with its shares of the ceilings and its limit.

        `against` is the name and the median of what it is compared with: `speedup` times faster;
        `compared` has the columns of one that was timed in turns with it.
        """
        named = {"bench": bench, "what": what, "implementation": implementation}
        row: Row = dict.fromkeys(rows.COLUMNS) | self.machine | named | more
        notes = (row["note"] or release(implementation), self.other_triton)
        row["note"] = "; ".join(filter(None, notes)) or None
        if spans is not None:
            row |= rows.spread(spans, unit)
            if moved is not None:
                row |= rows.shares(row["median"], moved, self.copy)
            if against is not None:
                name, other = against
                faster = row["median"] / other if unit in rows.RATES else other / row["median"]
                row |= {"against": name, "speedup": faster}
        row |= compared or {}
        return row | judged(row)

    def in_turns(
        self,
        bench: str,
        ours: Mapping[str, timing.Call],
        against: str,
        other: timing.Call,
        turns: int | None = None,
        unit: str = "s",
        **more: Any,
    ) -> list[Row]:
        """Calls of topkit's, by what they do, and another timed in turns: a row and ratio each."""
        calls = [*ours.values(), other]
        *spans, others = timing.in_turns(calls, turns or self.scale.repeats, self.device)
        timed: list[Row] = []
        for what, its in zip(ours, spans, strict=True):
            scaled = [span * PER_SECOND[unit] for span in its]
            compared = {"against": against, **rows.ratios(its, others)}
            timed.append(
                self.row(bench, what, rows.OURS, scaled, unit=unit, compared=compared, **more)
            )
        return timed

    def failed(self, bench: str, what: str, implementation: str, error: Exception) -> Row:
        """A row in place of what could not be measured.

        Memory that is too small is no error, nor is a rival that has no such operation here.
        """
        lacking = isinstance(error, NotImplementedError) and release(implementation)
        if lacking or isinstance(error, (DoesNotFit, torch.OutOfMemoryError)):
            short = isinstance(error, torch.OutOfMemoryError)
            note = "out of memory" if short else _first_line(error)
            return self.row(bench, what, implementation, note=f"skipped: {note}")
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return self.row(bench, what, implementation, error=said[:300])

    def attempt(
        self, bench: str, what: str, implementation: str, measure: Callable[[], Row]
    ) -> Row:
        """What `measure` returns (the arguments of `row`), or a row that says why it did not."""
        try:
            return self.row(bench, what, implementation, **measure())
        except Exception as error:
            return self.failed(bench, what, implementation, error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# A part of a benchmark that fails alone: its name, and what yields its rows.
Case = tuple[str, Callable[[], Iterable[Row]]]

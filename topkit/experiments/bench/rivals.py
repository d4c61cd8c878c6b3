"""One operation by several implementations on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from topkit.experiments.bench.formulas import Bytes
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.session import Session


def beside(
    session: Session,
    bench: str,
    what: str,
    ours: Callable[..., object],
    rivals: Mapping[str, Callable[..., object]],
    inputs: list[Any],
    moved: Bytes,
    shape: Row,
) -> Iterator[Row]:
    """Rows of several implementations on the same inputs; topkit's is compared with the fastest of the others."""
    times: dict[str, float] = {}
    for name, rival in rivals.items():

        def measure(rival: Callable[..., object] = rival) -> Row:
            spans = session.timed([lambda x=x: rival(x) for x in inputs])
            return {"spans": spans, "moved": moved, **shape}

        row = session.attempt(bench, what, name, measure)
        if row["median"] is not None:
            times[name] = row["median"]
        yield row
    fastest = min(times.items(), key=lambda one: one[1], default=None)
    spans = session.timed([lambda x=x: ours(x) for x in inputs])
    yield session.row(bench, what, OURS, spans, moved, against=fastest, **shape)

"""Codes of keys scored, and the best of them selected in the same pass."""

from __future__ import annotations

from collections.abc import Iterator

from topkit.experiments.bench import formulas
from topkit.experiments.bench.codes import best, random_codes, random_queries, scores
from topkit.experiments.bench.formulas import LIGHTNING
from topkit.experiments.bench.rows import OURS, Row
from topkit.experiments.bench.scale import length_of
from topkit.experiments.bench.session import Case, Session


def score_cases(session: Session) -> Iterator[Case]:
    """Codes read and float32 scores written, pooled over each KV group."""
    short, _, long = session.scale.lengths
    for dtype in ("fp8_e4m3", "int8", "int4", "mxfp4", "nvfp4", "sign", *LIGHTNING):
        yield case(session, "score", dtype, long if dtype in LIGHTNING else short)


def fused_cases(session: Session) -> Iterator[Case]:
    """The best k of the codes, with no scores written."""
    short, _, long = session.scale.lengths
    for dtype, length in (
        ("sign", short), ("sign", long), ("int4", short), ("mxfp4", short), ("nvfp4", short),
        ("fp8_e4m3", short), *((dtype, length) for dtype in LIGHTNING for length in (short, long)),
    ):  # fmt: skip
        yield case(session, "score-select", dtype, length)


def case(session: Session, bench: str, dtype: str, length: int) -> Case:
    """`score` or `score-select` of codes of one kind, of the scale's batch."""
    s = session.scale
    what = f"{dtype}, batch {s.batch} x {length_of(length)}"

    def measure() -> Iterator[Row]:
        moved = formulas.index(dtype, s.batch, length, s.groups, s.dim)
        session.require(3 * moved.counted)
        several = session.sets(moved.counted)
        sets = [random_codes(session, dtype, s.batch, length) for _ in range(several)]
        queries = random_queries(session, dtype, s.batch)
        shape: Row = {"dtype": dtype, "batch": s.batch, "length": length}
        if bench == "score":
            moved += formulas.scores(s.batch, length, sets[0].codes.shape[1])
            calls = [lambda one=one: scores(one, queries, session.backend) for one in sets]
        else:
            shape["k"] = s.k
            calls = [lambda one=one: best(one, queries, s.k, session.backend) for one in sets]
        yield session.row(bench, what, OURS, session.timed(calls), moved, **shape)

    return what, measure

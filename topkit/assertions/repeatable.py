# pyright: strict
"""Whether a kernel chooses the same again: over runs, in chunks, alone and padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from topkit.assertions.arrays import Array, indices_of
from topkit.assertions.audit import Audit
from topkit.assertions.differences import Differences, Scored, compare
from topkit.assertions.forms import Form, Inputs, form_of
from topkit.assertions.known_scores import demand_of, problem_of, stood
from topkit.assertions.selects import BLOCK
from topkit.errors import InputError
from topkit.kernels import checks
from topkit.kernels.precision import full_precision

# Rows that are called by themselves, or chunks, at most; and the keys of more padding.
CALLS = 16
MORE = 37
WORDS = {
    "runs": "called again on the same inputs",
    "chunked": "given its queries in chunks",
    "alone": "given its rows one by one, without padding",
    "padded": "given more padding, with large numbers in it",
}
REMEDIES = {
    "runs": "the kernel reads what it has not written, or depends on the order of threads",
    "chunked": "a query may see other keys, or its scores are summed in another order, beside other queries",
    "alone": "a row's choice depends on other rows, or on its padding",
    "padded": "what lies behind lengths has a say",
}

Select = Callable[..., Array]


def assert_repeatable(
    select: Select,
    inputs: Mapping[str, object],
    *,
    runs: int = 5,
    forms: Mapping[str, str] | None = None,
    causal: bool = True,
    scores: Array | None = None,
    tolerance: float | None = None,
    forgive_ties: bool = False,
) -> Audit:
    """Require that a function chooses the same set of slots again, however it is called.

    `select(**inputs)` gives indices [B, Hs, Tq, k], [B, Tq, k] or [B, k], -1 for none. It is called `runs` times;
    with the queries in chunks, whose keys end where theirs did (causal=False: every query sees all keys);
    with up to 16 rows one by one, their padding cut off; and with 37 keys more, large numbers behind `lengths`.
    What inputs do not allow (one query, one row, no lengths) is not tried.
    Shapes: queries [B, Hq, Tq, D], keys [B or 1, Hk, T, D], values, scores [B, T] or [B, Hs, Tq, T],
    lengths and start [B], stop [B or 1, Tq], block_table [B, pages], index_queries [B, Hi, Tq, Di], index_keys
    [B, 1, T, Di], index_weights [B, Tq, Hi]; forms names the dimensions of other tensors, and of `indices`, as
    forms={"q": "B Tq Hq D", "seq_lens": "lengths"}. What is no tensor is handed on as it is.
    Ties are those of inputs' scores, or of queries and keys, or of scores=, [..., T] beside the indices. tolerance
    as in `assert_selects`. forgive_ties admits a change among slots whose scores are one.
    Returns: an Audit: how many rows have ties at the boundary, and what changed.
    Raises: AssertionError with the first row that changed; InputError for inputs of unknown form.
    """
    if checks.whole("runs", runs) < 2:
        raise InputError(f"runs must be at least 2, to be compared; got {runs}")
    if not callable(select):
        raise InputError(f"select must be a function of the inputs; got {type(select).__name__}")
    known = Inputs.of(inputs, forms or {})
    first = indices_of(known.call(select))
    form = form_of("indices", first, forms or {})
    _require_shape(known, first, form)
    again = {
        "runs": [indices_of(known.call(select)) for _ in range(runs - 1)],
        "chunked": list(_chunked(known, select, form, first, causal)),
        "alone": list(_alone(known, select, form, first)),
        "padded": list(_padded(known, select)),
    }
    compared: dict[str, Differences] = {}
    with full_precision():
        problem = problem_of(known, scores, form, causal)
        demand = demand_of(known, problem, first.shape[-1], tolerance)
        for name, others in again.items():
            if not others:
                continue
            rows = [stood(x, form) for x in (first, *others)]
            compared[name] = compare(rows[0], rows[1:], problem, demand, BLOCK)
    audit = _audit(compared)
    for name, differences in compared.items():
        change = differences.change
        if change.rows > (change.among_ties if forgive_ties else 0):
            raise AssertionError(f"{_words(name, differences, first, form)}\n  in all: {audit}")
    return audit


def _audit(compared: Mapping[str, Differences]) -> Audit:
    runs, changes = compared["runs"], {name: x.change for name, x in compared.items()}
    tried = (changes.get(name) for name in ("chunked", "alone", "padded"))
    return Audit(runs.rows, runs.ties, runs.change, *tried)


def _chunked(
    known: Inputs, select: Select, form: Form, first: Tensor, causal: bool
) -> Iterator[Tensor]:
    """All queries in two uneven chunks, and one by one, or in as many chunks as there are calls."""
    count = known.size("Tq")
    if count is None or count < 2 or "Tq" not in form:
        return
    for ends in ({max(1, count // 3)}, {count * n // CALLS for n in range(1, CALLS)} - {0}):
        bounds = [0, *sorted(ends), count]
        out = [
            indices_of(known.queries(a, b, causal).call(select))
            for a, b in pairwise(bounds)
            if a < b
        ]
        yield _joined(out, form.index("Tq"), first, "chunks of its queries")


def _alone(known: Inputs, select: Select, form: Form, first: Tensor) -> Iterator[Tensor]:
    """Rows one by one; those that are not called keep what they chose first."""
    rows = known.size("B")
    if rows is None or "B" not in form or (rows == 1 and known.lengths is None):
        return
    every = sorted({n * rows // CALLS for n in range(CALLS)} if rows > CALLS else range(rows))
    at = form.index("B")
    own = {row: indices_of(known.row(row, first.shape[-1]).call(select)) for row in every}
    out = [own[row] if row in own else first.narrow(at, row, 1) for row in range(rows)]
    yield _joined(out, at, first, "rows one by one")


def _padded(known: Inputs, select: Select) -> Iterator[Tensor]:
    if known.lengths is not None and known.size("T") is not None:
        yield indices_of(known.padded(MORE).call(select))


def _joined(out: list[Tensor], at: int, first: Tensor, what: str) -> Tensor:
    """Lists of several calls, as wide as the widest, in the shape of the first call's."""
    width = max(x.shape[-1] for x in out)
    filled = [torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=-1) for x in out]
    expected = list(first.shape[:-1])
    shapes = {tuple(x.shape[:at] + x.shape[at + 1 : -1]) for x in filled}
    joined = torch.cat(filled, at) if len(shapes) == 1 else None
    if joined is None or list(joined.shape[:-1]) != expected:
        raise InputError(
            f"the function must give a list for each query that it gets; of {what} it gave "
            f"{[list(x.shape) for x in out][:4]}, of all {list(first.shape)}"
        )
    return joined


def _require_shape(known: Inputs, first: Tensor, form: Form) -> None:
    sizes = {symbol: known.size(symbol) for symbol in ("B", "Tq")}
    for symbol, size in sizes.items():
        if symbol in form and size is not None and first.shape[form.index(symbol)] != size:
            raise InputError(
                f"indices [{' '.join(form)}] must have {symbol} = {size} as inputs do; got {list(first.shape)}; "
                "forms={'indices': ...} names its dimensions"
            )


def _words(name: str, differences: Differences, first: Tensor, form: Form) -> str:
    change, row = differences.change, differences.first
    place = _place(row or 0, first, form)
    tied = (
        f", {change.among_ties} of them among tied scores alone"
        if differences.ties is not None
        else ""
    )
    hint = REMEDIES[name]
    if change.among_ties == change.rows:
        hint = (
            "ties are broken by chance: keep the lowest slot of equal scores, sum scores in one order, or pass "
            "forgive_ties=True"
        )
    return (
        f"{WORDS[name]}, it chose otherwise: {change.rows} of {differences.rows} rows differ{tied}; "
        f"the first is {place}\n  only before: {_few(differences.before)}\n  only then: {_few(differences.after)}\n"
        f"  hint: {hint}"
    )


def _place(row: int, first: Tensor, form: Form) -> str:
    """Where a row is, of lists that stand as batch, heads, queries."""
    names = {"B": "batch", "Tq": "query"}
    order = [n for n in ("B", *(x for x in form if x not in ("B", "Tq", "k")), "Tq") if n in form]
    sizes = [first.shape[form.index(name)] for name in order]
    numbers: list[str] = []
    for name, size in zip(reversed(order), reversed(sizes), strict=True):
        row, at = divmod(row, size)
        numbers.append(f"{names.get(name, 'head')} {at}")
    return ", ".join(reversed(numbers))


def _few(slots: Scored) -> str:
    shown = [f"{slot}" if x is None else f"{slot} ({x:.7g})" for slot, x in slots[:8]]
    return (", ".join(shown) or "none") + (" ..." if len(slots) > 8 else "")

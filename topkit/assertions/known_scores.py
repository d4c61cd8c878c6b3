# pyright: strict
"""The scores that tell ties of a selection function's inputs, if any do."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from topkit.assertions.arrays import Array, numbers
from topkit.assertions.demand import Demand
from topkit.assertions.forms import FORMS, Form, Inputs
from topkit.assertions.problem import Problem
from topkit.kernels.rounding import TOLERANCE


def problem_of(known: Inputs, scores: Array | None, form: Form, causal: bool) -> Problem | None:
    """The scores of rows [B, Hs, Tq], or queries and keys; None where inputs hold neither.

    scores: the caller's own, of the form of the indices.
    """
    table, size = known.tensors.get("block_table"), known.others.get("page_size")
    if table is None or size is None:
        table = size = None
    if scores is not None:
        own = stood(numbers(scores, "scores"), form)
        return Problem(own, None, None, block_table=table, page_size=size)
    own, queries, keys = (_in_order(known, name) for name in ("scores", "queries", "keys"))
    if own is None and (queries is None or keys is None):
        return None
    if own is not None:
        queries = keys = None
    lengths = None if known.lengths is None else known.tensors[known.lengths]
    start, stop = known.tensors.get("start"), known.tensors.get("stop")
    if not causal and stop is None:
        ends = torch.tensor([known.size("T") or 0]) if lengths is None else lengths
        stop = ends.reshape(-1, 1).expand(-1, known.size("Tq") or 1)
    if stop is not None:
        lengths = None
    return Problem(own, queries, keys, lengths, start, stop, table, size)


def demand_of(
    known: Inputs, problem: Problem | None, width: int, tolerance: float | None
) -> Demand:
    """How far scores are known, and how many slots are due."""
    if tolerance is None:
        tolerance = TOLERANCE if problem is None or problem.scores is None else 0.0
    scaling = known.others.get("scaling")
    return Demand.of(
        width, tolerance=tolerance, scaling=scaling if isinstance(scaling, Real) else None
    )


def stood(x: Tensor, form: Form) -> Tensor:
    """Indices or scores in the order rows, heads, queries [B, Hs, Tq, ...], 1 where there is none."""
    names = list(form[:-1])
    heads = [name for name in names if name not in ("B", "Tq")]
    for name in ("B", *(heads or ["Hs"]), "Tq"):
        if name not in names:
            names.append(name)
            x = x.unsqueeze(-2)
    order = [names.index(name) for name in ("B", *(heads or ["Hs"]), "Tq")]
    return x.permute(*order, x.dim() - 1)


def _in_order(known: Inputs, name: str) -> Tensor | None:
    """A tensor in the order of its own name's form; None where it is of another."""
    x = known.tensors.get(name)
    if x is None:
        return None
    own = FORMS[name] if isinstance(FORMS[name], str) else FORMS[name][-1]
    wanted = str(own).split()
    form = list(known.forms[name])
    if name == "scores" and form == ["B", "T"]:
        return x[:, None, None]
    return x.permute(*map(form.index, wanted)) if sorted(form) == sorted(wanted) else None

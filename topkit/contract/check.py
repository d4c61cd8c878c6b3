# pyright: strict
"""Holding an indexer to the laws: all at once, or each as a pytest case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from topkit.contract import costs, histories, recipes, selections
from topkit.contract.draw import Draw, Inputs, draw_of
from topkit.contract.origin import message_of
from topkit.contract.streams import parts
from topkit.errors import InputError
from topkit.grammar import nearest, short
from topkit.indexers.base import Indexer
from topkit.indexers.spec import parse
from topkit.kernels.precision import full_precision

Law = Callable[..., None]
Expected = Mapping[str, Any] | Callable[[Indexer], Mapping[str, Any]]

LAWS: dict[str, Law] = {
    check.__name__: check
    for check in (
        recipes.declared_inputs,
        recipes.named_by_repr,
        selections.shape,
        selections.visible_slots_only,
        selections.unique,
        selections.none_last,
        selections.estimates_declared,
        selections.count,
        selections.exhaustive,
        selections.bounded_cost,
        selections.half_precision,
        recipes.inputs_untouched,
        histories.same_seed_same_answer,
        histories.append,
        histories.queries_together,
        histories.row_alone,
        histories.padding_is_nothing,
        histories.truncate,
        histories.fixed,
        histories.reorder,
        histories.fork,
        histories.fork_of_grown,
        histories.repeated_kv_heads,
        recipes.scores_explain,
        recipes.honest_bytes,
        costs.stated_costs,
        selections.budgets_together,
        histories.cuda_agrees,
    )
}


def check_indexer(
    indexer: Indexer | str,
    *,
    heads: tuple[int, int] | None = None,
    widths: Mapping[str, int] | None = None,
    layer: int = 0,
    inputs: Inputs | None = None,
) -> None:
    """Hold an indexer to every law, on random tensors or on shapes and tensors of the user's own.

    A recipe with parameters of its own for each layer and head says where it belongs: heads=(64, 1), of
    queries and of keys, the layer, and widths of head_dim, hidden, latent and rope. inputs are tensors by
    name, from which tokens are drawn: queries, keys, and any that a Step has, as values or hidden.
    Shapes: queries, prefill_queries [B, Hq, T, D]; keys, values [B, Hk, T, D]; hidden, latent
    [B, T, width]; rope, cos and sin of [B, T, width]; index_queries [B, H, T, d], index_keys
    [B, 1, T, d], index_weights [B, T, H].
    Raises: AssertionError that names the first law broken, and how, or at which line of the recipe;
    InputError for shapes that do not fit.
    """
    recipe = parse(indexer)
    draw = draw_of(recipe, heads, widths, layer, inputs)
    for name in LAWS:
        _hold(recipe, draw, name)


def parametrize_with_checks(
    indexers: Iterable[Indexer | str],
    *,
    expected_failed_checks: Mapping[str, Any]
    | Callable[[Indexer], Mapping[str, str]]
    | None = None,
    heads: tuple[int, int] | None = None,
    widths: Mapping[str, int] | None = None,
    layer: int = 0,
    inputs: Inputs | None = None,
) -> Any:
    """A pytest decorator: one case for each indexer and law, for `def test(indexer, check)`.

    The test calls check(indexer). `expected_failed_checks` gives the reason for each law that is
    known to fail, by law, by indexer and law, or as a function of the indexer; such a case is a
    strict xfail, so that one that starts to pass is noticed. Shapes and inputs: `check_indexer`'s.
    Raises: InputError for a law that there is not.
    """
    import pytest

    cases: list[Any] = []
    for indexer in map(parse, indexers):
        draw = draw_of(indexer, heads, widths, layer, inputs)
        failing = _failing(indexer, expected_failed_checks or {})
        for name in LAWS:
            marks: list[Any] = []
            if name in failing:
                marks.append(pytest.mark.xfail(reason=failing[name], strict=True))
            if name == "cuda_agrees":
                marks += [pytest.mark.gpu, pytest.mark.skipif(not _has_gpu(), reason="no GPU")]
            check = partial(_hold, draw=draw, name=name)
            cases.append(pytest.param(indexer, check, marks=marks, id=f"{short(indexer)}-{name}"))
    return pytest.mark.parametrize(("indexer", "check"), cases)


def _hold(indexer: Indexer, draw: Draw, name: str) -> None:
    try:
        with full_precision():
            LAWS[name](indexer, draw)
    except Exception as error:
        broken = f"{short(indexer)} breaks the law {name!r}"
        raise AssertionError(f"{broken}: {message_of(error, indexer)}") from error


def _failing(indexer: Indexer, expected: Expected) -> Mapping[str, str]:
    """The laws that this indexer is expected to break, and why."""
    said: Any = expected(indexer) if callable(expected) else expected
    failing: dict[str, Any] = dict(said)
    if any(isinstance(value, Mapping) for value in failing.values()):
        mine: Iterator[dict[str, Any]] = (x for n, x in failing.items() if _names(n, indexer))
        failing = next(mine, dict[str, Any]())
    for name in failing:
        if name not in LAWS:
            raise InputError(f"there is no law {name!r}; {nearest(name, LAWS)}")
    return failing


def _names(text: str, indexer: Indexer) -> bool:
    """Whether a text is the name of the indexer's class, or the indexer in any form."""
    if text == type(indexer).__name__:
        return True
    own = indexer.registry().own
    try:  # a class that is in no registry may go by its bare name
        return (
            parse(text, {**own, **{type(x).__name__: type(x) for x in parts(indexer)}}) == indexer
        )
    except InputError:
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()

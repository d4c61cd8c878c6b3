"""Holding an indexer to the laws: all at once, or each as a pytest case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from topkit.contract import histories, recipes, selections
from topkit.contract.streams import parts
from topkit.errors import InputError
from topkit.grammar import nearest, short
from topkit.indexers.base import Indexer
from topkit.indexers.spec import parse

Law = Callable[[Indexer], None]
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
        selections.budgets_together,
        histories.cuda_agrees,
    )
}


def check_indexer(indexer: Indexer | str) -> None:
    """Hold an indexer to every law.

    Raises: AssertionError that names the first law broken, and how.
    """
    for name in LAWS:
        _hold(parse(indexer), name)


def parametrize_with_checks(
    indexers: Iterable[Indexer | str],
    *,
    expected_failed_checks: Mapping[str, Any]
    | Callable[[Indexer], Mapping[str, str]]
    | None = None,
) -> Any:
    """A pytest decorator: one case for each indexer and law, for `def test(indexer, check)`.

    The test calls check(indexer). `expected_failed_checks` gives the reason for each law that is
    known to fail, by law, by indexer and law, or as a function of the indexer; such a case is a
    strict xfail, so that one that starts to pass is noticed.
    Raises: InputError for a law that there is not.
    """
    import pytest

    cases: list[Any] = []
    for indexer in map(parse, indexers):
        failing = _failing(indexer, expected_failed_checks or {})
        for name in LAWS:
            marks: list[Any] = []
            if name in failing:
                marks.append(pytest.mark.xfail(reason=failing[name], strict=True))
            if name == "cuda_agrees":
                marks += [pytest.mark.gpu, pytest.mark.skipif(not _has_gpu(), reason="no GPU")]
            check = partial(_hold, name=name)
            cases.append(pytest.param(indexer, check, marks=marks, id=f"{short(indexer)}-{name}"))
    return pytest.mark.parametrize(("indexer", "check"), cases)


def _hold(indexer: Indexer, name: str) -> None:
    try:
        LAWS[name](indexer)
    except Exception as error:
        said = str(error) if isinstance(error, AssertionError) else f"it raised {error!r}"
        raise AssertionError(f"{short(indexer)} breaks the law {name!r}: {said}") from error


def _failing(indexer: Indexer, expected: Expected) -> Mapping[str, str]:
    """The laws that this indexer is expected to break, and why."""
    failing: Mapping[str, Any] = expected if isinstance(expected, Mapping) else expected(indexer)
    if any(isinstance(value, Mapping) for value in failing.values()):
        failing = next((laws for name, laws in failing.items() if _names(name, indexer)), {})
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

"""Every registered indexer keeps every law: no indexer is named here."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from topkit.contract import parametrize_with_checks
from topkit.indexers import INDEXERS
from topkit.indexers.spec import parse


def examples() -> list[str]:
    """Each recipe's own examples, or its defaults; and every plain recipe inside two combinators."""
    specs = []
    for name, recipe in INDEXERS.items():
        if recipe.requires and find_spec(recipe.requires) is None:
            continue
        if name in ("indices", "hashattention"):  # of files that only some tensors belong to
            continue
        own = list(recipe.examples) or [f"{name}()"]
        specs += own
        if recipe.family != "combinator" and not parse(own[0]).traits().weighted:
            specs += [f"keep({own[0]}, sink=1, window=2)", f"refine({own[-1]}, factor=2)"]
    return list(dict.fromkeys(specs))


@parametrize_with_checks(examples())
def test_law(indexer, check):
    check(indexer)


@pytest.mark.parametrize("name", INDEXERS)
def test_registered_under_its_own_name_with_a_source_and_a_cost(name):
    recipe = INDEXERS[name]
    assert recipe.__name__ == name
    assert recipe.source and recipe.cost and recipe.family != "other"
    assert recipe.__doc__ and len(recipe.__doc__.split(". ")[0].splitlines()[0]) <= 100


@pytest.mark.parametrize("spec", examples())
def test_spec_forms_agree(spec):
    indexer = parse(spec)
    if "(" not in spec.partition("(")[2]:
        head, _, tail = spec.rstrip(")").partition("(")
        bare = f"{head}:{tail.replace(chr(39), '').replace(' ', '')}"
        assert parse(bare) == indexer

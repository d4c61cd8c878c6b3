"""Every registered indexer keeps every law: no indexer is named here."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from topkit.contract import parametrize_with_checks
from topkit.indexers import INDEXERS
from topkit.indexers.spec import parse

# Of files that only some tensors belong to.
OF_FILES = {"indices", "hashattention"}


def runnable() -> dict[str, list[str]]:
    """Each recipe's own examples, or its defaults, of recipes whose packages are here."""
    return {
        name: list(recipe.examples) or [f"{name}()"]
        for name, recipe in INDEXERS.items()
        if not recipe.requires or find_spec(recipe.requires) is not None
        if name not in OF_FILES
    }


def combined() -> tuple[list[str], list[str]]:
    """Every plain recipe inside two combinators: the first of each family, and all the others."""
    first: list[str] = []
    others: list[str] = []
    families = set[str]()
    for name, own in runnable().items():
        family = INDEXERS[name].family
        traits = parse(own[0]).traits()
        if family == "combinator" or traits.weighted or traits.rest:
            continue
        specs = [f"keep({own[0]}, sink=1, window=2)", f"refine({own[-1]}, factor=2)"]
        (others if family in families else first).extend(specs)
        families.add(family)
    return first, others


OWN = [spec for own in runnable().values() for spec in own]
FIRST, OTHERS = combined()
SPECS = list(dict.fromkeys([*OWN, *FIRST]))
# Those that are tried each time: the first example of each recipe.
TRIED = list(dict.fromkeys(own[0] for own in runnable().values()))


@parametrize_with_checks(TRIED)
def test_law(indexer, check):
    check(indexer)


@pytest.mark.slow
@parametrize_with_checks([spec for spec in dict.fromkeys([*SPECS, *OTHERS]) if spec not in TRIED])
def test_law_of_other_forms(indexer, check):
    check(indexer)


@pytest.mark.parametrize("name", INDEXERS)
def test_registered_under_its_own_name_with_a_source_and_a_cost(name):
    recipe = INDEXERS[name]
    assert recipe.__name__ == name
    assert recipe.source and recipe.cost and recipe.family != "other"
    assert recipe.__doc__ and len(recipe.__doc__.split(". ")[0].splitlines()[0]) <= 100


@pytest.mark.parametrize("spec", dict.fromkeys([*SPECS, *OTHERS]))
def test_spec_forms_agree(spec):
    indexer = parse(spec)
    if "(" not in spec.partition("(")[2]:
        head, _, tail = spec.rstrip(")").partition("(")
        bare = f"{head}:{tail.replace(chr(39), '').replace(' ', '')}"
        assert parse(bare) == indexer

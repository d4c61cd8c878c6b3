"""What recipes state that they cost: as numbers, as text, and beside what is really read and computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from topkit.contract.draw import Draw
from topkit.contract.reads import Reads
from topkit.errors import InputError
from topkit.indexers import INDEXERS, Stateless
from topkit.indexers.spec import parse
from topkit.indexers.stated_cost import Cost, Shape, formulas
from topkit.indexers.symbols import Symbol, least

T, D, k = Symbol("T"), Symbol("D"), Symbol("k")
# What chose their lists is elsewhere, and costs there.
UNSTATED = {"native", "indices"}
# Of a file of weights, which has tests of its own.
OF_FILES = {"hashattention"}


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (2 * T * D, "2 * T * D"),
        ((T + 1) * D, "(T + 1) * D"),
        (T + D * 2, "T + D * 2"),
        (T / (D * 2), "T / (D * 2)"),
        (T / (D / 2), "T / (D / 2)"),
        (T / D / 2, "T / D / 2"),
        (T - (D - 1), "T - (D - 1)"),
        (1 - T, "1 - T"),
        (2**T, "2^T"),
        ((T + 1) ** 2, "(T + 1)^2"),
        (math.ceil(T / 16), "ceil(T / 16)"),
        (least(k, T), "min(k, T)"),
        (0 * T + 1 * D + 0, "D"),
        (T / 1, "T"),
    ],
)
def test_the_text_of_a_term_is_its_arithmetic(term, text):
    assert str(term) == text
    values = {"T": 7, "D": 3, "k": 5, "ceil": math.ceil, "min": min}
    assert isinstance(eval(text.replace("^", "**"), values), int | float)


@pytest.mark.parametrize("name", sorted(set(INDEXERS) - UNSTATED - OF_FILES))
def test_every_recipe_states_its_costs_and_their_text_gives_the_same_numbers(name):
    for spec in INDEXERS[name].examples or (f"{name}()",):
        recipe = parse(spec)
        shape = Shape(Hq=6, Hk=2, D=24, Dv=16, T=1000, k=40, e=2)
        cost = recipe.costs(shape)
        inner = getattr(recipe, "base", None)
        base = None
        if inner is not None:
            if inner.traits().may_come_short:
                continue  # shown as if base kept k
            base = inner.costs(shape)
            if inner.costs(replace(shape, k=80)).read != base.read:
                continue  # the text names what base reads at the k that it is asked for
        for column, text in formulas(recipe).items():
            names = {**vars(shape), **vars(recipe), "ceil": math.ceil, "min": min, "base": base}
            names |= {"log2": math.log2, "pow2": lambda x: 2 ** math.ceil(math.log2(x))}
            by_text = eval(text.replace("^", "**"), names)
            assert by_text == pytest.approx(getattr(cost, column)), f"{spec}: {column}"


@pytest.mark.parametrize("name", sorted(UNSTATED - {"indices"}))
def test_what_is_chosen_elsewhere_states_nothing_and_says_so(name):
    with pytest.raises(InputError, match=r"does not state what it costs: what .* not counted"):
        parse(f"{name}()").costs(Shape())


@pytest.mark.parametrize(
    "spec", ["exact", "sign", "quantized", "quest", "moba", "refine(sign(), factor=2)", "lightning"]
)
def test_operations_are_the_products_that_torch_counts(spec):
    recipe = parse(spec)
    one = Draw(widths={"head_dim": 64})(recipe, length=96, rows=1, heads=(6, 2))
    index, last = one.build(recipe), slice(95, 96)
    step = one.step(recipe, last, 96)
    with FlopCounterMode(display=False) as counter:
        index.select(one.queries[:, :, last], 5, step)
    stated = recipe.costs(Shape(Hq=6, Hk=2, D=64, Dv=64, T=96, k=5, e=4)).operations
    assert counter.get_total_flops() / 2 == stated


def test_reads_are_counted_once_over_and_each_time_gathered():
    x = torch.arange(24.0).view(2, 12)
    with Reads([x]) as reads:
        assert x[0].shape == (12,) and x.view(3, 8).mT.shape == (8, 3)
    assert reads.total == 0
    with Reads([x]) as reads:
        x[:, :6].sum()
        x[:, 3:8].mul(2)
    assert reads.total == 2 * 8 * 4
    with Reads([x]) as reads:
        x[torch.tensor([0, 0, 1])]
        x.gather(1, torch.tensor([[1, 1]]))
    assert reads.total == (3 * 12 + 2) * 4
    with Reads([x]) as reads:
        torch.nn.functional.embedding(torch.tensor([0, 0]), x)
        (x.half() + 1).sum()
        torch.ones(3).sum()
    assert reads.total == (2 * 12 + 24) * 4


@dataclass(frozen=True)
class looks_at_its_shape(Stateless):
    """States a cost that no symbol can stand in for."""

    def costs(self, shape):
        return Cost(read=shape.T if shape.T > 100 else 0)


def test_a_formula_that_looks_at_numbers_is_refused_by_name():
    with pytest.raises(InputError, match=r"looks_at_its_shape.* compares numbers of the shape"):
        formulas(looks_at_its_shape())


@dataclass(frozen=True)
class looks_at_itself(Stateless):
    """States a cost that looks at its own number."""

    width: int = 8

    def costs(self, shape):
        return Cost(read=shape.T * (self.width if self.width > 2 else 1))


def test_a_formula_that_looks_at_its_own_numbers_is_shown_for_them():
    assert formulas(looks_at_itself())["read"] == "T * 8"

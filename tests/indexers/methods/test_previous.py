"""The last step's list as candidates: LServe's reuse, arXiv 2502.14866, section 3.5; arXiv 2604.22312."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import LENGTH, arrays, best, chosen, stream
from topkit.indexers.spec import parse

BEGIN = 20


@pytest.mark.parametrize(("every", "factor", "k"), [(4, 2, 3), (3, 1, 5), (100, 3, 2), (1, 2, 4)])
def test_the_best_of_the_last_step_and_those_since(every, factor, k):
    recipe = parse(f"previous(sign(), every={every}, factor={factor})")
    one = stream(recipe, 2)
    queries, keys = arrays(one)
    index = one.build(recipe, [BEGIN])
    there: list[list[int]] = [[] for _ in range(4)]
    proposed = 0
    for at in range(BEGIN, LENGTH + 1):
        if at > BEGIN:
            one.append(recipe, index, at)
        got = chosen(one, recipe, index, k)
        anew = at == BEGIN or at - proposed >= every
        proposed = at if anew else proposed
        for head in range(4):
            query, own = queries[head, at - 1], keys[head, :at]
            true = own @ query
            if anew:
                there[head] = best(np.where(own >= 0, 1, -1) @ query, factor * k)
            else:
                there[head] = best(true, factor * k, [*there[head], at - 1])
            assert got[head] == best(true, k, there[head]), f"{at} keys, head {head}"

"""SnapKV, arXiv 2404.14469, section 4.1: votes of the prompt's last window, pooled."""

from __future__ import annotations

import numpy as np
import pytest

from plainly import LENGTH, WIDTH, arrays, best, chosen, softmax, stream
from topkit.indexers.spec import parse


def votes(queries: np.ndarray, keys: np.ndarray, window: int, kernel: int, pool: str) -> np.ndarray:
    """The pooled vote for each key before the window, of a prompt's queries and keys [T, D]."""
    length = len(keys)
    total = np.zeros(length - window)
    for at in range(length - window, length):
        weights = softmax(keys[: at + 1] @ queries[at] * WIDTH**-0.5)
        total += weights[: length - window] / window
    pooled = []
    for at in range(len(total)):
        near = [
            total[i] if 0 <= i < len(total) else 0.0
            for i in range(at - kernel // 2, at - kernel // 2 + kernel)
        ]
        pooled.append(max(near) if pool == "max" else sum(near) / kernel)
    return np.array(pooled)


@pytest.mark.parametrize(
    ("window", "kernel", "pool"), [(4, 3, "avg"), (6, 5, "max"), (3, 1, "avg")]
)
@pytest.mark.parametrize("prompt", [30, LENGTH])
@pytest.mark.parametrize("k", [7, 14, 20])
def test_the_window_and_what_it_voted_for(window, kernel, pool, prompt, k):
    recipe = parse(f"snapkv(window={window}, kernel={kernel}, pool='{pool}')")
    one = stream(recipe, 1)
    queries, keys = arrays(one)
    index = one.build(recipe, [prompt, LENGTH] if prompt < LENGTH else [prompt])
    got = chosen(one, recipe, index, k)
    newest = list(range(prompt - window, LENGTH))
    for head in range(4):
        if len(newest) >= k:
            want = newest[-k:]
        else:
            own = votes(queries[head, :prompt], keys[head, :prompt], window, kernel, pool)
            want = newest + best(own, k - len(newest))
        assert sorted(got[head]) == sorted(want)

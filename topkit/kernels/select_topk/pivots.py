"""The k-th of the keys that one program holds, sought by pivots."""

# A kernel's values are not what Python, and pyright, take them for.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from topkit.kernels.backend import interpreted
from topkit.kernels.select_topk.keys import INFINITY, LOWEST

PLAIN = tl.constexpr(interpreted())


@triton.jit
def reached_by(key, low, high, reaching, least, most):
    """A key that at least `least` of the keys reach, the greatest, or one that at most `most` do.

    It is sought from `low`, which `reaching` of them reach, to `high`.
    """
    while low < high:
        step = tl.maximum((high - low).to(tl.uint32) // 5, 1).to(tl.int32)
        one, two = tl.minimum(low + step, high), tl.minimum(low + 2 * step, high)
        three, four = tl.minimum(low + 3 * step, high), tl.minimum(low + 4 * step, high)
        # Four counts at a time.
        near = (key >= one).to(tl.uint32) + ((key >= two).to(tl.uint32) << 16)
        far = (key >= three).to(tl.uint32) + ((key >= four).to(tl.uint32) << 16)
        near, far = _sums(near, far)
        low, high, reaching = _narrowed(low, high, reaching, one, near & 0xFFFF, least)
        low, high, reaching = _narrowed(low, high, reaching, two, near >> 16, least)
        low, high, reaching = _narrowed(low, high, reaching, three, far & 0xFFFF, least)
        low, high, reaching = _narrowed(low, high, reaching, four, far >> 16, least)
        if reaching <= most:
            high = low
    return low, reaching


@triton.jit
def _narrowed(low, high, reaching, pivot, count, least):
    """What is left to be searched, knowing how many keys reach a pivot."""
    count = count.to(tl.int32)
    enough = count >= least
    high = tl.where(enough, high, tl.minimum(high, pivot - 1))
    return tl.where(enough, pivot, low), high, tl.where(enough, count, reaching)


@triton.jit
def from_all(key, least, most):
    """As `reached_by`, of keys of which nothing is known; one that all reach where they are too few."""
    low, high = _extremes(tl.where(key > LOWEST, key, INFINITY), key)
    high = tl.minimum(high, INFINITY)
    return reached_by(key, tl.minimum(low, high), high, most + 1, least, most)[0]


# Two reductions at a time: what costs is that threads wait for one another. Triton's interpreter takes
# those that are not its own an element at a time.
@triton.jit
def _extremes(a, b):
    """The least of a, and the greatest of b."""
    if PLAIN:
        least, greatest = tl.min(a), tl.max(b)
    else:
        least, greatest = tl.reduce((a, b), 0, _farther)
    return least, greatest


@triton.jit
def _farther(a, b, c, d):
    return tl.minimum(a, c), tl.maximum(b, d)


@triton.jit
def _sums(a, b):
    """Both sums."""
    if PLAIN:
        of_a, of_b = tl.sum(a), tl.sum(b)
    else:
        of_a, of_b = tl.reduce((a, b), 0, _both)
    return of_a, of_b


@triton.jit
def _both(a, b, c, d):
    return a + c, b + d

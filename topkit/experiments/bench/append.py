"""One token's keys encoded into codes with room for them, beside the same in torch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from topkit.experiments.bench import formulas
from topkit.experiments.bench.codes import Codes, random_codes
from topkit.experiments.bench.rivals import beside
from topkit.experiments.bench.rows import Row
from topkit.experiments.bench.session import Case, Session
from topkit.kernels import fp4
from topkit.kernels.codes import quantize, signs
from topkit.kernels.quantize_append import quantize_append


def append_cases(session: Session) -> Iterator[Case]:
    """A token a row, at the last slot of the shortest context."""
    s = session.scale
    for dtype in ("sign", "int4", "mxfp4", "nvfp4", "fp8_e4m3"):
        what = f"{dtype}, batch {s.batch}, 1 token"

        def measure(dtype: str = dtype, what: str = what) -> Iterator[Row]:
            codes = random_codes(session, dtype, s.batch, s.shortest)
            keys = session.drawn(s.batch, s.groups, 1, s.dim)
            code = formulas.index(dtype, s.batch, 1, s.groups, s.dim)
            moved = code + formulas.same(s.batch * s.groups * s.dim * formulas.ELEMENT)
            shape = {"dtype": dtype, "batch": s.batch, "length": s.shortest}
            at = s.shortest - 1

            def ours(keys: Tensor) -> None:
                quantize_append(
                    keys, codes.codes, codes.scale, at, dtype=dtype, backend=session.backend
                )

            rivals = {"torch": lambda keys: append_in_torch(codes, keys, at)}
            yield from beside(session, "append", what, ours, rivals, [keys], moved, shape)

        yield what, measure


def append_in_torch(codes: Codes, keys: Tensor, at: int) -> None:
    """Keys [B, H, t, D] encoded into the slots from `at` on by torch's own operations, none of which waits."""
    end = at + keys.shape[2]
    if codes.dtype in fp4.BLOCK:
        new, scale = fp4.quantize(keys, codes.dtype)
    else:
        new, scale = (signs(keys), None) if codes.scale is None else quantize(keys, codes.dtype)
    codes.codes[:, :, at:end] = new
    if codes.scale is not None and scale is not None:
        codes.scale[:, :, at:end] = scale

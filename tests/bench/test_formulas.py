"""Bytes that a step must move, counted by hand."""

from __future__ import annotations

import pytest

from topkit.experiments.bench import formulas


def test_bytes_and_roofline_by_hand() -> None:
    # 128K keys, 8 KV heads of 128, bf16, k 2048, 4.3e12 B/s: microseconds of one step.
    length, by_hand = 131072, {"fp8_e4m3": 33.2, "int4": 17.6, "sign": 5.9, "lightning": 6.0}
    for dtype, microseconds in by_hand.items():
        ideal = formulas.step(dtype, 1, length, 8, 128, 2048).ideal
        assert ideal / 4.3e6 == pytest.approx(microseconds, abs=0.06)
    assert formulas.dense(1, length, 8, 128).ideal / 4.3e6 == pytest.approx(124.9, abs=0.1)
    # Counted: a scale of four bytes a key and head, but for sign; lightning has one head.
    assert formulas.index("int4", 2, 10, 8, 128).counted == 2 * 10 * 8 * (64 + 4)
    assert formulas.index("sign", 2, 10, 8, 128).counted == 2 * 10 * 8 * 16
    assert formulas.index("lightning", 2, 10, 8, 128).counted == 2 * 10 * 132
    assert formulas.index("lightning mxfp4", 2, 10, 8, 128).counted == 2 * 10 * 68
    assert formulas.index("lightning nvfp4", 2, 10, 8, 128).ideal == 2 * 10 * 72
    assert formulas.index("mxfp4", 2, 10, 8, 128) == formulas.Bytes(
        2 * 10 * 8 * 68, 2 * 10 * 8 * 64
    )
    assert formulas.scores(8, 10, 8).counted == 8 * 10 * 8 * 4
    assert formulas.gather(1, 8, 2048, 128).counted == 8 * 2048 * 2 * 128 * 2
    shared, own = (formulas.step("sign", 1, 0, 8, 128, 2048, heads) for heads in (None, 32))
    assert own.counted == 4 * shared.counted == 4 * 8 * 2048 * 2 * 128 * 2
    shared, own = (formulas.step("sign", 2, 10, 8, 128, 0, heads) for heads in (None, 32))
    assert own.counted - shared.counted == 2 * (2 * 10 * 32 * 4) and own.ideal == shared.ideal

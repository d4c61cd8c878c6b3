"""What the benchmarks compare topkit's kernels with does the same work."""

from __future__ import annotations

import pytest
import torch

from topkit.experiments.bench import append, truth
from topkit.experiments.bench.codes import random_codes
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.kernels.quantize_append import quantize_append


@pytest.mark.parametrize("dtype", ["sign", "int4", "fp8_e4m3", "mxfp4", "nvfp4"])
def test_torch_appends_what_the_kernel_does(dtype: str) -> None:
    session = Session(torch.device("cpu"), Scale.tiny())
    ours, plain = (random_codes(session, dtype, 2, 9) for _ in range(2))
    keys = session.drawn(2, 2, 1, 128)
    quantize_append(keys, ours.codes, ours.scale, 5, dtype=dtype)
    append.append_in_torch(plain, keys, 5)
    for one, other in ((ours.codes, plain.codes), (ours.scale, plain.scale)):
        if one is not None and other is not None:
            assert torch.equal(one[:, :, 5].float(), other[:, :, 5].float())


def test_the_best_by_chunks_are_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 50, 8)
    monkeypatch.setattr(truth, "PIECE", 7)
    scores = queries.view(1, 2, 2, 3, 8) @ keys[:, :, None].mT
    want = scores.topk(9).values.flatten(2, 3)
    torch.testing.assert_close(truth.best_by_chunks(queries, keys, 9), want)

"""A token of a small model, timed as one graph: dense attention, and recipes beside it."""

from __future__ import annotations

import pytest
import torch

from topkit.experiments.bench import captured, targets
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.indexers.spec import parse


def test_every_recipe_has_a_row_beside_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "SPECS", captured.SPECS[3:6])
    session = Session(torch.device("cpu"), Scale.tiny())
    ((name, measure),) = captured.captured_cases(session)
    dense, *others = measure()
    assert (name, dense["length"], dense["speedup"], dense["k"]) == ("512", 512, None, None)
    assert [row["what"].split(", a token")[0] for row in others] == list(captured.SPECS)
    for row in others:
        assert row["error"] is None and row["against"] == captured.AGAINST
        assert row["speedup"] == pytest.approx(dense["median"] / row["median"])
        assert row["note"].startswith(f"{1 / row['speedup']:.2f} x dense")


def test_what_has_a_limit_is_timed_and_can_be_captured() -> None:
    timed = {captured.what_of(spec, length) for spec in captured.SPECS for length in (4096, 8192)}
    limits = {what for bench, what in targets.ON_H200 if bench == "decode"}
    assert len(limits) == 6 and limits <= timed
    assert all(parse(spec).traits().fixed for spec in captured.SPECS)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [captured.DENSE, *captured.SPECS])
def test_a_token_is_one_graph(spec: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    session = Session(torch.device("cuda"), Scale.tiny())
    model = captured._model(session, 1024)
    assert (
        min(captured._spans(session, model, spec, 1024)) > 0
    )  # raises where a step is not captured

"""A learned indexer's tensors alone: the truth is the Top-k of its float32 scores, one list a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import topkit
from topkit import Capture
from topkit.errors import InputError
from topkit.experiments.decode import driver
from topkit.experiments.measure.survey import survey
from topkit.experiments.train.calibrate import calibrate

FP32, FP8 = "lightning:weights=given,dtype=fp32", "lightning:weights=given,dtype=fp8"


def made(tokens: int = 90, heads: int = 3, count: int = 7, dim: int = 16) -> dict[str, Any]:
    make = torch.Generator().manual_seed(tokens + heads)
    return {
        "index_queries": torch.randn(2, heads, count, dim, generator=make),
        "index_keys": torch.randn(2, 1, tokens, dim, generator=make),
        "index_weights": torch.randn(2, count, heads, generator=make),
    }


def scores(x: dict[str, Tensor], sample: int, query: int) -> list[float]:
    """The score of every key that a query sees, by loops."""
    q, k = x["index_queries"][sample].double(), x["index_keys"][sample, 0].double()
    w = x["index_weights"][sample, query].double()
    stop = len(k) - q.shape[1] + query + 1
    return [
        sum(float(w[h]) * max(0.0, float(q[h, query] @ k[slot])) for h in range(len(q)))
        for slot in range(stop)
    ]


def test_recall_is_that_of_the_loops() -> None:
    x, k = made(), 11
    x["index_weights"] = x["index_weights"].abs()
    table = topkit.measure(Capture.from_tensors(**x), [FP8, "random"], k, seed=3).table
    assert table.num_rows == 2 * 2 * 7 and set(table["level"].to_pylist()) == {"head"}
    for row in table.to_pylist():
        assert row["visible"] == row["position"] + 1 and row["kept"] == k
        assert row["mass"] is None and row["entropy"] is None
    # No score is another's equal here, so that the overlap with the index's own list is the recall.
    exact = topkit.measure(Capture.from_tensors(**x), "random", k, seed=3, reference=FP32).table
    both = {"head": {}, "lightning(weights='given', dtype='fp32')": {}}
    for row in exact.to_pylist():
        name = row["reference"] if row["reference"] == "head" else list(both)[1]
        both[name][row["sample"], row["position"]] = row["recall"]
    one, other = both.values()
    assert one == other and any(0 < value < 1 for value in one.values())


def test_the_lists_are_the_loops_lists() -> None:
    from topkit.experiments.measure.replay import Replay
    from topkit.indexers.spec import parse

    x, k = made(), 9
    capture = Capture.from_tensors(**x)
    for sample in (0, 1):
        replay = Replay(capture.load(sample, 0), k, 0, torch.device("cpu"))
        chosen = replay.select(parse(FP32), [k])[0][k]
        for query in range(7):
            own = scores(x, sample, query)
            best = sorted(range(len(own)), key=lambda slot: (-own[slot], slot))[:k]
            assert set(chosen.indices[0, 0, query].tolist()) == set(best)
        judged = replay.exact.judged(chosen, k)[0]
        assert (
            judged.columns["recall"].eq(1).all()
            and judged.columns["score_regret"].abs().max() < 1e-5
        )


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture.from_tensors(**made())
    specs: list[Any] = [FP8, "random", "keep(lightning(weights='given', dtype='fp8'), sink=2)"]
    whole = topkit.measure(capture, specs, [5, 20], reference=FP32).table
    monkeypatch.setattr(driver, "PIECE", 2 * 5 * 90)
    parts = topkit.measure(capture, specs, [5, 20], reference=FP32).table
    # Sums of products in other blocks may differ in their last bits.
    inexact = ["score_regret"]
    assert parts.drop(inexact).equals(whole.drop(inexact))


def test_zeros_of_relu_are_ties() -> None:
    x = made()
    x = {name: y.abs() for name, y in x.items()}
    x["index_keys"] *= -1
    x["index_keys"][:, :, :3] *= -1
    rows = topkit.measure(Capture.from_tensors(**x), [FP32, "random"], 60).summary()
    # All but three keys score zero: those three alone can be missed.
    assert {r["indexer"]: r["worst"] for r in rows}["random()"] >= 57 / 60


def test_saved_and_opened_it_is_the_same(tmp_path: Any) -> None:
    capture = Capture.from_tensors(**made(), lengths=[90, 41])
    saved = capture.save(tmp_path)
    assert saved.fingerprint == capture.fingerprint and saved.load(1, 0).index_only
    assert set(saved.load(0, 0).tensors()) == {*made(), "positions"}
    mine, theirs = (topkit.measure(c, FP8, 8).table for c in (capture, saved))
    assert mine.equals(theirs)
    assert "index only" in repr(saved)


@pytest.mark.parametrize("recipe", ["exact", "sign", "refine(sign)", "quest", "degraded(0.8)"])
def test_what_reads_attention_is_refused(recipe: str) -> None:
    capture = Capture.from_tensors(**made())
    with pytest.raises(InputError, match="lightning\\(weights='given'\\)"):
        topkit.measure(capture, recipe, 8)


def test_surveys_and_halves_are_refused(tmp_path: Any) -> None:
    x = made()
    with pytest.raises(InputError, match="reads the queries and keys of attention"):
        calibrate(Capture.from_tensors(**x), "loki", tmp_path)
    with pytest.raises(InputError, match="reads the queries and keys of attention"):
        survey(Capture.from_tensors(**x))
    for name in x:
        with pytest.raises(InputError, match=r"index_queries, index_keys .* and index_weights"):
            Capture.from_tensors(**{n: y for n, y in x.items() if n != name})


def test_the_lists_of_an_engine_are_judged_against_the_index() -> None:
    x = made()
    best = [sorted(range(84), key=lambda s: -scores(x, n, 0)[s])[:6] for n in (0, 1)]
    native = torch.full((2, 7, 6), -1)
    native[:, 0] = torch.tensor(best)
    capture = Capture.from_tensors(**x, native=native)
    table = topkit.measure(capture, "native", 6).table.to_pylist()
    assert [row["recall"] for row in table if row["position"] == 83] == [1, 1]
    assert [row["recall"] for row in table if row["position"] == 84] == [0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_judges_as_the_cpu() -> None:
    capture = Capture.from_tensors(**made(4000, 16, 32, 128))
    specs = [FP32, FP8, "random"]
    one, other = (topkit.measure(capture, specs, 64, device=at).summary() for at in ("cpu", "cuda"))
    for cpu, gpu in zip(one, other, strict=True):
        assert gpu["recall"] == pytest.approx(cpu["recall"], abs=2e-3)
        assert gpu["rows"] == cpu["rows"] and gpu["mass"] is None

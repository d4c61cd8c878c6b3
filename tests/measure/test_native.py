"""What a model's own indexer chose, judged as any other indexer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from own_indexers import with_indexer
from tiny import tiny
from topkit import Capture, measure
from topkit.errors import InputError
from topkit.experiments.capture.from_model import capture_passages
from topkit.experiments.capture.prompts import Passage

AT = [3, 20, 39, 47]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: Any) -> Capture:
    ids = torch.randint(2, 61, (48,), generator=torch.Generator().manual_seed(5)).tolist()
    out = tmp_path_factory.mktemp("capture")
    return capture_passages(with_indexer("glm_moe_dsa"), [Passage(ids, AT)], origin={}, out=out)


def lists(capture: Capture, layer: int) -> torch.Tensor:
    native = capture.load(0, layer).native
    assert native is not None
    return native


@pytest.mark.parametrize("k", [3, 8])
def test_recall_and_mass_are_those_of_the_captured_lists(capture: Capture, k: int) -> None:
    rows = measure(capture, "native", k).table.to_pylist()
    found = 0
    for row in rows:
        if row["budget"] != str(k) or row["level"] != "head":
            continue
        x = capture.load(0, row["layer"])
        at, head = AT.index(row["position"]), row["head"]
        own = [slot for slot in lists(capture, row["layer"])[0, at, :k].tolist() if slot >= 0]
        logits = x.keys[0, head, : row["position"] + 1] @ x.queries[0, head, at] * x.scaling
        best = logits.topk(min(k, len(logits))).indices.tolist()
        assert row["recall"] == pytest.approx(len({*own} & {*best}) / len(best))
        assert row["mass"] == pytest.approx(float(logits.softmax(-1)[own].sum()), rel=1e-5)
        found += 1
    assert found == 4 * 4 * len(AT)


def test_layers_that_share_a_list_have_one_row_each_over_the_same_slots(capture: Capture) -> None:
    """IndexShare: layers 1 and 3 attend to what 0 and 2 listed."""
    for full, shared in ((0, 1), (2, 3)):
        assert torch.equal(lists(capture, full), lists(capture, shared))
    assert not torch.equal(lists(capture, 0), lists(capture, 2))
    assert set(measure(capture, "native", 8).table["layer"].to_pylist()) == {0, 1, 2, 3}


def test_the_model_s_own_number_is_always_asked_and_never_more(capture: Capture) -> None:
    for ks, budgets in (
        ([2, 100], ["2", "8"]),
        (5, ["5", "8"]),
        (8, ["8"]),
        ("none", ["8"]),
        ("10%", ["10%", "8"]),
    ):
        table = measure(capture, "native", ks).table
        assert sorted(set(table["budget"].to_pylist())) == sorted(budgets)
    with pytest.raises(InputError, match=r"native\(\) has lists of 8 keys, and 50% of 48 are 24"):
        measure(capture, "native", "50%")


@pytest.mark.parametrize("spec", ["keep(native(), sink=2)", "refine(native(), factor=2)"])
def test_a_list_can_be_the_base_of_a_combinator(capture: Capture, spec: str) -> None:
    table = measure(capture, spec, 4).table
    assert min(table["recall"].to_pylist()) >= 0 and table.num_rows


def test_tensors_of_ones_own_bring_lists_too(capture: Capture, tmp_path: Path) -> None:
    x = capture.load(0, 2)
    given: dict[str, Any] = dict(queries=x.queries, keys=x.keys, values=x.values, native=x.native)
    own = Capture.from_tensors(**given, scaling=x.scaling, positions=AT, layer=2)
    save_file(
        {**given, "positions": x.positions, "scaling": torch.tensor(x.scaling)}, tmp_path / "x"
    )
    wanted = measure(capture, "native", 8, layers=[2]).table
    columns = ["recall", "mass", "position", "head"]
    for other in (own, Capture.open(tmp_path / "x")):
        assert measure(other, "native", 8).table.select(columns) == wanted.select(columns)
    with pytest.raises(InputError, match="native must be whole numbers"):
        Capture.from_tensors(**{**given, "native": lists(capture, 2) + 0.5}, positions=AT)


def test_a_capture_without_lists_is_refused_by_name(tmp_path: Path) -> None:
    plain = capture_passages(tiny(), [Passage(range(2, 40), [37])], origin={}, out=tmp_path)
    with pytest.raises(InputError, match=r"native\(\) keeps what a model's own indexer chose"):
        measure(plain, "native", 4)

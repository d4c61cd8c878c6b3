"""What an attached model chose, judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from generation import assert_same, generated
from tiny import PAD, prompt
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.fidelity import METRICS, judge, truth
from topkit.indexers import Selection, Step
from topkit.indexers.stateless import Stateless


def test_observed_rows_are_judged_as_tensors_are(model: Any) -> None:
    """The selections of a run, judged again from queries and keys caught on their way."""
    given, caught = prompt(2, padded=True), []
    sdpa = AttentionInterface()["sdpa"]

    def catch(module, query, key, value, mask, **kw):
        caught.append((module.layer_idx, query, key, value, mask, kw["scaling"]))
        return sdpa(module, query, key, value, mask, **kw)

    AttentionInterface.register("catch", catch)
    AttentionMaskInterface.register("catch", sdpa_mask)
    with attach(model, "shared(exact())", k=5, observe="shadow") as attached:
        shadow = generated(model, given, 4)
    model.set_attn_implementation("catch")
    dense = generated(model, given, 4)
    model.set_attn_implementation("sdpa")
    assert_same(shadow, dense)
    rows = {
        (r["level"], r["layer"], r["sample"], r["head"], r["position"]): r
        for r in attached.fidelity().to_pylist()
    }
    assert {level for level, *_ in rows} == {"head", "group"}
    start, compared = torch.tensor([PAD, 0]), 0
    for layer, query, key, value, _, scaling in caught:
        if query.shape[2] > 1:
            continue
        length = key.shape[2]
        chosen = _group_choice(query, key, start, 5)
        exact = truth(query, key, value, 5, scaling=scaling, start=start)
        columns = judge(exact, query, key, value, chosen, 5)
        for row in range(2):
            for head in range(4):
                found = rows["head", layer, row, head, length - 1 - int(start[row])]
                assert found["k"] == found["kept"] == 5
                for name in METRICS:
                    value_ = float(columns[name][row, head, 0])
                    assert math.isnan(value_) if found[name] is None else True
                    if found[name] is not None:
                        assert found[name] == pytest.approx(value_, rel=1e-3, abs=1e-5), name
                compared += 1
    assert compared == 2 * 2 * 4 * 3


def _group_choice(query: Tensor, key: Tensor, start: Tensor, k: int) -> Any:
    scores = torch.einsum("bgqd,bgtd->bgt", query[:, :, 0].unflatten(1, (2, 2)), key)
    hidden = torch.arange(key.shape[2]) < start[:, None, None]
    return Selection(scores.masked_fill(hidden, -math.inf).topk(k).indices[:, :, None])


def test_observing_changes_nothing(model: Any) -> None:
    given = prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        plain = generated(model, given)
    with attach(model, "sign()", k=6, observe=True) as attached:
        assert_same(generated(model, given), plain)
    assert attached.fidelity().num_rows == 2 * 2 * 4 * 11
    with attach(model, "sign()", k=6) as attached, pytest.raises(InputError, match="observe=True"):
        attached.fidelity()


@dataclass(frozen=True)
class names_slots(Stateless):
    """The first slot and one more."""

    more: int = 0

    def choose(self, queries: Tensor, k: int, step: Step, length: int) -> Selection:
        first = torch.zeros(*queries.shape[:3], 1, dtype=torch.long)
        return Selection(torch.cat([first, first + self.more], -1))


@pytest.mark.parametrize("observe", [False, True, "shadow"])
@pytest.mark.parametrize(("more", "what"), [(0, "slot 0 twice"), (25, "slot 25, where its query")])
def test_slots_that_are_none_are_refused_by_the_recipes_name(
    model: Any, more: int, what: str, observe: Any
) -> None:
    named = rf"names_slots\(more={more}\) chose {what}"
    with (
        attach(model, names_slots(more), k=4, observe=observe),
        pytest.raises(InputError, match=named),
    ):
        generated(model, prompt(), 2)

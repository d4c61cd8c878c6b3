"""Tokens from a slot on are sparse in whatever call they come, as if decoded one by one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from generation import CHOICES, Slowly
from tiny import PAD, prompt, tokens
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.experiments.decode.prompt import Prompt, parse_slot

SLOT, LENGTH = 20, 40
SPECS = ("exact", "sign", "random", "quest(page_size=4)", "keep(random, sink=1)", "sampled")


@torch.no_grad()
def logits(model: Any, ids: Tensor, **how: Any) -> Tensor:
    return model(ids, **how).logits


@torch.no_grad()
def in_calls(model: Any, ids: Tensor, *ends: int) -> Tensor:
    """Logits of tokens that come in several calls with a cache, each up to one of `ends`."""
    out, cache, first = [], None, 0
    for end in ends:
        step = model(ids[:, first:end], past_key_values=cache)
        out.append(step.logits)
        cache, first = step.past_key_values, end
    return torch.cat(out, 1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", CHOICES)
def test_a_whole_pass_is_sparse_by_the_definition(model: Any, spec: str) -> None:
    ids = tokens(2, LENGTH)
    with Slowly(model, spec, 4, until=SLOT):
        slow = logits(model, ids)
    with attach(model, spec, 4, sparse_from_slot=SLOT):
        close(logits(model, ids), slow)
    dense = logits(model, ids)
    close(slow[:, :SLOT], dense[:, :SLOT])
    assert (slow - dense)[:, SLOT:].abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("k", [4, "10%"])
@pytest.mark.parametrize("spec", SPECS)
def test_calls_may_be_cut_anywhere(model: Any, spec: str, k: int | str) -> None:
    """One by one behind a prompt, as it is decoded; whole; without a cache; in chunks across the slot."""
    ids = tokens(2, LENGTH)
    with attach(model, spec, k):
        decoded = in_calls(model, ids, SLOT, *range(SLOT + 1, LENGTH + 1))
    with attach(model, spec, k, sparse_from_slot=SLOT):
        close(logits(model, ids), decoded)
        close(logits(model, ids, use_cache=False), decoded)
        close(in_calls(model, ids, 7, 19, 23, 24, LENGTH), decoded)


@pytest.mark.parametrize("spec", SPECS)
def test_each_row_has_a_slot_of_its_own(model: Any, spec: str) -> None:
    """And no row sees what others are padded with on the right."""
    ids, slots = tokens(3, LENGTH), [11, SLOT, 33]
    with attach(model, spec, 4) as ours:
        with ours.sparse_from(slots):
            together = logits(model, ids)
            longer = logits(model, torch.cat([ids, ids[:, :9]], 1))
            chunks = in_calls(model, ids, 15, 16, 30, LENGTH)
        for row, slot in enumerate(slots):
            with ours.sparse_from(slot):
                close(together[row], logits(model, ids[row : row + 1])[0])
    close(longer[:, :LENGTH], together)
    close(chunks, together)


def test_rows_padded_on_the_left_count_padding(model: Any) -> None:
    given = prompt(2, LENGTH, padded=True)
    with torch.no_grad(), attach(model, "exact", 4, sparse_from_slot=SLOT):
        padded = model(**given).logits[0, PAD:]
    with attach(model, "exact", 4, sparse_from_slot=SLOT - PAD):
        close(logits(model, given["input_ids"][:1, PAD:])[0], padded)


def test_what_is_built_where_the_prompt_ends_takes_one_slot(model: Any) -> None:
    pytest.importorskip("faiss")
    ids = tokens(2, LENGTH)
    with attach(model, "faiss_ivf", 4) as ours:
        with ours.sparse_from([9, 20]), pytest.raises(InputError, match="rows of one sparse_from"):
            logits(model, ids)
        with ours.sparse_from([SLOT, SLOT]):
            alike = logits(model, ids)
        with ours.sparse_from(SLOT):
            assert torch.equal(logits(model, ids), alike)


def test_generate_is_sparse_from_the_slot_on(model: Any) -> None:
    given: dict[str, Any] = dict(
        **prompt(2, LENGTH), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    given |= dict(output_logits=True, return_dict_in_generate=True)
    dense = torch.stack(model.generate(**given).logits)
    first = {}
    for slot in (LENGTH - 1, LENGTH, LENGTH + 3):
        with attach(model, "random", 3, sparse_from_slot=slot):
            ours = torch.stack(model.generate(**given).logits)
        off = (ours - dense).abs().amax((1, 2)) > 1e-3
        first[slot] = int(off.nonzero()[0])
    assert first == {LENGTH - 1: 0, LENGTH: 1, LENGTH + 3: 4}


def test_only_sparse_tokens_are_observed(model: Any) -> None:
    with attach(model, "sign", 4, observe=True, sparse_from_slot=[15, SLOT]) as ours:
        logits(model, tokens(2, 25))
    rows = ours.fidelity().select(["row", "position"]).to_pylist()
    places = {(line["row"], line["position"]) for line in rows}
    assert places == {(0, p) for p in range(15, 25)} | {(1, p) for p in range(SLOT, 25)}


def test_a_share_is_of_what_each_token_sees(model: Any) -> None:
    with attach(model, "sign", "20%", observe=True, sparse_from_slot=5) as ours:
        logits(model, tokens(1, 30))
    for line in ours.fidelity().select(["position", "k", "kept"]).to_pylist():
        assert line["k"] == line["kept"] == -(-(line["position"] + 1) // 5)


def test_sparse_prefill_is_the_slot_0(model: Any) -> None:
    ids = tokens(1, LENGTH)
    with attach(model, "sign", 4, sparse_prefill=True):
        prefilled = logits(model, ids)
    with attach(model, "sign", 4, sparse_from_slot=0):
        assert torch.equal(logits(model, ids), prefilled)
    with pytest.raises(InputError, match="sparse_prefill is sparse_from_slot=0"):
        attach(model, "sign", 4, sparse_prefill=True, sparse_from_slot=0)


def test_slots_are_read_from_all_that_holds_numbers() -> None:
    for slot in (3, np.int64(3), torch.tensor(3), np.array(3)):
        assert parse_slot(slot) == 3
    several: list[Any] = [[3, 4], (3, 4), range(3, 5), np.array([3, 4]), torch.tensor([3, 4])]
    for slots in (*several, [np.int64(3), torch.tensor(4)]):
        read = parse_slot(slots)
        assert isinstance(read, Tensor) and read.tolist() == [3, 4]
    assert parse_slot(None) is None
    far = parse_slot([3, 10**30])
    assert isinstance(far, Tensor) and int(far.max()) > 10**9


@pytest.mark.parametrize("slot", [-1, True, 2.5, "3", [], [1, -2], [[1]], np.array([1.5]), {3: 4}])
def test_other_slots_are_refused(slot: Any) -> None:
    with pytest.raises(InputError, match="sparse_from_slot must be a slot") as refusal:
        parse_slot(slot)
    assert "\n" not in str(refusal.value)


def test_as_many_slots_as_rows(model: Any) -> None:
    with attach(model, "sign", 4) as ours, ours.sparse_from([3, 4, 5]):
        with pytest.raises(InputError, match="3 slots, one a row, and the call 2 rows"):
            logits(model, tokens(2, 9))
        logits(model, tokens(3, 9))


def test_a_slot_ends_with_its_context() -> None:
    place = Prompt(7)
    with place.until(torch.tensor([3, 9])):
        assert (place.tokens(0, 5), place.tokens(6, 5)) == (3, 0)
        inside = place.rows(2, 3, batch=2)
        assert inside is not None and inside.tolist() == [[True] + [False] * 2, [True] * 3]
        assert place.rows(9, 3, batch=2) is None
    assert (place.tokens(0, 9), place.rows(0, 9, batch=4)) == (7, None)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "whole passes": ({}, "each call brought a prompt.*sparse_from_slot="),
    "early tokens": ({"sparse_from_slot": 300}, "all tokens stood before the slot"),
}


@pytest.mark.parametrize("case", REASONS)
def test_an_attachment_that_selected_nothing_says_so(model: Any, case: str) -> None:
    how, reason = REASONS[case]
    with pytest.warns(UserWarning, match=rf"sign\(\) selected nothing .*{reason}") as said:  # noqa: SIM117
        with attach(model, "sign", 4, **how):
            logits(model, tokens(1, LENGTH))
    assert len(said) == 1 and said[0].filename == __file__
    ours = attach(model, "sign", 4, **how)
    model.generate(**prompt(), max_new_tokens=1)
    with pytest.warns(UserWarning, match=reason) as said:
        ours.detach()
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.detach()  # once


def test_an_attachment_that_was_never_called_says_so(model: Any) -> None:
    with pytest.warns(UserWarning, match="selected nothing .* no call of it came"):
        attach(model, "sign", 4).detach()


def test_who_selected_or_broke_off_is_not_warned(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(model, "sign", 4):
            model.generate(**prompt(), max_new_tokens=2)
        with attach(model, "sign", 4, observe="shadow", sparse_from_slot=5):
            logits(model, tokens(1, 9))
        with pytest.raises(KeyError), attach(model, "sign", 4):
            raise KeyError

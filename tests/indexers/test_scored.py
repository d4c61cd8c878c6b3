"""Codes that are not one a key are refused when they are made, by the recipe's name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from topkit.contract import check_indexer
from topkit.errors import InputError
from topkit.indexers import Scored, Step
from topkit.kernels.score import score


@dataclass(frozen=True)
class leading(Scored):
    """Encodes as `wrong` says: a name of `WRONG`, and once built only where `late` says so."""

    wrong: str = ""
    late: bool = False

    def encode(self, keys, step):
        kept = {"kept": keys[..., :2].clone()}
        if self.wrong and self.late == (keys.shape[2] == 1):
            return WRONG[self.wrong](kept)
        return kept

    def score(self, queries, codes, step):
        return score(queries[..., :2], codes["kept"])


WRONG = {
    "few": lambda codes: {"kept": codes["kept"][:, :, :50]},
    "none": lambda codes: {"kept": codes["kept"][:, :, :0]},
    "twice": lambda codes: {"kept": codes["kept"].repeat(1, 1, 2, 1)},
    "one row": lambda codes: {"kept": codes["kept"][:1]},
    "no heads": lambda codes: {"kept": codes["kept"][:, 0, :, 0]},
    "empty": lambda codes: {},
    "also": lambda codes: {**codes, "also": codes["kept"][:, :, :1]},
    "other": lambda codes: {"other": codes["kept"]},
    "more": lambda codes: {**codes, "more": codes["kept"]},
    "one head": lambda codes: {"kept": codes["kept"][:, :1]},
    "narrow": lambda codes: {"kept": codes["kept"][..., :1]},
}


def keys_of(count):
    return torch.randn(3, 2, count, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "few",
            r"leading: encode gave 'kept' \[3, 2, 50, 2\] for 203 keys in 3 rows; expected one",
        ),
        ("none", r"'kept' \[3, 2, 0, 2\] for 203 keys"),
        ("twice", r"'kept' \[3, 2, 406, 2\] for 203 keys"),
        ("one row", r"'kept' \[1, 2, 203, 2\] .* expected one code a key, \[3, H, 203, \.\.\.\]"),
        ("no heads", r"'kept' \[3, 203\]"),
        ("empty", "leading: encode gave no codes for 203 keys"),
        ("also", r"'also' \[3, 2, 1, 2\] for 203 keys"),
    ],
)
def test_codes_that_are_not_one_a_key_are_refused_at_the_build(wrong, said):
    with pytest.raises(InputError, match=said):
        leading(wrong).build(keys_of(203), Step(kv_heads=2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("none", r"leading: encode gave 'kept' \[3, 2, 0, 2\] for 1 keys"),
        ("twice", r"'kept' \[3, 2, 2, 2\] for 1 keys"),
        ("one row", r"'kept' \[1, 2, 1, 2\] for 1 keys in 3 rows"),
        ("empty", "no codes"),
        ("other", r"leading: encode gave \{'other': .*; expected \{'kept': \[3, 2, 1, 2\]\}"),
        ("more", r"'more': \[3, 2, 1, 2\]\}; expected \{'kept'"),
        ("one head", r"\{'kept': \[3, 1, 1, 2\]\}; expected \{'kept': \[3, 2, 1, 2\]\}"),
        ("narrow", r"\{'kept': \[3, 2, 1, 1\]\}; expected"),
    ],
)
def test_and_at_an_append_which_leaves_the_index_as_it_was(wrong, said):
    keys = keys_of(21)
    index = leading(wrong, late=True).build(keys[:, :, :20], Step(kv_heads=2))
    queries = torch.randn(3, 4, 1, 4)
    before = index.select(queries, 5, Step(kv_heads=2)).indices
    with pytest.raises(InputError, match=said):
        index.append(keys[:, :, 20:], Step(kv_heads=2))
    assert index.length == 20
    assert torch.equal(index.select(queries, 5, Step(kv_heads=2)).indices, before)


def test_codes_of_one_head_or_none_wide_are_as_good():
    @dataclass(frozen=True)
    class flat(leading):
        def encode(self, keys, step):
            return {"kept": keys.mean(1, keepdim=True)[..., :2], "norm": keys[..., 0]}

    keys = keys_of(21)
    index = flat().build(keys[:, :, :20], Step(kv_heads=2))
    index.append(keys[:, :, 20:], Step(kv_heads=2))
    whole = flat().build(keys, Step(kv_heads=2))
    queries = torch.randn(3, 4, 1, 4)
    got, want = (i.select(queries, 5, Step(kv_heads=2)).indices for i in (index, whole))
    assert torch.equal(got, want)


def test_scores_that_are_not_one_a_key_are_refused():
    @dataclass(frozen=True)
    class few(leading):
        def score(self, queries, codes, step):
            return super().score(queries, codes, step)[..., :7]

    index = few().build(keys_of(21), Step(kv_heads=2))
    said = r"few: score gave \[3, 4, 1, 7\] for 1 queries and 21 keys in 3 rows; expected one score"
    with pytest.raises(InputError, match=said):
        index.select(torch.randn(3, 4, 1, 4), 5, Step(kv_heads=2))
    with pytest.raises(InputError, match=said):
        index.score(torch.randn(3, 4, 1, 4), Step(kv_heads=2))


def test_the_contract_says_so_too():
    with pytest.raises(AssertionError, match=r"expected one code a key"):
        check_indexer(leading("one row"))

"""assert_repeatable: a stable kernel passes however it is called, and each kind of unrest is named."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topkit.errors import InputError
from topkit.testing import REAL_LAYERS, assert_repeatable, real_tensors

NEVER = -torch.inf


def stable(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    """The lowest slots of equal scores, causal from the end of lengths."""
    scores = queries @ keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1).mT
    length, count = keys.shape[2], queries.shape[2]
    ends = torch.full((len(queries),), length) if lengths is None else lengths
    stop = (ends[:, None] - count + 1 + torch.arange(count)).clamp_min(0)
    scores = scores.masked_fill(torch.arange(length) >= stop[:, None, :, None], NEVER)
    best = scores.sort(dim=-1, descending=True, stable=True)
    return best.indices[..., :k].masked_fill(best.values[..., :k] == NEVER, -1)


def real(kind: str = "ties", queries: int = 3, tokens: int = 300) -> dict[str, Any]:
    """Two layers as two rows of a batch."""
    two = [real_tensors(layer, kind, queries=queries, tokens=tokens) for layer in REAL_LAYERS[:2]]
    return {
        "queries": torch.cat([one.queries for one in two]),
        "keys": torch.cat([one.keys for one in two]),
    }


LENGTHS = {"lengths": torch.tensor([300, 120])}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 4))
def test_a_stable_kernel_passes_and_its_ties_are_counted(
    seed: int, padded: bool, count: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, length, k = int(rng.integers(1, 4)), int(rng.integers(4, 12)), int(rng.integers(1, 6))
    queries = torch.from_numpy(rng.integers(-1, 2, (rows, 4, count, 3))).float()
    keys = torch.from_numpy(rng.integers(-1, 2, (rows, 2, length, 3))).float()
    real_ones = torch.from_numpy(rng.integers(count, length + 1, rows))
    ends = real_ones if padded else torch.full((rows,), length)
    inputs: dict[str, Any] = {"queries": queries, "keys": keys, "k": k}
    audit = assert_repeatable(stable, inputs | ({"lengths": real_ones} if padded else {}), runs=2)
    ties = 0
    for b, h, i in itertools.product(range(rows), range(4), range(count)):
        stop = int(ends[b]) - count + i + 1
        row = sorted((keys[b, h // 2, :stop] @ queries[b, h, i]).tolist(), reverse=True)
        width = min(k, length)
        ties += len(row) > width and row[width - 1] == row[width]
    assert (audit.rows, audit.ties) == (rows * 4 * count, ties)
    assert audit.runs.rows == 0
    assert (audit.chunked is None) == (count == 1)
    assert (audit.alone is None) == (rows == 1 and not padded)
    assert (audit.padded is None) == (not padded)


def message(select: Any, inputs: dict[str, Any], **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_repeatable(select, inputs, **kwargs)
    return str(raised.value)


def by_chance(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    """Ties broken as threads arrive."""
    order = torch.randperm(keys.shape[2] if lengths is None else int(lengths.min()))
    moved = keys.clone()
    moved[:, :, : len(order)] = keys[:, :, order]
    chosen = stable(queries, moved, k, lengths)
    return torch.where(chosen < len(order), order[chosen.clamp(0, len(order) - 1)], chosen)


def test_ties_that_are_broken_by_chance_are_refused_unless_forgiven() -> None:
    inputs = real(queries=1)
    said = message(by_chance, inputs)
    assert said.startswith("called again on the same inputs, it chose otherwise: ")
    assert "hint: ties are broken by chance" in said and "only before: " in said
    audit = assert_repeatable(by_chance, inputs, forgive_ties=True)
    assert audit.runs.rows == audit.runs.among_ties > 0 and audit.ties is not None
    assert audit.ties >= audit.runs.rows
    # Without ties, chance has no say.
    assert assert_repeatable(by_chance, real("captured", 1)).ties == 0


def test_tied_slots_that_are_lost_are_not_forgiven() -> None:
    """Equal scores may change places, but none may go."""
    calls = iter(range(100))

    def swaps(scores: Tensor) -> Tensor:
        return torch.tensor([[0, 1 + next(calls) % 2]])

    def loses(scores: Tensor) -> Tensor:
        return torch.tensor([[0, 1 if next(calls) % 2 else -1]])

    scores = torch.tensor([[3.0, 2, 2, 1]])
    audit = assert_repeatable(swaps, {"scores": scores}, forgive_ties=True)
    assert (audit.runs.rows, audit.runs.among_ties, audit.ties) == (1, 1, 1)
    assert "1 of 1 rows differ, 0 of them" in message(loses, {"scores": scores}, forgive_ties=True)
    near = torch.tensor([[3.0, 2, 2.001, 1]])
    assert "only before: " in message(swaps, {"scores": near}, forgive_ties=True)
    assert assert_repeatable(swaps, {"scores": near}, forgive_ties=True, tolerance=1e-3).ties == 1


def noisy(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    return stable(queries + 0.1 * torch.randn(queries.shape), keys, k, lengths)


def of_its_chunk(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    """All queries of a call share one mean score."""
    return stable(queries.mean(2, keepdim=True).expand_as(queries), keys, k, lengths)


def of_the_longest(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    return stable(
        queries, keys, k, None if lengths is None else lengths.amax().expand(len(queries))
    )


def of_the_mean_key(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    """Quantised by the largest number of all, padding included."""
    step = keys.abs().amax((1, 2, 3), keepdim=True) / 2
    return stable(queries, (keys / step).round(), k, lengths)


def of_its_room(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    """One key behind lengths, where the cache has room for it."""
    return stable(queries, keys, k, lengths + int(keys.shape[2] > 300))


def of_other_rows(queries: Tensor, keys: Tensor, k: int = 8, lengths: Any = None) -> Tensor:
    step = keys.abs().amax() / 3
    return stable(queries, (keys / step).round(), k, lengths)


@pytest.mark.parametrize(
    ("select", "kind", "bounds", "said"),
    [
        (noisy, "captured", {}, "called again on the same inputs"),
        (of_its_chunk, "captured", {}, "given its queries in chunks"),
        (of_the_longest, "captured", LENGTHS, "given its rows one by one, without padding"),
        (of_other_rows, "captured", {}, "given its rows one by one, without padding"),
    ],
)
def test_each_unrest_is_named(select: Any, kind: str, bounds: Any, said: str) -> None:
    words = message(select, real(kind) | bounds)
    assert words.startswith(said) and "the first is batch " in words and ", head " in words
    assert "among tied scores alone" in words and "\n  in all: 54 rows, " in words


@pytest.mark.parametrize("select", [of_the_mean_key, of_its_room])
def test_more_padding_is_tried_where_no_row_has_any(select: Any) -> None:
    said = message(select, real("captured") | {"lengths": torch.tensor([300, 300])})
    assert said.startswith("given more padding, with large numbers in it")
    assert "hint: what lies behind lengths has a say" in said and "alone: the same" in said


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_keys_of_any_type_are_padded(dtype: torch.dtype) -> None:
    seen: list[Tensor] = []

    def select(queries: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
        seen.append(codes)
        return stable(queries, codes.float(), 8, lengths)

    queries, keys = (torch.randint(0, 2, (2, 2, n, 4)) for n in (2, 20))
    inputs = {"queries": queries.float(), "codes": keys.to(dtype), "lengths": torch.tensor([9, 20])}
    audit = assert_repeatable(select, inputs, forms={"codes": "B H T D"})
    assert audit.padded is not None and audit.ties is None
    padded = seen[-1].float()
    assert padded.shape == (2, 2, 57, 4)
    assert torch.equal(padded[0, :, :9], keys[0, :, :9].float())
    assert torch.equal(padded[1, :, :20], keys[1].float())
    assert (
        padded[0, :, 9:].max()
        == padded[1, :, 20:].max()
        == (dtype != torch.bool) * (252 if dtype == torch.uint8 else 4)
    )


def test_an_input_that_is_written_over_is_named() -> None:
    def select(queries: Tensor, keys: Tensor) -> Tensor:
        out = stable(queries, keys)
        keys[0, 0, 0] = 0
        return out

    assert message(select, real()) == "the function wrote over its input keys"


def test_other_names_and_orders_of_dimensions() -> None:
    inputs, length = real(), LENGTHS["lengths"]

    def engine(q: np.ndarray, cache: np.ndarray, seq_lens: np.ndarray, top: int) -> np.ndarray:
        chosen = stable(
            torch.from_numpy(q).transpose(1, 2), torch.from_numpy(cache).transpose(1, 2), top,
            torch.from_numpy(seq_lens),
        )  # fmt: skip
        return chosen.transpose(1, 2).numpy()

    forms = {"q": "B Tq H D", "cache": "B T H D", "seq_lens": "lengths", "indices": "B Tq H k"}
    own = {
        "q": inputs["queries"].transpose(1, 2).contiguous().numpy(),
        "cache": inputs["keys"].transpose(1, 2).contiguous().numpy(),
        "seq_lens": length.numpy(),
        "top": 8,
    }
    audit = assert_repeatable(engine, own, forms=forms)
    assert audit.ties is None and audit.padded is not None and audit.chunked is not None
    plain = assert_repeatable(stable, inputs | LENGTHS)
    exact = inputs["queries"] @ inputs["keys"].repeat_interleave(3, 1).mT
    stop = length[:, None, None, None] - 2 + torch.arange(3)[:, None]
    exact = exact.masked_fill(torch.arange(300) >= stop, NEVER).transpose(1, 2)
    audit = assert_repeatable(engine, own, forms=forms, scores=exact)
    assert audit.ties == plain.ties and (plain.ties or 0) > 0
    renamed = {"queries": own["q"], "keys": own["cache"], "lengths": own["seq_lens"]}
    forms = {"queries": "B Tq Hq D", "keys": "B T Hk D", "indices": "B Tq H k"}
    audit = assert_repeatable(
        lambda queries, keys, lengths: engine(queries, keys, lengths, 8), renamed, forms=forms
    )
    assert audit.ties == plain.ties


def test_scores_of_rows_and_of_queries() -> None:
    def select(scores: Tensor, lengths: Tensor) -> Tensor:
        hidden = torch.arange(scores.shape[-1]) >= lengths[:, None]
        best = scores.masked_fill(hidden, NEVER).sort(dim=-1, descending=True, stable=True)
        return best.indices[:, :3].masked_fill(best.values[:, :3] == NEVER, -1)

    scores = torch.tensor([[1.0, 2, 2, 2, 9], [5, 4, 4, 4, 4], [3, 2, 1, 1, 1]])
    audit = assert_repeatable(select, {"scores": scores, "lengths": torch.tensor([4, 2, 5])})
    assert (audit.rows, audit.ties, audit.chunked) == (3, 1, None)
    assert str(audit) == (
        "3 rows, 1 with ties at the boundary; runs: the same; chunked: not tried; alone: the same; padded: the same"
    )


def test_a_row_that_is_shorter_than_k_keeps_room_for_it() -> None:
    def select(scores: Tensor, lengths: Tensor, k: Tensor) -> Tensor:
        hidden = torch.arange(scores.shape[-1]) >= lengths[:, None]
        best = scores.masked_fill(hidden, NEVER).topk(int(k))  # which wants k scores
        return best.indices.masked_fill(best.values == NEVER, -1)

    inputs = {"scores": torch.rand(3, 9), "lengths": torch.tensor([2, 0, 9]), "k": torch.tensor(4)}
    assert assert_repeatable(select, inputs).ties == 0


def test_a_learned_indexer_and_physical_ids() -> None:
    """[B, Tq, k] of index tensors, through a block table: ties are not known, sets are compared."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(30, generator=generator).view(2, 15)

    def select(
        index_queries: Any, index_keys: Any, index_weights: Any, block_table: Any, size: int
    ) -> Any:
        scores = (index_queries @ index_keys.mT).relu()
        scores = (scores * index_weights.mT[..., None]).sum(1)
        length, count = scores.shape[-1], scores.shape[-2]
        scores = scores.masked_fill(torch.ones(count, length).tril(length - count) == 0, NEVER)
        chosen = scores.topk(5).indices
        return (
            block_table.gather(1, (chosen // size).flatten(1)).view_as(chosen) * size
            + chosen % size
        )

    inputs = {
        "index_queries": torch.randn(2, 4, 6, 8, generator=generator),
        "index_keys": torch.randn(2, 1, 60, 8, generator=generator),
        "index_weights": torch.rand(2, 6, 4, generator=generator),
        "block_table": table,
        "size": 4,
    }
    audit = assert_repeatable(select, inputs)
    assert (audit.rows, audit.ties, audit.padded) == (12, None, None) and audit.chunked is not None


def test_queries_that_see_all_keys() -> None:
    def select(queries: Tensor, keys: Tensor) -> Tensor:
        scores = queries @ keys.repeat_interleave(3, 1).mT
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :290]

    inputs = real()
    assert "given its queries in chunks" in message(select, inputs)
    audit = assert_repeatable(select, inputs, causal=False)
    assert audit.chunked is not None and audit.ties is not None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one run": ({"runs": 1}, "runs must be at least 2"),
    "lists for tensors": ({"inputs": {**real(), "lengths": [300, 120]}}, "lengths must be tensors or arrays"),
    "no function": ({"select": 3}, "select must be a function of the inputs; got int"),
    "lengths beyond": ({"inputs": {**real(), "lengths": torch.tensor([300, 301])}}, "lengths must be 0 to 300"),
    "lengths below": ({"inputs": {**real(), "lengths": torch.tensor([3, -1])}}, "lengths must be 0 to 300"),
    "lengths of other rows": ({"inputs": {**real(), "lengths": torch.tensor([3] * 3)}}, "B must be one number"),
    "half a run": ({"runs": 2.5}, "runs must be a whole number"),
    "no names": ({"inputs": [1, 2]}, "inputs must be names to tensors"),
    "an unknown tensor": ({"inputs": {"q": torch.ones(2, 3)}}, "name its dimensions, as forms="),
    "queries of three": ({"inputs": {"queries": torch.ones(2, 3, 4)}}, r"queries must be \[B Hq Tq D\]"),
    "a form of none": ({"forms": {"weights": "B Tq"}}, "forms tells of weights, which inputs lack"),
    "several batches": (
        {"inputs": {"queries": torch.ones(2, 1, 1, 4), "keys": torch.ones(3, 1, 5, 4)}},
        "B must be one number",
    ),
    "several lengths of keys": (
        {"inputs": {"keys": torch.ones(2, 1, 4, 4), "values": torch.ones(2, 1, 5, 4)}},
        "T must be one number",
    ),
    "scores": ({"select": lambda queries, keys: queries}, "indices must be integers"),
    "other rows": (
        {"select": lambda queries, keys: stable(queries, keys)[:1]},
        r"indices \[B Hs Tq k\] must have B = 2",
    ),
    "lists that chunks do not give": (
        {"select": lambda queries, keys: stable(queries, keys)[..., :1, :].expand(2, 9, 3, 8)},
        "must give a list for each query that it gets",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_compared_is_refused(bad: str) -> None:
    how, said = BAD[bad]
    how = {"select": stable, "inputs": real(), **how}
    with pytest.raises(InputError, match=said):
        assert_repeatable(how.pop("select"), how.pop("inputs"), **how)

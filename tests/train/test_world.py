"""Processes that share a training: whose rows are whose, and what of the loss they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from topkit.errors import InputError
from topkit.experiments.train.world import World


@given(rows=st.integers(1, 9), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_all_rows_are_taken_once_and_the_shares_are_the_whole(rows: int, size: int, seed: int) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    batch = [rng.integers(9, size=(rows, 6)), rng.random((rows, 6)).astype(np.float16)]
    if rows < size:
        if size > 1:
            with pytest.raises(InputError, match=f"{rows} rows cannot be shared by {size}"):
                World(0, size).own(batch)
        return
    each = [World(rank, size).own(batch) for rank in range(size)]
    for place in (0, 1):
        together = np.concatenate([own[place] for own, _ in each])
        assert np.array_equal(together, batch[place])
    assert sum(share for _, share in each) == pytest.approx(1)


def test_shares_make_of_weighted_means_the_mean_of_the_whole() -> None:
    """Gradients too: a sum over processes of share x their mean is the mean over all."""
    rng = np.random.default_rng(0)
    batch = [rng.integers(9, size=(5, 7)), rng.random((5, 7)).astype(np.float32)]
    model = nn.Embedding(9, 1)

    def loss(ids: np.ndarray, weights: np.ndarray) -> torch.Tensor:
        values = model(torch.from_numpy(ids[:, 1:]))[..., 0] ** 2
        w = torch.from_numpy(weights[:, 1:])
        return (values * w).sum() / w.sum()

    wanted = torch.autograd.grad(loss(*batch), model.weight)[0]
    total = torch.zeros_like(wanted)
    for rank in range(3):
        (ids, weights), share = World(rank, 3).own(batch)
        total += share * torch.autograd.grad(loss(ids, weights), model.weight)[0]
    torch.testing.assert_close(total, wanted)


def test_what_has_no_rows_goes_to_all_and_rows_alone_count_alike() -> None:
    batch = [torch.zeros(5, 4), torch.tensor([7])]
    own, share = World(2, 3).own(batch)
    assert own[0].shape == (2, 4) and own[1].tolist() == [7] and share == pytest.approx(2 / 5)


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world, device = World.joined("cpu"), torch.device("cpu")
    assert world == World() and world.first
    assert world.agreed(True, device) and not world.agreed(False, device)
    assert world.summed(torch.ones(2)).tolist() == [1, 1]
    model = nn.Linear(1, 1)
    assert world.losses_of(model, max) is max  # type: ignore[arg-type]
    world.wait()
    said: list[str] = []
    world.said_by(said.append)("a")
    World(1, 2).said_by(said.append)("b")
    assert said == ["a"]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(InputError, match="torchrun started process"):
        World.joined("cuda")

"""Graphs that take long to link are refused before, with the time, by a rate that was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.faiss_hnsw import faiss_hnsw
from topkit.indexers.graph_time import seconds

LONG = (1 << 17, 1 << 17, 128, 1, 8)  # keys, of each head, dimensions, rows, heads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_rate_is_the_measured_one():
    with Path("benchmarks/results/cpu.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["bench"] == "build")
    assert row["what"] == "faiss_hnsw(), 1 head x 64K, CPU time"
    foreseen = seconds(1 << 16, 1 << 16, 128, faiss_hnsw().M, faiss_hnsw().ef_construction)
    assert foreseen == pytest.approx(float(row["median"]), rel=0.1)


def test_128k_keys_of_8_heads_are_linked_within_a_minute_or_refused_with_the_minutes(two_threads):
    faiss_hnsw().foresee(*LONG)
    for recipe, said in (
        (
            faiss_hnsw(ef_construction=200),
            r"faiss_hnsw\(M=16, ef_construction=200\): linking 131,072 keys of 8 heads takes about 4\.0 minutes in "
            r"2 threads, and 1 is allowed; give minutes=4, a smaller ef_construction or M, more threads, or faiss_ivf",
        ),
        (faiss_hnsw(M=64), "about 2.0 minutes"),
    ):
        with pytest.raises(InputError, match=said):
            recipe.foresee(*LONG)
    faiss_hnsw(ef_construction=200, minutes=5).foresee(*LONG)
    torch.set_num_threads(1)
    with pytest.raises(InputError, match=r"about 1\.6 minutes in 1 thread, and"):
        faiss_hnsw().foresee(*LONG)


def test_nothing_is_linked_that_is_refused():
    pytest.importorskip("faiss")
    keys = torch.randn(2, 2, 300, 8)
    slow = faiss_hnsw(ef_construction=1 << 20)
    with pytest.raises(InputError, match=r"takes about .* minutes in .*; give minutes="):
        slow.build(keys, Step())
    index = faiss_hnsw().build(keys, Step())
    index.append(keys[:, :, :1], Step())
    index.recipe = slow  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="linking 600 keys of 2 heads"):
        index.append(keys, Step())
    assert index.length == 301
    assert index.select(torch.randn(2, 4, 1, 8), 5, Step(kv_heads=2)).indices.shape == (2, 4, 1, 5)


@pytest.mark.parametrize("minutes", [0, -1, 1.5, True])
def test_minutes_that_are_none_are_refused(minutes):
    with pytest.raises(InputError, match="faiss_hnsw: minutes must be a whole number"):
        faiss_hnsw(minutes=minutes)

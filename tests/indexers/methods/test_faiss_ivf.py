"""faiss_ivf against a loop over the keys of the lists that are probed."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_read_back import Asked, drawn, faiss, hold
from plainly import best


def probed(asked: Asked, index, head: int, nprobe: int) -> dict[int, float]:
    """Exact products of the keys whose centroid is among the nprobe with the largest products."""
    keys, query = asked.keys[asked.key_head(head)].astype("f8"), asked.queries[head].astype("f8")
    quantizer = faiss.downcast_index(index.quantizer)
    centroids = quantizer.reconstruct_n(0, index.nlist).astype("f8")
    lists = set(np.argsort(-(centroids @ query), kind="stable")[:nprobe].tolist())
    own = {slot: int(np.argmax(centroids @ key)) for slot, key in enumerate(keys)}
    return {slot: float(keys[slot] @ query) for slot in own if own[slot] in lists}


@pytest.mark.parametrize(("nlist", "nprobe"), [(8, 1), (8, 3), (8, 8)])
@pytest.mark.parametrize("begun", [300, 120])
def test_exact_products_of_the_keys_in_the_best_lists(nlist, nprobe, begun):
    asked = drawn(begun=begun)
    lists, indexes = asked.chosen(f"faiss_ivf:nlist={nlist},nprobe={nprobe}", 11)
    for head, chosen in enumerate(lists):
        index = indexes[asked.key_head(head)]
        assert (index.nlist, index.ntotal) == (nlist, 300)
        scores = probed(asked, index, head, nprobe)
        hold(chosen, scores, 11)
        assert [slot for slot in chosen if slot >= 0] == best(scores, 11)


def test_fewer_come_back_where_the_lists_hold_fewer():
    asked = drawn(120)
    lists, indexes = asked.chosen("faiss_ivf:nlist=16,nprobe=1", 60)
    short = 0
    for head, chosen in enumerate(lists):
        scores = probed(asked, indexes[asked.key_head(head)], head, 1)
        hold(chosen, scores, 60)
        short += len(scores) < 60
    assert short

"""faiss_ivfpq against the probed lists' centroids and codes of what is left, from FAISS's own codebooks."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_read_back import codebooks, cut, drawn, faiss, hold


@pytest.mark.parametrize(
    ("spec", "nprobe", "dims"),
    [
        ("faiss_ivfpq:nlist=6,nprobe=2,dims=4,bits=4", 2, 4),
        ("faiss_ivfpq:nlist=6,nprobe=6,dims=3,bits=4", 6, 3),
        ("faiss_ivfpq:nlist=4,nprobe=2,dims=4,bits=8", 2, 4),
    ],
)
@pytest.mark.parametrize("begun", [600, 400])
def test_a_lists_centroid_and_the_codes_of_what_is_left(spec, nprobe, dims, begun):
    asked = drawn(600, begun=begun)
    lists, indexes = asked.chosen(spec, 10)
    for head, chosen in enumerate(lists):
        index = faiss.downcast_index(indexes[asked.key_head(head)])
        assert index.by_residual and index.pq.dsub == dims
        books, pieces = codebooks(index.pq), index.pq.M
        quantizer = faiss.downcast_index(index.quantizer)
        centroids = quantizer.reconstruct_n(0, index.nlist).astype("f8")
        query = cut(asked.queries[head], pieces, dims)
        best = set(np.argsort(-(centroids @ query.reshape(-1)))[:nprobe].tolist())
        tables = np.einsum("mcd,md->mc", books, query)
        scores = {}
        for slot, key in enumerate(asked.keys[asked.key_head(head)]):
            whole = cut(key, pieces, dims).reshape(-1)
            own = int(np.argmax(centroids @ whole))
            if own not in best:
                continue
            left = (whole - centroids[own]).reshape(pieces, dims)
            cells = [
                int(((book - x) ** 2).sum(1).argmin()) for book, x in zip(books, left, strict=True)
            ]
            said = sum(table[cell] for table, cell in zip(tables, cells, strict=True))
            scores[slot] = float(centroids[own] @ query.reshape(-1) + said)
        hold(chosen, scores, 10, slack=1e-3)

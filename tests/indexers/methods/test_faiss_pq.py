"""faiss_pq against sums of products with the nearest centroids, from FAISS's own codebooks."""

from __future__ import annotations

import numpy as np
import pytest

from faiss_read_back import codebooks, cut, drawn, faiss, hold


@pytest.mark.parametrize(("dims", "pieces"), [(2, 8), (5, 4)])
@pytest.mark.parametrize("begun", [400, 150])
def test_sums_of_what_the_tables_say_of_the_nearest_centroids(dims, pieces, begun):
    """A table's entries are rounded to a byte of the widest table: half a step an entry, and of two keys two."""
    asked = drawn(400, begun=begun)
    lists, indexes = asked.chosen(f"faiss_pq:dims={dims}", 15)
    for head, chosen in enumerate(lists):
        pq = faiss.downcast_index(indexes[asked.key_head(head)]).pq
        books = codebooks(pq)
        assert pq.ksub == 16 and pq.dsub == dims and pieces <= pq.M
        tables = np.einsum("mcd,md->mc", books, cut(asked.queries[head], pq.M, dims))
        scores = {}
        for slot, key in enumerate(asked.keys[asked.key_head(head)]):
            parts = cut(key, pq.M, dims)
            cells = [
                int(((book - x) ** 2).sum(1).argmin()) for book, x in zip(books, parts, strict=True)
            ]
            scores[slot] = float(
                sum(table[cell] for table, cell in zip(tables, cells, strict=True))
            )
        step = float((tables.max(1) - tables.min(1)).max()) / 255
        hold(chosen, scores, 15, slack=pq.M * step)

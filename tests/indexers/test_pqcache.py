"""PQCache's codebooks: a build's own, the same of a seed, and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from topkit.contract.draw import RANDOM
from topkit.errors import InputError
from topkit.indexers import Step
from topkit.indexers.pqcache import pqcache
from topkit.indexers.spec import parse


def built(recipe: pqcache, one, cuts=None) -> Any:
    return one.build(recipe, cuts)


def test_scores_are_those_of_the_nearest_centroids_of_each_part():
    """Appended keys, too; the last part of a head that m does not divide has zeros behind it."""
    one = RANDOM(pqcache(), length=40, start=(0, 11))
    recipe = pqcache(m=3, b=2)
    index = built(recipe, one, [25, 40])
    centroids = index.centroids  # [B, Hk, 3, 4, 6] of 16 dimensions
    scores = index.score(one.queries[:, :, 39:], one.step(recipe, slice(39, 40), 40))
    wide = [torch.nn.functional.pad(x, (0, 2)) for x in (one.keys, one.queries[:, :, 39])]
    for row, start in enumerate((0, 11)):
        for head in range(4):
            for slot in range(start, 40):
                total = 0.0
                for part in range(3):
                    own = slice(6 * part, 6 * part + 6)
                    book = centroids[row, head // 2, part]
                    near = (wide[0][row, head // 2, slot, own] - book).square().sum(-1).argmin()
                    total += float(book[near] @ wide[1][row, head, own])
                assert scores[row, head, 0, slot].item() == pytest.approx(total, abs=1e-4)


def test_centroids_are_means_of_the_keys_that_are_nearest_to_them():
    one = RANDOM(pqcache(), length=60, rows=1)
    index = built(pqcache(m=2, b=3, iterations=100), one)
    for head in range(2):
        for part in range(2):
            points, book = one.keys[0, head, :, 8 * part : 8 * part + 8], index.centroids[0, head]
            near = torch.cdist(points, book[part]).argmin(1)
            for cell in near.unique().tolist():
                torch.testing.assert_close(book[part, cell], points[near == cell].mean(0))


def test_a_seed_says_which_keys_the_clusters_begin_at():
    one = RANDOM(pqcache(), length=60, rows=1)
    books = [built(pqcache(), replace(one, seed=seed)).centroids for seed in (1, 1, 2)]
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_few_keys_are_their_own_centroids():
    one = RANDOM(pqcache(), length=50, rows=2)
    recipe = pqcache(b=8)
    index = built(recipe, one)
    scores = index.score(one.queries[:, :, 49:], one.step(recipe, slice(49, 50), 50))
    exact = one.queries[:, :, 49:] @ one.keys.repeat_interleave(2, 1).mT
    torch.testing.assert_close(scores, exact, atol=1e-4, rtol=1e-4)


def test_equal_keys_leave_no_cluster_without_keys_nearest():
    """Of 16 centroids that begin at equal keys one keeps them; the others are its copies, not zeros."""
    keys = torch.ones(1, 1, 30, 8) * 3
    index: Any = pqcache(b=4).build(keys, Step())
    assert (index.centroids == 3).all()


def test_built_on_nothing_it_tells_no_key_from_another():
    recipe = pqcache()
    index: Any = recipe.build(torch.zeros(2, 1, 0, 8), Step())
    index.append(torch.randn(2, 1, 5, 8), Step())
    chosen = index.select(torch.randn(2, 1, 1, 8), 3, Step()).indices
    assert chosen.flatten(1).tolist() == [[0, 1, 2]] * 2


def test_it_holds_a_byte_a_part_and_its_codebooks_which_each_step_reads():
    one = RANDOM(pqcache(), length=20, rows=2)
    recipe = pqcache(m=4, b=3)
    index = built(recipe, one)
    books = 2 * 4 * 8 * 4 * 4  # heads, parts, centroids, dimensions, bytes
    assert index.nbytes == 2 * (2 * 20 * 4 + books)
    chosen = one.ask(recipe, index, 5)
    assert torch.as_tensor(chosen.bytes_read).flatten().tolist() == [20 * 2 * 4 + books]
    index.reorder(torch.tensor([1, 1, 0]))
    assert index.nbytes == 3 * (2 * 20 * 4 + books)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pqcache:m=0", "pqcache: m must be a whole number of at least 1; got 0"),
        ("pqcache:b=0", "pqcache: b must be a whole number of at least 1; got 0"),
        ("pqcache:b=9", "pqcache: b must be a whole number of at most 8; got 9"),
        ("pqcache:iterations=0", "pqcache: iterations must be a whole number of at least 1; got 0"),
    ],
)
def test_parameters_are_refused(spec, says):
    with pytest.raises(InputError, match=says):
        parse(spec)

"""What was judged in pieces stands where it would have stood as a whole."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.experiments.evaluate.board import Board
from topkit.experiments.runs.judged import Judged


def cuts(most: int) -> st.SearchStrategy[list[int]]:
    inner = st.sets(st.integers(1, most - 1)) if most > 1 else st.just(set())
    return inner.map(lambda places: [0, *sorted(places), most])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_of_any_shape_give_the_whole(data):
    """Queries are cut in one way; the rows of each cut in another, as blocks of fewer queries hold more rows."""
    rows, heads, count, layers = 5, 2, 6, (1, 4)
    whole = torch.rand(len(layers), rows, heads, count)
    trivial = whole > 0.8
    board = Board(rows, count)
    own = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, unique=True).map(sorted))
    for place, layer in enumerate(layers):
        for first, stop in pairwise(data.draw(cuts(count))):
            for begin, end in pairwise(data.draw(cuts(len(own)))):
                some = own[begin:end]
                columns = {
                    "recall": whole[place, some, :, first:stop],
                    "trivial": trivial[place, some, :, first:stop],
                }
                board.note(layer, some, first, Judged("group", "group", columns))
    ((numbers, of_layers, judged),) = board.stacks()
    assert (numbers, of_layers, judged.level) == (own, [1, 4], "group")
    assert judged.columns["recall"].equal(whole[:, own].flatten(0, 1).double())
    assert judged.columns["trivial"].equal(trivial[:, own].flatten(0, 1))


def test_layers_that_judged_other_rows_stand_apart():
    board = Board(3, 1)
    for layer, numbers in ((0, [0, 1, 2]), (1, [2]), (2, [0, 1, 2])):
        ones = torch.full((len(numbers), 1, 1), float(layer))
        board.note(layer, numbers, 0, Judged("head", "head", {"recall": ones, "trivial": ones > 9}))
    apart = [(numbers, layers) for numbers, layers, _ in board.stacks()]
    assert apart == [([0, 1, 2], [0, 2]), ([2], [1])]

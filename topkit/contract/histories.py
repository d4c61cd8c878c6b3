# pyright: strict, reportUnknownMemberType=false
"""Laws of what came before: how an index grew, was cut, forked, reordered, or stood in a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from topkit.contract.agree import agree, part_of
from topkit.contract.draw import PADDED, RANDOM, Draw
from topkit.contract.selections import BUDGETS
from topkit.contract.streams import Stream
from topkit.indexers.base import Indexer


def append(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """build(a) then append(b) selects as build(a ++ b), unless the class drifts."""
    if indexer.traits().drifts:
        return
    for one in (draw(indexer), *_padded(indexer, draw)):
        whole = one.build(indexer)
        wants = one.ask_each(indexer, whole, BUDGETS)
        for cuts in ([20, one.length], [1, 2, one.length], [30, *range(31, one.length + 1)]):
            grown = one.build(indexer, cuts)
            assert grown.length == whole.length, f"length {grown.length}, not {whole.length}"
            for k, want in wants.items():
                got = one.ask(indexer, grown, k)
                agree(indexer, one, whole, got, want, f"built in pieces {cuts}, k={k}")


def queries_together(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Several queries at once select as one by one, where codes are causal."""
    traits = indexer.traits()
    if not traits.causal_codes or traits.remembers:
        return
    # What drifts is built before the first query, and asked all at once: as drivers do.
    begun = [6] if traits.drifts else []
    for one in (draw(indexer), draw(indexer, start=PADDED)):
        whole = one.build(indexer, [*begun, one.length])
        tokens = torch.tensor([6, 20, one.length - 2, one.length - 1])
        alone = [one.build(indexer, [*begun, int(token) + 1]) for token in tokens]
        for k in BUDGETS:
            last = one.ask(indexer, whole, k, 2)
            spread = one.ask_at(indexer, whole, k, tokens)
            for i, (token, index) in enumerate(zip(map(int, tokens), alone, strict=True)):
                want = one.ask(indexer, index, k)
                where = f"query {token} among several, k={k}"
                agree(indexer, one, index, part_of(spread, queries=slice(i, i + 1)), want, where)
                if i >= 2:
                    agree(
                        indexer, one, index, part_of(last, queries=slice(i - 2, i - 1)), want, where
                    )


def row_alone(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Row i of a batch, its padding removed, chooses the same keys."""
    for one in _padded(indexer, draw):
        together = one.ask_each(indexer, one.build(indexer), BUDGETS)
        for row, first in enumerate(map(int, one.starts())):
            alone = one.alone(row)
            index = alone.build(indexer)
            for k, got in together.items():
                want = alone.ask(indexer, index, k)
                own = part_of(got, slice(row, row + 1))
                own = replace(own, indices=own.indices.where(own.indices < 0, own.indices - first))
                where = f"row {row} with {first} padded slots, k={k}"
                agree(indexer, alone, index, own, want, where)


def padding_is_nothing(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """What stands in padded slots changes no selection."""
    one = draw(indexer, start=PADDED)
    other = draw(indexer, start=PADDED, seed=1)
    rows = [one.spliced(other, 0).spliced(one, first) for first in PADDED]
    wants = one.ask_each(indexer, one.build(indexer), BUDGETS)
    for row, changed in enumerate(rows):
        index = changed.build(indexer)
        for k, want in wants.items():
            got = changed.ask(indexer, index, k)
            same = torch.equal(got.indices[row], want.indices[row])
            assert same, f"other keys in the padding of row {row} changed what k={k} selects"


def truncate(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """truncate then append selects as if the keys cut off had never come."""
    for start in (None, (0, 5, 24)):
        one = draw(indexer, start=start)
        draft = one.spliced(draw(indexer, start=start, seed=1), 25)
        cases = [([25], [25, 33], 25), ([18, 25], [18, 25, 26, 30], 25)]
        if not indexer.traits().drifts:
            cases += [([19], [one.length], 19), ([25, 27], [25, 27, 31], 2)]
        for kept, drafted, length in cases:
            index = draft.build(indexer, drafted)
            draft.truncate(indexer, index, length)
            assert index.length == length, f"length is {index.length} after truncate({length})"
            one.append(indexer, index, one.length)
            never = one.build(indexer, [*[c for c in kept if c <= length], one.length])
            for k in BUDGETS:
                got, want = one.ask(indexer, index, k), one.ask(indexer, never, k)
                agree(indexer, one, never, got, want, f"after truncate({length}), k={k}")


def fixed(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """With its slot and stop on the device a key is appended and selected as anywhere, also twice."""
    if not indexer.traits().fixed:
        return
    for start in (None, PADDED):
        one, draft = draw(indexer, start=start), draw(indexer, start=start, seed=1)
        index = one.build(indexer, [30, 31])
        for length in range(32, one.length + 1):
            assert index.room() is not None, f"no room for slot {length - 1}"
            tokens = slice(length - 1, length)
            for written in (draft, one):
                index.append(written.keys[:, :, tokens], written.step_at(indexer, length))
            step = one.step_at(indexer, length)
            assert index.length == length - 1, "a slot shows that was not revealed"
            want_index = one.build(indexer, [30, length])
            wants = one.ask_each(indexer, want_index, BUDGETS)
            for k, want in wants.items():
                got = index.select(one.queries[:, :, tokens], k, step)
                agree(indexer, one, want_index, got, want, f"at a place, {length} keys, k={k}")
            index.reveal(length)
            assert index.length == length, f"length is {index.length} after reveal({length})"
            for k, want in wants.items():
                got = one.ask(indexer, index, k)
                agree(indexer, one, want_index, got, want, f"revealed, {length} keys, k={k}")


def reorder(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """reorder(rows) leaves what building from the gathered rows would have."""
    one = draw(indexer, start=(0, 5, 11))
    for rows in ([1, 1, 0], [2, 0], [0, 2, 1, 1]):
        gathered = one.gather(torch.tensor(rows))
        index, want_index = one.build(indexer, [25, 30]), gathered.build(indexer, [25, 30])
        index.reorder(torch.tensor(rows))
        for cut in (30, one.length):
            if cut > index.length:
                gathered.append(indexer, index, cut)
                gathered.append(indexer, want_index, cut)
            for k in BUDGETS:
                got = gathered.ask(indexer, index, k)
                want = gathered.ask(indexer, want_index, k)
                agree(indexer, gathered, want_index, got, want, f"rows {rows}, {cut} keys, k={k}")


def fork_of_grown(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """What is cut from an index that grew, and written anew, is still there in its fork."""
    one = draw(indexer, start=(0, 5, 11))
    other = one.spliced(draw(indexer, start=(0, 5, 11), seed=1), 22)
    index = one.build(indexer, [20, 21, 25])
    twin, before = index.fork(), one.ask(indexer, index, 5)
    one.truncate(indexer, index, 22)
    other.append(indexer, index, 25)
    agree(indexer, one, twin, one.ask(indexer, twin, 5), before, "fork after its origin was cut")


def fork(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """A fork and its origin go on without regard to each other."""
    one = draw(indexer, start=(0, 5, 11))
    other = one.spliced(draw(indexer, start=(0, 5, 11), seed=1), 25)
    index = one.build(indexer, [20, 25])
    before = one.ask(indexer, index, 5)
    size = index.nbytes  # of what remembers, a selection may change it
    twin, cut = index.fork(), index.fork()
    other.append(indexer, twin, 33)
    one.truncate(indexer, cut, 22)
    cut.reorder(torch.tensor([2, 2, 2]))
    assert index.length == 25, f"the origin has {index.length} keys after its fork grew; it had 25"
    assert index.nbytes == size, f"the origin holds {index.nbytes} bytes, not {size}"
    agree(indexer, one, index, one.ask(indexer, index, 5), before, "origin after its fork grew")
    one.append(indexer, index, one.length)
    assert twin.length == 33, f"the fork has {twin.length} keys after its origin grew; it had 33"
    for stream_, got, cuts in ((one, index, [20, 25, one.length]), (other, twin, [20, 25, 33])):
        want = stream_.build(indexer, cuts)
        for k in BUDGETS:
            a, b = stream_.ask(indexer, got, k), stream_.ask(indexer, want, k)
            agree(indexer, stream_, want, a, b, f"{'origin' if got is index else 'fork'}, k={k}")


def same_seed_same_answer(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """No hidden source of chance: torch's generator, and queries before, change nothing."""
    one = draw(indexer)
    answers: list[Tensor] = []
    state = torch.random.get_rng_state()
    for seed in (1, 2):
        torch.manual_seed(seed)
        index = one.build(indexer, [20, one.length])
        answers.append(one.ask(indexer, index, 5).indices)
        if not indexer.traits().remembers:
            one.ask(indexer, index, 3)
            answers += [one.ask(indexer, index, 5).indices for _ in range(2)]
    torch.random.set_rng_state(state)
    for other in answers[1:]:
        assert torch.equal(answers[0], other), (
            "the same keys, query and seed gave another selection"
        )


def repeated_kv_heads(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Grouped heads select as if each query head had a copy of its KV head; not tried where heads are fixed."""
    if draw.heads is not None or "heads" in indexer.widths():
        return
    for heads in ((4, 2), (6, 2), (4, 1), (3, 3)):
        one = draw(indexer, heads=heads)
        many = one.repeated()
        index, index2 = one.build(indexer, [20, one.length]), many.build(indexer, [20, one.length])
        for k in BUDGETS:
            want, got = one.ask(indexer, index, k), many.ask(indexer, index2, k)
            agree(
                indexer, one, index, got, want, f"{heads[0]} query and {heads[1]} KV heads, k={k}"
            )


def cuda_agrees(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """A GPU chooses as the CPU does, by the scores chosen; without a GPU nothing is tried."""
    if not torch.cuda.is_available():
        return
    for here in (draw(indexer), draw(indexer, start=PADDED)):
        there = here.to(torch.device("cuda"))
        cuts = [20, here.length]
        index, index2 = here.build(indexer, cuts), there.build(indexer, cuts)
        for k in BUDGETS:
            want, got = here.ask(indexer, index, k), there.ask(indexer, index2, k)
            assert got.indices.is_cuda, "indices of a query on a GPU are on the CPU"
            agree(indexer, here, index, part_of(got), want, f"on a GPU, k={k}")


def _padded(indexer: Indexer, draw: Draw) -> tuple[Stream, Stream]:
    """Padded streams: one of any numbers, and one of whole numbers, where many keys score alike."""
    return draw(indexer, start=PADDED), draw(indexer, start=PADDED, whole=True)

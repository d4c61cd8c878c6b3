# pyright: strict
"""Sequences of several lengths that stand one after the other, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from topkit.assertions.arrays import Array, places
from topkit.assertions.demand import Demand
from topkit.assertions.problem import Problem
from topkit.assertions.verdict import Part
from topkit.errors import InputError


@dataclass(frozen=True)
class Ragged:
    """What is known of tokens of all sequences, and where each sequence begins.

    Shapes: of problem, scores [N, T] or [N, Hs, T], or queries [N, Hq, D] beside keys [M, Hk, D] or, padded,
    [B, Hk, T, D]; begins B + 1 numbers, the last that of all queries; lengths B numbers, the keys of each.
    """

    problem: Problem
    begins: list[int]
    lengths: list[int]
    table: Tensor | None

    @classmethod
    def of(cls, problem: Problem, cu_seqlens: Array, tokens: int) -> Ragged:
        """Of `tokens` lists. Raises: InputError for sequences that do not add up."""
        if problem.start is not None or problem.stop is not None:
            raise InputError("cu_seqlens and lengths say what is visible: leave out start and stop")
        begins = _begins(cu_seqlens, tokens)
        counts = [end - begin for begin, end in pairwise(begins)]
        lengths = counts if problem.lengths is None else _lengths(problem.lengths, counts)
        _check(problem, tokens, lengths)
        table = problem.block_table
        if table is not None:
            table = places(table, "block_table")
            if table.dim() != 2 or len(table) != len(counts):
                raise InputError(
                    f"block_table must be [{len(counts)}, pages], a line for each sequence; got "
                    f"{list(table.shape)}"
                )
        return cls(problem, begins, lengths, table)

    def parts(self, picked: Tensor, demand: Demand, block: int) -> Iterator[Part]:
        """The rows of indices [N, w] or [N, Hs, w], a part a sequence. Raises: InputError as `Problem.parts`."""
        if picked.dim() not in {2, 3}:
            raise InputError(
                f"indices must be [tokens, k] or [tokens, Hs, k] beside cu_seqlens; got {list(picked.shape)}"
            )
        lists = picked[:, None] if picked.dim() == 2 else picked
        for sequence, (begin, end) in enumerate(pairwise(self.begins)):
            if begin < end:
                own = self._sequence(sequence, slice(begin, end))
                (part,) = own.parts(_stood(lists[begin:end]), demand, block)
                place = self._place(sequence, begin, part.place, picked.dim() == 3)
                yield replace(part, place=place, dims=picked.dim() - 1)

    def _sequence(self, sequence: int, own: slice) -> Problem:
        p, length = self.problem, self.lengths[sequence]
        table = None if self.table is None else self.table[sequence : sequence + 1]
        p = replace(p, lengths=[length], block_table=table)
        if p.scores is not None:
            rows = p.scores[own]
            return replace(p, scores=_stood(rows[:, None] if rows.dim() == 2 else rows))
        assert p.queries is not None and p.keys is not None
        if p.keys.dim() == 4:
            keys = p.keys[sequence : sequence + 1]
        else:
            begin = sum(self.lengths[:sequence])
            keys = _stood(p.keys[begin : begin + length])
        return replace(p, queries=_stood(p.queries[own]), keys=keys)

    def _place(
        self, sequence: int, begin: int, within: Callable[[int], dict[str, int]], several: bool
    ) -> Callable[[int], dict[str, int]]:
        def place(row: int) -> dict[str, int]:
            own = within(row)
            lists = {n: x for n, x in own.items() if n not in ("batch", "query") and several}
            query = own["query"]
            return {"token": begin + query, **lists, "sequence": sequence, "query": query}

        return place


def _stood(x: Tensor) -> Tensor:
    """Of tokens first [n, H, ...]: one row of a batch [1, H, n, ...]."""
    return x.transpose(0, 1)[None]


def _begins(cu_seqlens: Array, tokens: int) -> list[int]:
    x = places(cu_seqlens, "cu_seqlens")
    begins = [int(begin) for begin in x.flatten()]
    if tokens == 0:
        raise InputError("indices must hold at least one row; got none")
    rises = all(a <= b for a, b in pairwise(begins))
    if x.dim() != 1 or len(begins) < 2 or begins[0] != 0 or begins[-1] != tokens or not rises:
        raise InputError(
            f"cu_seqlens must be [B + 1], ascending from 0 to the {tokens} rows of indices; got "
            f"{begins if len(begins) <= 8 else [*begins[:4], '...', *begins[-3:]]}"
        )
    return begins


def _lengths(lengths: Array | int, counts: list[int]) -> list[int]:
    x = places(lengths, "lengths")
    if x.shape != (len(counts),):
        raise InputError(
            f"lengths must be [{len(counts)}], the keys of each sequence; got {list(x.shape)}"
        )
    listed = [int(length) for length in x]
    for sequence, (length, count) in enumerate(zip(listed, counts, strict=True)):
        if length < count:
            raise InputError(
                f"lengths must hold the queries of each sequence, which are its last slots; sequence {sequence} "
                f"has {count} queries and {length} keys"
            )
    return listed


def _check(problem: Problem, tokens: int, lengths: list[int]) -> None:
    """Require as many scores, or queries and keys, as the sequences have."""
    longest = max(lengths)
    if problem.scores is not None and problem.queries is None and problem.keys is None:
        shape = list(problem.scores.shape)
        if len(shape) not in {2, 3} or shape[0] != tokens or shape[-1] < longest:
            raise InputError(
                f"scores must be [{tokens}, T] or [{tokens}, Hs, T], T at least the longest sequence's {longest}; "
                f"got {shape}"
            )
        return
    if problem.scores is not None or problem.queries is None or problem.keys is None:
        raise InputError("expected scores alone, or queries and keys")
    queries, keys = list(problem.queries.shape), list(problem.keys.shape)
    if len(queries) != 3 or queries[0] != tokens:
        raise InputError(f"queries must be [{tokens}, Hq, D] beside cu_seqlens; got {queries}")
    padded = len(keys) == 4 and keys[0] == len(lengths) and keys[2] >= longest
    if not padded and (len(keys) != 3 or keys[0] != sum(lengths)):
        raise InputError(
            f"keys must be [{sum(lengths)}, Hk, D], those of all sequences (lengths, by default those of "
            f"cu_seqlens), or padded [{len(lengths)}, Hk, T, D] with T at least {longest}; got {keys}"
        )

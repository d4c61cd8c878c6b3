"""Where a sample begins and ends in a batch that is padded, or in sequences that stand end to end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from topkit.documents import quote
from topkit.errors import InputError
from topkit.experiments.capture.tensors import SHAPES


@dataclass(frozen=True)
class Bounds:
    """One sample: its row of the batch, its `length` keys, and its queries where they are not all of the row.

    first: where its keys begin; asked: the queries [first, last).
    """

    row: int
    number: int
    length: int
    first: int = 0
    asked: tuple[int, int] | None = None

    def cut(self, name: str, x: Tensor) -> Tensor:
        """Its part of a tensor that is arranged as SHAPES says."""
        x, form = x[self.row : self.row + 1], SHAPES[name].split()
        if "T" in form:
            at = form.index("T")
            # What is too short is refused by its name, later.
            here = min(self.length, max(0, x.shape[at] - self.first))
            x = x.narrow(at, min(self.first, x.shape[at]), here)
        if "Tq" in form and self.asked is not None:
            begin, end = self.asked
            if end > x.shape[form.index("Tq")]:
                raise InputError(
                    f"{name} have {x.shape[form.index('Tq')]} tokens, and the sequences {end} or more"
                )
            x = x.narrow(form.index("Tq"), begin, end - begin)
        return x


def padded(lengths: Any, rows: int, width: int | None, count: int) -> list[Bounds]:
    """Rows of so many real keys, of `width` where padding fills them up, each at its left.

    Where all `width` tokens have queries, those of padding go with their keys.

    Raises: InputError for lengths that are not one a row, or longer than the keys.
    """
    if width == 0:
        raise InputError("the keys have no tokens; give those that the queries see")
    real = [width or 0] * rows
    if lengths is not None:
        real = whole_numbers("lengths", lengths).reshape(-1).tolist()
    if len(real) != rows or not all(1 <= n <= (width or n) for n in real):
        most = "" if width is None else f" from 1 to {width}"
        raise InputError(f"lengths must be {rows} numbers{most}, one a row; got {quote(real)}")
    every = lengths is not None and count == width
    return [Bounds(row, row, n, 0, (0, n) if every else None) for row, n in enumerate(real)]


def packed(
    lengths: Any, cu_seqlens: Any, cu_seqlens_q: Any, width: int | None, count: int
) -> list[Bounds]:
    """Sequences end to end: `width` keys and `count` queries of all; one where nothing is said.

    Queries are those of the same tokens, or one a sequence, unless cu_seqlens_q says which.
    Raises: InputError where the lengths do not add up.
    """
    if cu_seqlens is None and lengths is None and cu_seqlens_q is not None:
        if count != width:
            raise InputError(
                "cu_seqlens_q tells queries apart, and nothing the keys; give cu_seqlens too"
            )
        cu_seqlens = cu_seqlens_q
    keys = _edges("cu_seqlens", cu_seqlens, lengths, width)
    if keys is None:
        return [Bounds(0, 0, width or 0)]
    several = len(keys) - 1
    if cu_seqlens_q is not None:
        asked = _edges("cu_seqlens_q", cu_seqlens_q, None, count)
        assert asked is not None
    elif count == keys[-1]:
        asked = keys
    elif count == several:
        asked = list(range(several + 1))
    elif several == 1:
        asked = [0, count]
    else:
        raise InputError(
            f"{count} queries of {several} sequences of {keys[-1]} tokens are neither all of them nor one each; "
            "give cu_seqlens_q, where the queries of each begin, and the end"
        )
    if len(asked) != len(keys):
        raise InputError(
            f"cu_seqlens_q is of {len(asked) - 1} sequences, the keys of {several}; they must be the same"
        )
    return [
        Bounds(0, n, keys[n + 1] - keys[n], keys[n], (asked[n], asked[n + 1]))
        for n in range(several)
    ]


def _edges(name: str, edges: Any, lengths: Any, total: int | None) -> list[int] | None:
    """Where sequences begin, and the end of the last."""
    if edges is None and lengths is None:
        return None
    own = None if edges is None else whole_numbers(name, edges).reshape(-1).tolist()
    if lengths is not None:
        sums = [0, *whole_numbers("lengths", lengths).reshape(-1).cumsum(0).tolist()]
        if own is not None and own != sums:
            raise InputError(f"{name} and lengths say other sequences; give one of the two")
        name, own = ("lengths", sums) if own is None else (name, own)
    assert own is not None
    ascends = len(own) > 1 and own[0] == 0 and all(a < b for a, b in pairwise(own))
    if not ascends:
        raise InputError(f"{name} must begin with 0 and ascend, or be positive; got {quote(own)}")
    if total is not None and own[-1] != total:
        raise InputError(
            f"{name} add up to {own[-1]} tokens, and the tensors have {total}; cut what is behind them, or "
            "give the lengths of these tensors"
        )
    return own


def positions_of(positions: Any, one: Bounds, samples: int, count: int) -> Tensor:
    """The slots [Tq] of a sample's queries: as said for all or each, else the last of its tokens.

    Raises: InputError for another shape, and more queries than tokens.
    """
    if positions is None:
        if count > one.length:
            raise InputError(
                f"sample {one.number} has {count} queries and {one.length} keys: each query is one of the "
                "last tokens, so there cannot be more; give positions= where it is otherwise"
            )
        return torch.arange(one.length - count, one.length)
    at = whole_numbers("positions", positions)
    if one.asked is not None and at.ndim == 1 and samples > 1:
        begin, end = one.asked
        if end > len(at):
            raise InputError(
                f"positions are {len(at)}, and the queries of the sequences {end} or more"
            )
        return at[begin:end]
    if at.shape not in {(count,), (samples, count)}:
        raise InputError(
            f"positions must be [{count}] or [{samples}, {count}]; got {list(at.shape)}"
        )
    return at if at.ndim == 1 else at[one.number]


def slots(name: str, x: Any) -> Tensor:
    """int32, on the host, -1 for none. Raises: InputError for what is no slot of any sequence."""
    numbers = whole_numbers(name, x)
    if numbers.numel() and (int(numbers.min()) < -1 or int(numbers.max()) >= 1 << 31):
        raise InputError(
            f"{name} must be slots from 0 on, and -1 for none; got {int(numbers.min())} to {int(numbers.max())}"
        )
    return numbers.int()


def require_slots(lists: Tensor, positions: Tensor, length: int) -> None:
    """Require an engine's lists [1, Tq, K] to be slots of the sequence that their queries see.

    Places that an early query has more of than keys may hold any slot.
    Raises: InputError for one of another sequence, or of the cache.
    """
    if int(lists.max()) >= length:
        raise InputError(
            f"native must be slots of the {length} keys, counted from each sequence's first; got "
            f"{int(lists.max())}: slots of a paged cache are to be turned into positions"
        )
    late = lists[0] > positions[:, None]
    late[positions + 1 < lists.shape[2]] = False
    if late.any():
        row, place = late.nonzero()[0].tolist()
        raise InputError(
            f"native of the query at position {int(positions[row])} holds slot {int(lists[0, row, place])}, "
            "which it does not see; give positions= where queries are of other tokens"
        )


def whole_numbers(name: str, x: Any) -> Tensor:
    """int64, on the host. Raises: InputError for what is not whole."""
    try:
        numbers = torch.as_tensor(x).cpu()
        whole = numbers.long()
        same = numbers.dtype != torch.bool and bool((numbers.double() == whole.double()).all())
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be whole numbers; got {quote(x)}") from error
    if not same:
        raise InputError(f"{name} must be whole numbers; got {quote(numbers.tolist())}")
    return whole

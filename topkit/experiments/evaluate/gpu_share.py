"""What one process may take of a memory that others share: said beforehand, planned for, and held to."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from topkit.errors import InputError
from topkit.experiments.runs.plan import WITH_TRANSFORMERS

# Of what is said: a GPU's context, libraries' workspaces and the nodes of graphs, which torch does not count.
CONTEXT = 10**9
# The share of the rest that graphs hold from haystack to haystack; of what is said to no one, a quarter of what is free.
GRAPHS = 0.6
# What each GPU's processes were told, by its number: the bytes that torch may give out.
_held: dict[int, int] = {}


def share_of(said: float, device: torch.device) -> int:
    """The bytes of `said` GB that tensors may take.

    Raises: InputError for less than a process takes before there are any.
    """
    beside = CONTEXT if device.type == "cuda" else WITH_TRANSFORMERS
    share = int(said * 1e9) - beside
    if share <= 0:
        raise InputError(
            f"memory={said:g} GB is less than the {beside / 1e9:.1f} GB that a process takes before it begins"
        )
    if device.type != "cuda":
        return share
    return min(share, torch.cuda.get_device_properties(device).total_memory - CONTEXT)


def hold_to(said: float | None, device: torch.device) -> None:
    """Have torch give this process no more of a GPU than `said` GB, whatever is free; None: all of it."""
    if device.type != "cuda":
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    share = None if said is None else share_of(said, device)
    if _held.get(number) == share:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    fraction = 1.0 if share is None else share / total
    torch.cuda.set_per_process_memory_fraction(fraction, device)
    _held.pop(number, None)
    if share is not None:
        _held[number] = share


def room_for_graphs(device: torch.device, held: int) -> int:
    """Bytes that rows of graphs may take more, beside `held` that such rows take already; of a host's, any."""
    if device.type != "cuda":
        return sys.maxsize
    number = torch.cuda.current_device() if device.index is None else device.index
    if number in _held:
        return int(GRAPHS * _held[number]) - held
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free // 4


def rows_within(
    share: int, rows: int, needs: Callable[[int], int], graphs: Callable[[int], int]
) -> int:
    """How many rows of `rows` at most go together in a share, so few that there are graphs if any number has them.

    Of numbers that are an eighth apart. needs and graphs: bytes at so many rows; graphs: of one turn's.
    Raises: InputError where one row needs more.
    """
    most, tried = 0, rows
    while tried:
        if needs(tried) <= share:
            most = most or tried
            if graphs(tried) <= GRAPHS * share:
                return tried
        tried = min(tried - 1, tried * 7 // 8)
    if not most:
        raise InputError(
            f"one row takes about {needs(1) / 1e9:.1f} GB, of the {share / 1e9:.1f} GB that tensors may take; "
            "say more memory, or ask for a shorter length"
        )
    return most

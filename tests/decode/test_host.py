"""What is handed to a recipe that chooses on the host."""

from __future__ import annotations

from dataclasses import fields

import torch

from topkit.experiments.decode.host import moved
from topkit.indexers.base import Cache, Rest, Selection


def test_every_tensor_of_an_input_moves() -> None:
    """To torch's device of shapes alone, which a CPU has too."""
    x, meta = torch.zeros(1, 2, 3, 4), torch.device("meta")
    selection = Selection(x.long(), x, Rest(x, x, x), x, 2.0)
    for thing in (x, (x, x), Cache(x, x), Cache(x), selection):
        there = moved(thing, meta)
        assert type(there) is type(thing)
        assert {one.device for one in tensors(there)} == {meta}
        assert len(tensors(there)) == len(tensors(thing))
    assert moved(None, meta) is None and moved(3, meta) == 3
    assert moved(selection, meta).bytes_read == 2.0


def tensors(x: object) -> list[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        return [x]
    parts = x if isinstance(x, tuple) else [getattr(x, one.name) for one in fields(x)]  # type: ignore[arg-type]
    return [
        one
        for part in parts
        if isinstance(part, torch.Tensor | Rest | tuple)
        for one in tensors(part)
    ]

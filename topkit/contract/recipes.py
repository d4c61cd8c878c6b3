# pyright: strict
"""Laws of what a recipe says of itself: its name, needs, bytes and scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from topkit.contract.draw import RANDOM, Draw
from topkit.contract.memory import bytes_in_reach
from topkit.contract.streams import Stream, parts
from topkit.errors import InputError
from topkit.grammar import flat, short
from topkit.indexers.base import Index, Indexer, Step
from topkit.indexers.spec import parse


def declared_inputs(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """Only declared inputs are read, and one that a driver lacks is an InputError."""
    one = draw(indexer)
    try:
        _whole_life(indexer, one, "")
    except InputError as error:
        raise AssertionError(f"with all inputs that it declares, it raised: {error}") from error
    for name in indexer.needs:
        try:
            _whole_life(indexer, one, name)
        except Exception as error:
            if not isinstance(error, InputError) or name not in str(error):
                raise AssertionError(
                    f"without {name!r} it raised {error!r}, not an InputError that names it"
                ) from error


def inputs_untouched(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """No call writes into its arguments or inputs."""
    one = draw(indexer, start=(0, 5, 11))
    before = [x.clone() for x in one.tensors]
    _whole_life(indexer, one, "")
    same = all(torch.equal(x, y) for x, y in zip(one.tensors, before, strict=True))
    assert same, "a call wrote into its inputs"


def honest_bytes(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """nbytes counts what the index holds, each storage once, and no view of the cache."""
    one = draw(indexer)
    index = one.build(indexer, [20, one.length])
    cache = {x.untyped_storage().data_ptr() for x in one.tensors}
    size, opaque = bytes_in_reach(index, cache)
    assert index.nbytes >= size, f"nbytes is {index.nbytes}; its tensors have {size}"
    if not opaque:
        assert index.nbytes == size, f"nbytes is {index.nbytes}; its tensors have only {size}"


def scores_explain(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """score has one number a key, and no key left out scores above one chosen; or it raises."""
    for one in (draw(indexer), draw(indexer, heads=(6, 2), start=(0, 5, 11))):
        index = one.build(indexer, [20, one.length])
        last = slice(one.length - 1, one.length)
        queries, step = one.queries[:, :, last], one.step(indexer, last, one.length)
        if not indexer.traits().score_all:
            assert _refuses(index, queries, step), "score answers without the class's score_all"
            continue
        scores = index.score(queries, step)
        slots = one.ask(indexer, index, 5).indices
        wanted = (*slots.shape[:3], one.length)
        assert tuple(scores.shape) == wanted, f"scores are {tuple(scores.shape)}, expected {wanted}"
        hidden = torch.arange(one.length) < one.starts()[:, None, None, None]
        real = (slots >= 0).to(scores.dtype)
        chosen = torch.zeros_like(scores).scatter_add_(-1, slots.clamp_min(0), real) > 0
        worst = scores.masked_fill(~chosen, math.inf).amin(-1)
        left = scores.masked_fill(chosen | hidden, -math.inf).amax(-1)
        slack = 1e-5 * scores.masked_fill(hidden, 0).abs().amax(-1)
        fine = indexer.traits().may_come_short or bool((left <= worst + slack).all())
        assert fine, "a key left out scores above one that was chosen"
        assert index.bytes_per_key(step) >= 0, "bytes_per_key is negative"


def named_by_repr(indexer: Indexer, draw: Draw = RANDOM) -> None:
    """repr and the shorter forms parse back, and equal recipes hash alike."""
    # By name, since a class of a notebook or a function cannot be imported.
    registry = {indexer.registry().name(type(part)): type(part) for part in parts(indexer)}
    for spec in (repr(indexer), short(indexer), flat(indexer)):
        again = parse(spec, registry)
        assert again == indexer, f"{spec} parses as {again!r}"
        assert hash(again) == hash(indexer), f"{spec} parses to an equal recipe with another hash"
    for part in parts(indexer):
        for word in ("family", "source", "cost"):
            assert isinstance(getattr(part, word), str), f"{word} is not a str"


def _whole_life(indexer: Indexer, one: Stream, without: str) -> None:
    index = one.build(indexer, [20, one.length], without)
    one.ask(indexer, index, 5, without=without)
    index.truncate(18, one.step(indexer, slice(0, 0), 18, without=without))
    index.reorder(torch.tensor([1, 0]))


def _refuses(index: Index, queries: Tensor, step: Step) -> bool:
    try:
        index.score(queries, step)
    except InputError:
        return True
    return False

"""center= and hadamard=: the mean taken off by hand, the rotation made by hand, and then the plain recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topkit.contract.agree import agree
from topkit.contract.draw import RANDOM
from topkit.contract.streams import Stream
from topkit.errors import InputError
from topkit.experiments.runs.identity import contents
from topkit.grammar import flat, short
from topkit.indexers import Selection, Step, Traits
from topkit.indexers.faiss_hnsw import faiss_hnsw
from topkit.indexers.faiss_ivf import faiss_ivf
from topkit.indexers.mean_key import MeanIndex
from topkit.indexers.quantized import quantized
from topkit.indexers.scored import ScoredIndex
from topkit.indexers.sign import sign
from topkit.indexers.spec import parse
from topkit.kernels.codes import LARGEST, hadamard_rotate

CODES = (
    "sign",
    *(f"quantized:dtype={dtype}" for dtype in (*LARGEST, "mxfp4")),
    "quantized:scale=pow2",
)
GRAPHS = ("faiss_hnsw", "faiss_ivf:nlist=4,nprobe=3")


def with_options(spec: str, **options: bool) -> str:
    """A spec with options behind it."""
    said = ",".join(f"{name}={value}" for name, value in options.items())
    return f"{spec}{',' if ':' in spec else ':'}{said}" if said else spec


def mean_by_hand(keys: torch.Tensor) -> torch.Tensor:
    """The mean of keys [1, H, t, D] over t, in exact fractions, rounded once."""
    heads, count, width = keys.shape[1:]
    mean = torch.zeros(1, heads, 1, width)
    for head in range(heads):
        for place in range(width if count else 0):
            numbers = keys[0, head, :, place].tolist()
            mean[0, head, 0, place] = float(sum(map(Fraction, numbers), Fraction(0)) / count)
    return mean


def rotated_by_hand(x: torch.Tensor) -> torch.Tensor:
    width = 1
    while width < x.shape[-1]:
        width *= 2
    wide = torch.zeros(*x.shape[:-1], width)
    wide[..., : x.shape[-1]] = x
    return hadamard_rotate(wide)


def plainly(alone: Stream, begun: int, center: bool, hadamard: bool) -> Stream:
    """A stream without padding whose keys and queries are what the options make of them."""
    keys, queries = alone.keys, alone.queries
    if center:
        keys = keys - mean_by_hand(keys[:, :, :begun])
    if hadamard:
        keys, queries = rotated_by_hand(keys), rotated_by_hand(queries)
    return replace(alone, keys=keys, queries=queries)


def drawn(starts, length, dim, seed, far):
    one = RANDOM(sign(), length=length, start=starts, seed=seed)
    offset = torch.randn(dim, generator=torch.Generator().manual_seed(seed)) * far
    return replace(one, keys=one.keys[..., :dim] + offset, queries=one.queries[..., :dim])


def hold_to_the_hand(spec, center, hadamard, starts, cuts, dim, seed, far):
    one = drawn(starts, cuts[-1], dim, seed, far)
    recipe = parse(with_options(spec, center=center, hadamard=hadamard))
    plain = parse(spec)
    index = one.build(recipe, cuts)
    for k in (1, 4, 50):
        got = one.ask(recipe, index, k)
        for row, first in enumerate(starts):
            alone = plainly(one.alone(row), max(cuts[0] - first, 0), center, hadamard)
            own_cuts = [cut - first for cut in cuts if cut > first]
            if not own_cuts:
                assert (got.indices[row] == -1).all()
                continue
            if plain.requires and plain.traits().causal_codes and first >= cuts[0]:
                # What came behind the build is trained on by its first key alone.
                own_cuts = sorted({1, *own_cuts})
            elif plain.traits().drifts and not plain.requires and first >= cuts[0]:
                own_cuts = [0, *own_cuts]  # a scale that is fixed at build saw none of its keys
            own = alone.build(plain, own_cuts)
            slots = got.indices[row : row + 1]
            slots = slots.where(slots < 0, slots - first)
            want = alone.ask(plain, own, k)
            agree(plain, alone, own, Selection(slots), want, f"row {row}, k={k}")


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from((*CODES, "quantized:dtype=nvfp4")),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.sampled_from([1, 3, 8, 12, 16]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_codes_are_those_of_keys_moved_and_turned_by_hand(
    spec, center, hadamard, starts, more, dim, seed, far
):
    cuts = [sum(more[: n + 1]) for n in range(len(more))]
    cuts = [cut + min(starts) for cut in cuts]
    hold_to_the_hand(spec, center, hadamard, starts, cuts, dim, seed, far)


@pytest.mark.parametrize("spec", GRAPHS)
@pytest.mark.parametrize(
    ("center", "hadamard"), [(True, False), (False, True), (True, True)], ids=str
)
def test_graphs_are_those_of_keys_moved_and_turned_by_hand(spec, center, hadamard):
    pytest.importorskip("faiss")
    for dim in (12, 16):
        hold_to_the_hand(spec, center, hadamard, [0, 5, 28], [24, 26, 33], dim, 3, 4.0)


@pytest.mark.parametrize("spec", CODES)
def test_the_mean_is_that_of_the_build_for_good(spec):
    """Appends do not move it, nor do a cut below the build, beams, or a fork."""
    one = drawn([0, 7], 30, 16, 1, 5.0)
    recipe = parse(with_options(spec, center=True))
    index = one.build(recipe, [20])
    assert isinstance(index, MeanIndex) and index.mean is not None
    first = index.mean.clone()
    for row, start in enumerate((0, 7)):
        assert torch.equal(first[row], mean_by_hand(one.alone(row).keys[:, :, : 20 - start])[0])
    one.append(recipe, index, 30)
    one.truncate(recipe, index, 8)
    one.append(recipe, index, 25)
    twin = index.fork()
    assert torch.equal(index.mean, first)
    index.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(index.mean, first[[1, 1, 0]])
    assert isinstance(twin, MeanIndex) and twin.mean is not None
    assert torch.equal(twin.mean, first)


def test_what_stands_in_padding_moves_no_mean():
    one = drawn([4], 20, 16, 2, 1.0)
    spoilt = replace(one, keys=one.keys.clone())
    spoilt.keys[:, :, :4] = torch.nan
    recipe = sign(center=True)
    a, b = one.build(recipe), spoilt.build(recipe)
    assert isinstance(a, MeanIndex) and isinstance(b, MeanIndex)
    assert a.mean is not None and b.mean is not None
    assert torch.equal(a.mean, b.mean) and b.mean.isfinite().all()


@pytest.mark.parametrize("spec", [*CODES, *GRAPHS])
def test_nbytes_counts_the_mean(spec):
    pytest.importorskip("faiss")
    one = drawn([0, 3], 24, 16, 0, 1.0)
    plain, centred = (one.build(parse(s)) for s in (spec, with_options(spec, center=True)))
    assert centred.nbytes - plain.nbytes == 2 * 2 * 16 * 4


@pytest.mark.parametrize("spec", [*CODES, *GRAPHS])
def test_centring_drifts_and_rotating_does_not(spec):
    plain, centred, turned = (
        parse(with_options(spec, **options)).traits()
        for options in ({}, {"center": True}, {"hadamard": True})
    )
    assert centred == replace(plain, drifts=True) and turned == plain
    assert isinstance(plain, Traits)


@pytest.mark.parametrize(
    "spec",
    ["keep(sign(center=True), sink=2)", "shared(sign(center=True))", "top_p(sign(center=True))"],
)
def test_combinators_drift_with_their_base(spec):
    assert parse(spec).traits().drifts


@pytest.mark.parametrize(
    "spec", ["sign", "quantized:dtype=int2", "faiss_hnsw:M=8,ef_search=16,metric=ip"]
)
def test_an_offset_that_all_keys_share_hides_them_from_codes_and_graphs(spec):
    pytest.importorskip("faiss")
    one = RANDOM(sign(), length=600, rows=1)
    far = torch.randn(16, generator=torch.Generator().manual_seed(5)) * 6
    one = replace(one, keys=one.keys + far)
    want = set_of(one, "exact")
    plain, centred = (
        sum(len(a & b) for a, b in zip(want, set_of(one, s), strict=True))
        for s in (spec, with_options(spec, center=True))
    )
    assert centred > 1.3 * plain


def set_of(one: Stream, spec: str) -> list[set[int]]:
    recipe = parse(spec)
    chosen = one.ask(recipe, one.build(recipe), 30).indices
    return [set(head.tolist()) for head in chosen[0, :, 0]]


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (sign(), "sign()"),
        (sign(center=True), "sign(center=True)"),
        (sign(hadamard=True), "sign(hadamard=True)"),
        (quantized(), "quantized(dtype='int8', hadamard=False, scale='float')"),
        (
            quantized("int4", True, "pow2", center=True),
            "quantized(dtype='int4', hadamard=True, scale='pow2', center=True)",
        ),
        (faiss_hnsw(8, 30, 9), "faiss_hnsw(M=8, ef_construction=30, ef_search=9)"),
        (faiss_ivf(9, 3, center=True), "faiss_ivf(nlist=9, nprobe=3, center=True)"),
    ],
    ids=repr,
)
def test_names_of_old_rows_stay(recipe, text):
    assert repr(recipe) == text
    assert {parse(spec) for spec in (text, short(recipe), flat(recipe))} == {recipe}
    # A run that was begun before there were the options goes on.
    assert contents(recipe) == {}


def test_the_shortest_name_is_still_short():
    assert (short(sign()), flat(sign())) == ("sign()", "sign")
    assert short(quantized(center=True)) == "quantized(dtype=int8, center=True)"


@pytest.mark.parametrize("spec", [*CODES, *GRAPHS])
def test_options_are_yes_or_no(spec):
    name = spec.partition(":")[0]
    with pytest.raises(InputError, match=f"{name}: center must be true or false; got 3"):
        parse(f"{name}:center=3")
    with pytest.raises(InputError, match=f"{name}: hadamard must be true or false; got 'no'"):
        parse(f"{name}:hadamard=no")


def test_half_precision_keys_are_centred_in_float32():
    keys = (torch.randn(1, 2, 40, 16, generator=torch.Generator().manual_seed(0)) + 50).bfloat16()
    index = sign(center=True).build(keys, Step(kv_heads=2))
    moved = keys.float() - mean_by_hand(keys.float())
    plain = sign().build(moved, Step(kv_heads=2))
    assert isinstance(index, ScoredIndex) and isinstance(plain, ScoredIndex)
    assert torch.equal(index.codes["bits"], plain.codes["bits"])


@dataclass(frozen=True)
class mine(sign):
    """A recipe of one's own that was derived from one before it had the options."""

    width: int = 3


def test_parameters_of_derived_recipes_keep_their_places():
    made: Any = mine  # whose places a type checker cannot tell
    assert made(5) == parse("mine(5)", {"mine": mine}) == mine(width=5)
    assert made(5, center=True).traits().drifts
    assert short(made(5)).endswith("mine(width=5)")
    with pytest.raises(
        InputError, match=r"takes 1 parameters without a name \(width\); got 'True'"
    ):
        parse("mine(5, True)", {"mine": mine})

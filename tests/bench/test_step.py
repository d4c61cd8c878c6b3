"""A step that is timed is a step of `attach`: the same keys are read, and the same output comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from topkit.experiments.bench import data, step
from topkit.experiments.bench.session import Scale, Session
from topkit.experiments.decode.cache import Followed
from topkit.experiments.decode.reader import Call, Reader
from topkit.indexers.base import Index, Step
from topkit.indexers.budget import parse_budget
from topkit.indexers.spec import parse
from topkit.kernels.gather_attention import gather_attention

CPU = torch.device("cpu")
LENGTH = 300
# Triton's interpreter says so of every infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def session() -> Session:
    return Session(CPU, Scale.tiny())


@pytest.fixture(scope="module")
def of_model() -> data.Recorded:
    return data.recorded(session())


@pytest.fixture(scope="module")
def cache(of_model: data.Recorded) -> data.Cache:
    return data.stretched(session(), of_model, LENGTH)


# --- the tensors


def test_wider_heads_keep_every_dot_product(of_model: data.Recorded) -> None:
    cache = data.stretched(session(), of_model, 300)
    assert cache.keys.shape == (2, 2, 300, 128)
    for head in range(8):
        group, source = head // 4, head // 4 * 3 + head % 4 % 3
        want = of_model.queries[:, source, 0, None] @ of_model.keys[:, group, :300].mT
        ours = cache.queries[:, head].float() @ cache.keys[:, group].float().mT
        torch.testing.assert_close(ours, want, rtol=0.02, atol=0.02 * want.abs().max().item())


def test_what_repeats_does_not_tie(of_model: data.Recorded) -> None:
    length = of_model.keys.shape[2]
    keys = data.stretched(session(), of_model, length + 100).keys.float()
    first, again = keys[:, :, :100], keys[:, :, length:]
    assert (first != again).any(-1).all()
    assert (first - again).norm() < 0.1 * first.norm()


# --- the steps


def by_attach(cache: data.Cache, kind: step.Kind, backend: str, new: int) -> tuple[Tensor, Index]:
    """The output of `attach`'s ordinary step, kernel by kernel, that brings the newest token `new` times."""
    keys, values = (
        torch.cat([x, *[x[:, :, -1:]] * (new - 1)], 2) for x in (cache.keys, cache.values)
    )
    reader = Reader(parse(kind.spec), parse_budget(Scale.tiny().k), 0, None, backend)
    inputs = step._inputs(kind, cache, slice(None), slice(-1, None))
    before = step._inputs(kind, cache, slice(None), slice(0, -1))
    followed, output = Followed(None), None  # type: ignore[arg-type]
    first = LENGTH - 1
    build = Step(0, cache.scaling, kv_heads=keys.shape[1], backend=backend, inputs=before)
    followed.index = reader.indexer.build(keys[:, :, :first], build.given_to(reader.indexer))
    for length in range(LENGTH, LENGTH + new):
        there = (keys[:, :, :length], values[:, :, :length])
        call = Call(0, cache.queries, *there, cache.scaling, None, inputs)
        reader.take(followed, call, 0)
        output = reader.read(followed, call, 0)
    assert output is not None
    return output, followed.index


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", step.KINDS)
def test_a_timed_step_is_one_of_attach(name: str, batch: int, cache: data.Cache) -> None:
    kind = step.KINDS[name]
    decoding = step.decoding_of(session(), kind, cache, batch, turns=2)
    for steps in (1, 2, 3):
        output = decoding.step().flatten(0, 1)  # [rows, 1, Hq, D]
        theirs, index = by_attach(cache, kind, "torch", steps + 1)
        torch.testing.assert_close(output.transpose(1, 2), theirs, rtol=0, atol=0)
        own = [layer.followed.index for layer in decoding.layers]
        assert [one.length for one in own] == [index.length] * len(own)
        assert decoding.cache.get_seq_length() == LENGTH + steps


def test_a_timed_step_by_kernels_is_one_of_attach(cache: data.Cache) -> None:
    pytest.importorskip("triton")
    kind, at = step.KINDS["sign"], TritonSession(CPU, Scale.tiny())
    decoding = step.decoding_of(at, kind, cache, 2)
    theirs, _ = by_attach(cache, kind, "triton", 2)
    ours = decoding.step()[0].transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


class TritonSession(Session):
    @property
    def backend(self) -> str:
        return "triton"


@pytest.mark.parametrize("name", step.KINDS)
def test_what_is_judged_is_what_a_step_reads(name: str, cache: data.Cache) -> None:
    decoding = step.decoding_of(session(), step.KINDS[name], cache, 2)
    chosen = decoding.select(0).indices
    assert chosen.min() >= 0 and chosen.max() < LENGTH
    theirs, _ = by_attach(cache, step.KINDS[name], "torch", 1)
    whole = (cache.queries, cache.keys, cache.values)
    ours = gather_attention(*whole, chosen, scaling=cache.scaling)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_lightning_selects_as_its_own_heads_would(of_model: data.Recorded) -> None:
    at, length = session(), of_model.keys.shape[2]
    cache = data.stretched(at, of_model, length)
    hits = torch.relu(of_model.index_queries @ of_model.index_keys.mT)
    want = (hits * of_model.gates.mT[..., None]).sum(1).topk(32).indices
    slots = step.decoding_of(at, step.KINDS["lightning"], cache, 2).select(0).indices
    for theirs, ours in zip(want[:, 0].tolist(), slots[:, 0, 0].tolist(), strict=True):
        assert len({*theirs} & {*ours}) >= 28  # fp8 moves the last few

"""A step that is timed is a step of `attach`: the same keys are read, and the same output comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from topkit.experiments.bench import data, kinds
from topkit.experiments.bench.decoding import Decoding
from topkit.experiments.bench.scale import Scale
from topkit.experiments.bench.session import Session
from topkit.experiments.decode.layer_index import LayerIndex
from topkit.experiments.decode.reader import Call
from topkit.kernels.gather_attention import gather_attention

CPU = torch.device("cpu")
LENGTH = 300


def session() -> Session:
    return Session(CPU, Scale.tiny())


@pytest.fixture(scope="module")
def of_model() -> data.Recorded:
    return data.recorded(session())


@pytest.fixture(scope="module")
def cache(of_model: data.Recorded) -> data.Tensors:
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


def weights_of(kind: kinds.Kind, folder: Path, batch: int) -> Path | None:
    layers = Scale.tiny().batch // batch
    return data.random_weights(session(), folder, layers) if kind.projected else None


def by_attach(
    decoding: Decoding, kind: kinds.Kind, cache: data.Tensors, at: Session, new: int
) -> list[Tensor]:
    """What `attach`'s ordinary step, kernel by kernel, puts out a layer for the newest token, `new` times over."""
    outputs = []
    for number, (queries, _, _, inputs) in enumerate(decoding.tokens):
        rows = slice(number * len(queries), (number + 1) * len(queries))
        keys, values = (
            torch.cat([x[rows], *[x[rows, :, -1:]] * (new - 1)], 2)
            for x in (cache.keys, cache.values)
        )
        over, output = LayerIndex(decoding.owner), None
        over.index = kinds.index_of(at, kind, cache, rows)
        if kind.projected:
            over.index.recipe = decoding.reader.indexer  # type: ignore[attr-defined]
        for length in range(LENGTH, LENGTH + new):
            there = (keys[:, :, :length], values[:, :, :length])
            call = Call(number, queries, *there, cache.scaling, None, inputs)
            decoding.reader.take(over, call, 0)
            output = decoding.reader.read(over, call, 0)
        assert output is not None
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_timed_step_is_one_of_attach(
    name: str, batch: int, cache: data.Tensors, tmp_path: Path
) -> None:
    kind, at = kinds.KINDS[name], session()
    weights = weights_of(kind, tmp_path, batch)
    decoding = kinds.decoding_of(at, kind, cache, batch, 2, weights)
    for steps in (1, 2, 3):
        ours = decoding.step().transpose(2, 3)  # [layers, B, Hq, 1, D]
        theirs = torch.stack(by_attach(decoding, kind, cache, at, steps + 1))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        lengths = {layer.layer_index.index.length for layer in decoding.layers}
        assert lengths == {decoding.cache.get_seq_length()} == {LENGTH + steps}


class TritonSession(Session):
    @property
    def backend(self) -> str:
        return "triton"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign", "lightning"])
def test_a_timed_step_by_kernels_is_one_of_attach(name: str, cache: data.Tensors) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip(
            "Triton's interpreter runs where there is no GPU; the captured step is held below"
        )
    kind, at = kinds.KINDS[name], TritonSession(CPU, Scale.tiny())
    decoding = kinds.decoding_of(at, kind, cache, 2)
    ours = decoding.step().transpose(2, 3)
    theirs = torch.stack(by_attach(decoding, kind, cache, at, 2))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_captured_step_is_one_of_attach(name: str, batch: int, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    kind, at = kinds.KINDS[name], Session(torch.device("cuda"), Scale.tiny())
    cache = data.stretched(at, data.recorded(at), LENGTH)
    weights = weights_of(kind, tmp_path, batch)
    decoding = kinds.decoding_of(at, kind, cache, batch, 3, weights)
    for steps in (1, 2, 3):
        ours = decoding.step().transpose(2, 3)
        theirs = torch.stack(by_attach(decoding, kind, cache, at, steps + 1))
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    captured = decoding.captured._captured
    assert captured is not None and captured.graph is not None


@pytest.mark.parametrize("name", [name for name, kind in kinds.KINDS.items() if not kind.projected])
def test_what_is_judged_is_what_a_step_reads(name: str, cache: data.Tensors) -> None:
    kind, at = kinds.KINDS[name], session()
    decoding = kinds.decoding_of(at, kind, cache, 2)
    chosen = decoding.select(0).indices
    assert chosen.min() >= 0 and chosen.max() < LENGTH
    whole = (cache.queries, cache.keys, cache.values)
    ours = gather_attention(*whole, chosen, scaling=cache.scaling)
    (theirs,) = by_attach(decoding, kind, cache, at, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_step_without_room_is_an_error(cache: data.Tensors) -> None:
    decoding = kinds.decoding_of(session(), kinds.KINDS["sign"], cache, 2)
    room = decoding.layers[0].room()[0].shape[2] - LENGTH
    for _ in range(room):
        decoding.step()
    with pytest.raises(RuntimeError, match="no room"):
        decoding.step()


def test_lightning_selects_as_its_own_heads_would(of_model: data.Recorded) -> None:
    at, length = session(), of_model.keys.shape[2]
    cache = data.stretched(at, of_model, length)
    hits = torch.relu(of_model.index_queries @ of_model.index_keys.mT)
    want = (hits * of_model.gates.mT[..., None]).sum(1).topk(32).indices
    slots = kinds.decoding_of(at, kinds.KINDS["lightning"], cache, 2).select(0).indices
    for theirs, ours in zip(want[:, 0].tolist(), slots[:, 0, 0].tolist(), strict=True):
        assert len({*theirs} & {*ours}) >= 28  # fp8 moves the last few

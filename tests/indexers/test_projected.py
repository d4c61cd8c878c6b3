"""Learnt maps: their scores by hand, and files that are not theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from topkit.errors import InputError
from topkit.experiments.train.lightning import save_weights
from topkit.indexers import Step, keep
from topkit.indexers.projected import projected
from topkit.indexers.projected_file import load


def maps(folder: Path, layers: int = 2, **metadata: str) -> Path:
    """A file of drawn maps for 4 query and 2 KV heads of 16 dimensions, of rank 3."""
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        tensors[f"{layer}.queries"] = torch.randn(4, 3, 16, generator=g)
        tensors[f"{layer}.keys"] = torch.randn(2, 3, 16, generator=g)
    return save_weights(folder, "tiny", tensors, **({"kind": "projected"} | metadata))


def test_scores_are_products_of_what_each_head_maps(tmp_path):
    path, g = maps(tmp_path), torch.Generator().manual_seed(1)
    keys = torch.randn(2, 2, 20, 16, generator=g)
    queries = torch.randn(2, 4, 1, 16, generator=g)
    step = Step(1, kv_heads=2)
    index: Any = projected(str(path)).build(keys[:, :, :13], step)
    index.append(keys[:, :, 13:], step)
    assert index.nbytes >= 2 * 2 * 20 * 3 * 2 and index.codes["projected"].shape[3] == 3
    scores, told = index.score(queries, step), load(str(path)).tensors
    for row in range(2):
        for head in range(4):
            q = told["1.queries"][head] @ queries[row, head, 0].double()
            for slot in range(20):
                k = told["1.keys"][head // 2] @ keys[row, head // 2, slot].double()
                slow = float(q.float() @ k.bfloat16().float())
                assert scores[row, head, 0, slot].item() == pytest.approx(slow, rel=1e-4, abs=1e-4)


def test_a_file_says_whom_it_serves(tmp_path):
    recipe = projected(str(maps(tmp_path, model="a b")))
    assert recipe.widths() == {"heads": 4, "kv_heads": 2, "head_dim": 16}
    assert recipe.models() == keep(recipe, sink=1).models() == {"a", "b"}
    assert recipe.files()[0].is_file()
    assert projected(str(maps(tmp_path))).models() == frozenset()


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (5, (1, 2, 3, 16), r"has no maps of layer 5; it has \[0, 1\]"),
        (0, (1, 4, 3, 16), "is for keys of 2 heads of 16 dimensions; got 4 of 16; train one"),
        (0, (1, 2, 3, 64), "is for keys of 2 heads of 16 dimensions; got 2 of 64; train one"),
    ],
)
def test_other_layers_and_heads_are_refused(tmp_path, layer, shape, says):
    path = maps(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        projected(str(path)).build(torch.zeros(shape), Step(layer, kv_heads=shape[1]))
    assert path.name in str(caught.value)


def test_other_query_heads_are_refused(tmp_path):
    index = projected(str(maps(tmp_path))).build(torch.randn(1, 2, 5, 16), Step(kv_heads=2))
    with pytest.raises(InputError, match="is for queries of 4 heads of 16 dimensions; got 6 of 16"):
        index.select(torch.randn(1, 6, 1, 16), 2, Step(kv_heads=2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.pop("0.keys"), "layer 0 lacks keys"),
        (lambda x: x.clear(), "it has no tensor"),
        (lambda x: x.update({"0.wq": torch.ones(4, 3, 16)}), r"it has a tensor '0\.wq'"),
        (lambda x: x.update({"0.keys": torch.ones(2, 48)}), r"0\.keys is torch\.float32 \(2, 48\)"),
        (lambda x: x.update({"1.keys": torch.ones(2, 4, 16)}), r"another layer's is \(2, 3, 16\)"),
        (
            lambda x: x.update({f"{n}.keys": torch.ones(3, 3, 16) for n in (0, 1)}),
            r"its maps of queries are \(4, 3, 16\), of keys \(3, 3, 16\)",
        ),
        (lambda x: x["0.keys"].fill_(torch.nan), r"0\.keys holds NaN or infinity"),
        (lambda x: x.update({"0.keys": torch.ones(2, 3, 16).int()}), r"0\.keys is torch\.int32"),
    ],
)
def test_tensors_that_are_no_maps_are_refused(tmp_path, change, says):
    from safetensors.torch import load_file

    tensors = {name: x.clone() for name, x in load_file(maps(tmp_path)).items()}
    change(tensors)
    path = save_weights(tmp_path, "own", tensors, kind="projected")
    with pytest.raises(InputError, match=says) as caught:
        projected(str(path))
    assert str(path) in str(caught.value)


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="projected: no weights at 'nowhere'"):
        projected("nowhere")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="cannot read"):
        projected(str(other))
    with pytest.raises(InputError, match="holds no maps of projected: its metadata do not say so"):
        projected(str(maps(tmp_path, kind="lightning")))
    path = maps(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match="is altered"):
        projected(str(path))


def test_the_bundled_maps_are_those_of_the_bundled_model():
    from topkit.experiments.model.digests import weights_digest
    from topkit.experiments.model.load import load as load_model

    model, _ = load_model("reference")
    assert weights_digest(model) in projected().models()
    assert projected().widths() == {"heads": 6, "kv_heads": 2, "head_dim": 64}
    assert load("reference").layers == list(range(8)) and load("reference").rank == 16

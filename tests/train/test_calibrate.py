"""Files of calibration: what they hold, that recipes choose by them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import topkit
from topkit.contract import check_indexer
from topkit.errors import InputError
from topkit.experiments.capture.capture import Capture
from topkit.experiments.train.calibrate import calibrate
from topkit.indexers import Step
from topkit.indexers.spec import parse

METHODS = ("loki", "double_sparsity")


def capture(seed: int = 0, heads: tuple[int, int] = (4, 2), width: int = 16) -> Capture:
    rng = torch.Generator().manual_seed(seed)
    stretch = torch.rand(heads[1], 1, width, generator=rng) * 3
    keys = torch.randn(1, heads[1], 40, width, generator=rng) * stretch
    queries = torch.randn(1, heads[0], 10, width, generator=rng)
    return Capture.from_tensors(queries, keys, torch.randn(keys.shape, generator=rng))


@pytest.mark.parametrize(("method", "channels"), [("loki", 3), ("double_sparsity", 0.5)])
def test_recipes_keep_the_laws_by_a_file(tmp_path, method, channels):
    path = calibrate(capture(), method, tmp_path)
    recipe = parse(f"{method}(channels={channels}, calibration='{path}')")
    assert not recipe.traits().drifts
    check_indexer(recipe, heads=(4, 2))


def test_components_are_those_of_all_keys(tmp_path):
    one = capture()
    tensors = load_file(calibrate(one, "loki", tmp_path))
    assert set(tensors) == {"0.components"}
    for head, keys in enumerate(one.load(0, 0).keys[0].double().numpy()):
        found = tensors["0.components"][head].double().numpy()
        centred = keys - keys.mean(0)
        variances = ((centred @ found) ** 2).mean(0)
        _, singular, _ = np.linalg.svd(centred, full_matrices=False)
        assert np.allclose(found.T @ found, np.eye(16), atol=1e-5)
        assert np.allclose(variances, singular**2 / len(keys), rtol=1e-4)


def test_channels_are_those_of_tokens_with_themselves(tmp_path):
    one = capture()
    tensors = load_file(calibrate(one, "double_sparsity", tmp_path))
    layer = one.load(0, 0)
    for head in range(2):
        sums = np.zeros(16)
        for q in range(2):
            for i, slot in enumerate(layer.positions.tolist()):
                query, key = layer.queries[0, head * 2 + q, i], layer.keys[0, head, slot]
                sums += np.abs(query.double().numpy() * key.double().numpy())
        assert tensors["0.channels"][head].tolist() == np.argsort(-sums, kind="stable").tolist()


def test_a_file_of_the_keys_at_build_chooses_as_the_keys_do(tmp_path):
    one = capture()
    path = calibrate(one, "loki", tmp_path)
    layer = one.load(0, 0)
    plain, filed = parse("loki(channels=4)"), parse(f"loki(channels=4, calibration='{path}')")
    chosen = [
        recipe.build(layer.keys, Step(kv_heads=2)).select(
            layer.queries[:, :, -1:], 7, Step(kv_heads=2)
        )
        for recipe in (plain, filed)
    ]
    assert torch.equal(chosen[0].indices, chosen[1].indices)


def test_its_contents_are_part_of_what_a_run_depends_on(tmp_path):
    path, one = tmp_path / "mine.safetensors", capture()
    calibrate(one, "loki", tmp_path).rename(path)
    topkit.measure(one, f"loki:calibration={path}", k=4, out=tmp_path / "run")
    calibrate(capture(1), "loki", tmp_path).rename(path)
    with pytest.raises(InputError, match=r"mine\.safetensors"):
        topkit.measure(one, f"loki:calibration={path}", k=4, out=tmp_path / "run")


def test_a_file_that_is_not_what_its_name_promises_is_refused(tmp_path):
    path = calibrate(capture(), "loki", tmp_path)
    path.write_bytes(calibrate(capture(1), "loki", tmp_path / "other").read_bytes())
    with pytest.raises(InputError, match="is altered"):
        parse(f"loki:calibration={path}")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (capture(heads=(3, 3)), r"2 KV heads of 16 dimensions; keys of layer 0 have 3 of 16"),
        (capture(width=8), r"2 KV heads of 16 dimensions; keys of layer 0 have 2 of 8"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_keys_of_another_shape_are_refused(tmp_path, method, other, words):
    path = calibrate(capture(), method, tmp_path)
    with pytest.raises(InputError, match=f"{method}.*{words}"):
        topkit.measure(other, f"{method}:calibration={path}", k=4)


@pytest.mark.parametrize("wrapped", ["{}", "keep({}, sink=1)"])
def test_another_model_is_refused(tmp_path, wrapped):
    one = capture()
    one.manifest["origin"]["weights_sha256"] = "a" * 64
    path = calibrate(one, "loki", tmp_path)
    spec = wrapped.format(f"loki(calibration='{path}')")
    topkit.measure(one, spec, k=4)
    other = capture()
    other.manifest["origin"]["weights_sha256"] = "b" * 64
    with pytest.raises(InputError, match="made for another model than the capture's; calibrate"):
        topkit.measure(other, spec, k=4)


def test_a_layer_that_it_lacks_is_refused(tmp_path):
    path = calibrate(capture(), "loki", tmp_path)
    recipe = parse(f"loki:calibration={path}")
    with pytest.raises(InputError, match=r"no calibration of layer 3; it has \[0\]"):
        recipe.build(torch.randn(1, 2, 5, 16), Step(layer=3, kv_heads=2))


def test_what_is_no_calibration_is_refused(tmp_path):
    good = calibrate(capture(), "double_sparsity", tmp_path)
    with pytest.raises(InputError, match="it is of 'double_sparsity'"):
        parse(f"loki:calibration={good}")
    with pytest.raises(InputError, match="loki: no calibration at 'nowhere'"):
        parse("loki:calibration=nowhere")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no")
    with pytest.raises(InputError, match=r"cannot read .* as safetensors"):
        parse(f"loki:calibration={bad}")
    order = torch.arange(8).repeat(2, 1)
    wrong = {
        "names no method": ({"0.channels": order}, {}),
        "0.components": ({"0.components": torch.eye(4)[None]}, {"method": "double_sparsity"}),
        "each channel once": ({"0.channels": order * 0}, {"method": "double_sparsity"}),
        "several shapes": (
            {"0.channels": order, "1.channels": order[:1].clone()},
            {"method": "double_sparsity"},
        ),
    }
    for words, (tensors, metadata) in wrong.items():
        save_file({n: x.contiguous() for n, x in tensors.items()}, bad, metadata)
        with pytest.raises(InputError, match=words):
            parse(f"double_sparsity:calibration={bad}")


@pytest.mark.parametrize("spec", ["loki:channels=0", "sparq:channels=1.0", "sparq:channels=-1"])
def test_channels_that_there_cannot_be_are_refused(spec):
    with pytest.raises(InputError, match="whole number of at least 1, or a share"):
        parse(spec)


def test_more_channels_than_a_head_has_are_refused():
    for name in ("loki", "double_sparsity", "sparq"):
        recipe = parse(f"{name}:channels=17")
        with pytest.raises(InputError, match=rf"{name}.*17 channels, and keys have 16 dimensions"):
            recipe.build(torch.randn(1, 2, 5, 16), Step(kv_heads=2).given_to(recipe))


def test_only_its_own_methods_are_calibrated(tmp_path):
    with pytest.raises(InputError, match="loki, double_sparsity"):
        calibrate(capture(), "quest", tmp_path)

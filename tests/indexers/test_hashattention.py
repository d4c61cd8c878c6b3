"""HashAttention reads its maps from a file, keeps the contract on them, and refuses what is none by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from plainly import best
from topkit.contract import check_indexer
from topkit.errors import InputError
from topkit.experiments.runs.identity import contents
from topkit.indexers import Step
from topkit.indexers.spec import parse

LAYERS = (("query", 4), ("key", 4))


def weights(bits=20, width=16, heads=LAYERS, hidden=8):
    torch.manual_seed(0)
    made = {}
    for side, count in heads:
        sizes = (width, hidden, bits)
        for n in range(2):
            made[f"0.{side}.{n}.weight"] = torch.randn(count, sizes[n + 1], sizes[n])
            made[f"0.{side}.{n}.bias"] = torch.randn(count, sizes[n + 1])
    return made


def saved(folder, made, **metadata):
    path = folder / "hash.safetensors"
    save_file(made, path, metadata)
    return path


@pytest.mark.parametrize("heads", [4, 2])
def test_it_keeps_the_contract_on_the_heads_of_its_file(tmp_path, heads):
    path = saved(tmp_path, weights(heads=(("query", 4), ("key", heads))))
    check_indexer(f"hashattention(weights='{path}')", heads=(4, 2))


def test_lists_are_those_of_the_least_hamming_distance(tmp_path):
    made = weights()
    recipe = parse(f"hashattention({saved(tmp_path, made)})")
    queries, keys = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 50, 16)
    step = Step(kv_heads=2)
    found = recipe.build(keys, step).select(queries, 7, step).indices[0, :, 0].tolist()

    def bits(x, side, head):
        for n in range(2):
            x = torch.nn.functional.silu(x) if n else x
            x = made[f"0.{side}.{n}.weight"][head] @ x + made[f"0.{side}.{n}.bias"][head]
        return x >= 0

    for head in range(4):
        asked = bits(queries[0, head, 0], "query", head)
        agreeing = [int((bits(k, "key", head) == asked).sum()) for k in keys[0, head // 2]]
        assert found[head] == best(agreeing, 7)


def test_another_file_of_the_same_name_is_another_recipe_to_a_run(tmp_path):
    path = saved(tmp_path, weights())
    recipe = parse(f"hashattention({path})")
    before = contents(recipe)
    made = weights()
    made["0.key.0.bias"] += 1
    saved(tmp_path, made)
    assert recipe.files() == (path,) and contents(recipe) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("0.key.1.bias"), "0.key lacks a weight or a bias"),
        (
            lambda m: m.update({"0.key.1.bias": torch.zeros(4, 3)}),
            r"0.key.1.bias is \[4, 3\]; expected",
        ),
        (
            lambda m: m.update({"0.key.1.weight": torch.zeros(4, 20, 5)}),
            "0.key.1.weight takes 5; 8 come",
        ),
        (lambda m: m.update({"0.other": torch.zeros(1)}), "it has a tensor '0.other'"),
        (lambda m: m["0.key.0.weight"].fill_(torch.nan), "0.key.0.weight holds NaN"),
        (lambda m: m.update(weights(bits=19, heads=LAYERS[1:])), "20 bits of queries, 19 of keys"),
        (lambda m: m.update(weights(heads=(("key", 3),))), "3 heads, no divisor of queries' 4"),
    ],
)
def test_weights_of_a_wrong_shape_are_refused_by_name(tmp_path, change, message):
    made = weights()
    change(made)
    with pytest.raises(InputError, match=message) as error:
        parse(f"hashattention({saved(tmp_path, made)})")
    assert "hash.safetensors" in str(error.value)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    recipe = parse(f"hashattention({saved(tmp_path, weights())})")
    with pytest.raises(InputError, match=r"0.key.0.weight is \[4, 8, 16\]; .* 3 heads of 16"):
        recipe.build(torch.randn(1, 3, 9, 16), Step(kv_heads=3))
    with pytest.raises(InputError, match="2 heads of 32 dimensions; give weights of this model"):
        recipe.build(torch.randn(1, 2, 9, 32), Step(kv_heads=2))
    with pytest.raises(InputError, match="has no layer 5; it has \\[0\\]"):
        recipe.build(torch.randn(1, 2, 9, 16), Step(kv_heads=2, layer=5))
    with pytest.raises(InputError, match=r"no weights at 'nowhere\.safetensors'"):
        parse("hashattention(nowhere.safetensors)")
    with pytest.raises(InputError, match="activation is 'swish'"):
        parse(f"hashattention({saved(tmp_path, weights(), activation='swish')})")
    assert parse(f"hashattention({saved(tmp_path, weights(), model='a b')})").models() == {"a", "b"}

"""What an attachment would not serve rightly is refused, in a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import StaticCache

from generation import generated
from tiny import PAD, bert, lightning_for, prompt, t5, tiny
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach
from topkit.experiments.model.finite import require_finite


def attached_to(kind: str, **changes: Any) -> Callable[[], Any]:
    return lambda: attach(tiny(kind, **changes), "sign()", k=4)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "windows alone": (attached_to("mistral", sliding_window=8), "no layer to attach to"),
    "no interface": (attached_to("mamba"), "does not attend through .*AttentionInterface"),
    "encoder": (lambda: attach(bert(), "sign()", k=4), "not a decoder's causal self-attention"),
    "encoder-decoder": (lambda: attach(t5(), "sign()", k=4), "has an encoder"),
    "no model": (lambda: attach("reference", "sign()", k=4), "loaded transformers model; got str"),  # type: ignore[arg-type]
    "no k": (lambda: attach(tiny(), "sign()", k=0), "k must be"),
    "odd k": (lambda: attach(tiny(), "sign()", k="a few"), "k must be a number of keys"),
    "k of dense": (lambda: attach(tiny(), "dense", k=4), "takes no k; give k=None; got 4"),
    "what dense chose": (
        lambda: attach(tiny(), "dense", None, observe=True),
        "dense chooses nothing",
    ),
    "misspelt": (lambda: attach(tiny(), "sing()", k=4), "did you mean 'sign'"),
    "layer": (
        lambda: attach(tiny(), "sign()", k=4, layers=[5]),
        r"no attention in layer 5; .*0, 1",
    ),
    "a layer of windows": (
        lambda: attach(tiny("mistral", sliding_window=8), "sign()", k=4, layers=[0]),
        "layer 0 .* sees a window",
    ),
    "layers that are none": (lambda: attach(tiny(), "sign()", k=4, layers=0), "layers must be"),  # type: ignore[arg-type]
    "a layer that is true": (
        lambda: attach(tiny(), "sign()", k=4, layers=[True]),
        "layers must be a whole number; got True",
    ),
    "half a seed": (lambda: attach(tiny(), "random", k=4, seed=1.5), "seed must be a whole number"),  # type: ignore[arg-type]
    "a word for a switch": (
        lambda: attach(tiny(), "sign()", k=4, sparse_prefill="no"),  # type: ignore[arg-type]
        "sparse_prefill must be True or False",
    ),
    "no layers": (lambda: attach(tiny(), "sign()", k=4, layers=[]), "no layer"),
    "observe": (lambda: attach(tiny(), "sign()", k=4, observe="yes"), "observe must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_to_attach(case: str) -> None:
    made, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as refusal:
        made()
    assert "\n" not in str(refusal.value)


def test_refuses_what_was_made_for_another_model(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="hidden of width 32; Qwen3ForCausalLM has 64"):
        attach(tiny(hidden_size=64), lightning_for(tmp_path), k=4)
    with pytest.raises(InputError, match="needs latent, which Qwen3ForCausalLM does not hand out"):
        attach(tiny(), lightning_for(tmp_path, reads="latent"), k=4)


@pytest.mark.parametrize("spec", ["random", "streaming_llm", "sign"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_a_weight_is_named_by_layer_and_head(spec: str, bad: float) -> None:
    broken = tiny()
    with torch.no_grad():
        broken.model.layers[1].self_attn.v_proj.weight[40, 3] = bad
    with attach(broken, spec, k=4), pytest.raises(InputError, match="layer 1, head 1: values"):
        broken.generate(**prompt(), max_new_tokens=4)


def test_what_padding_holds_is_nobodys() -> None:
    values = torch.ones(2, 2, 8, 4)
    values[0, 1, :PAD] = math.nan
    start = torch.tensor([PAD, 0])
    require_finite("layer 0", {"values": values}, start)
    with pytest.raises(InputError, match="layer 0, head 1: values"):
        require_finite("layer 0", {"values": values[:, :, 2:]}, start - 3, first=2)


def test_refuses_a_second_attachment(model: Any) -> None:
    with attach(model, "sign()", k=4):
        with pytest.raises(InputError, match="attached already"):
            attach(model, "sign()", k=4)
        generated(model, prompt())
    assert model.config._attn_implementation == "sdpa"
    # Of other layers neither: the first to leave would take the other's wrappers with it.
    with (
        attach(model, "sign()", k=4, layers=[0]),
        pytest.raises(InputError, match="attached already"),
    ):
        attach(model, "sign()", k=4, layers=[1])
    attach(model, "sign()", k=4, layers=[1]).detach()


def test_a_layer_may_be_a_number_of_numpy_or_torch(model: Any) -> None:
    several: list[Any] = [np.array([1]), torch.tensor([1]), [np.int64(1)], range(1, 2), [1, 1]]
    for layers in several:
        with (
            pytest.warns(UserWarning, match="selected nothing"),
            attach(model, "sign", 4, layers=layers) as ours,
        ):  # type: ignore[arg-type]
            assert ours.layers == [1] and type(ours.layers[0]) is int


def test_what_is_detached_is_not_gone_on_with(model: Any) -> None:
    """The model would be dense, and nothing would say so."""
    with attach(model, "random", k=4) as ours:
        generated(model, prompt())
        with pytest.raises(InputError, match="in a `with` already"), ours:
            pass
    with pytest.raises(InputError, match="this attachment to Qwen3ForCausalLM was detached"), ours:
        pass
    with pytest.raises(InputError, match="was detached; attach again"), ours.sparse_from(3):
        pass


def test_refuses_caches_that_it_cannot_follow(model: Any) -> None:
    given = prompt()
    with attach(model, "sign()", k=4):
        with pytest.raises(InputError, match=r"DynamicCache.*got a StaticLayer"):
            generated(model, given, cache_implementation="static")
        cache = StaticCache(config=model.config, max_cache_len=64)
        with pytest.raises(InputError, match=r"DynamicCache.*got a StaticLayer"):
            model(given["input_ids"], past_key_values=cache)


def test_refuses_masks_that_are_not_causal_with_left_padding(model: Any) -> None:
    ids = prompt()["input_ids"]
    right = torch.ones_like(ids)
    right[0, -3:] = 0
    hole = torch.ones_like(ids)
    hole[0, 10] = 0
    blocks = torch.ones(24, 24, dtype=torch.bool).tril()
    blocks[12:, :12] = False
    resets = torch.cat([torch.arange(12), torch.arange(12)])[None]
    bias = torch.zeros(1, 1, 24, 24).masked_fill(~torch.ones(24, 24).tril().bool(), -1e9)
    with attach(model, "sign()", k=4), torch.no_grad():
        for mask in (right, hole, blocks[None, None]):
            with pytest.raises(InputError, match="causal masks with padding on the left"):
                model(ids, attention_mask=mask)
        for cached in (True, False):
            with pytest.raises(InputError, match=r"packed|position_ids"):
                model(ids, position_ids=resets, use_cache=cached)
        plain = model(ids).logits
        torch.testing.assert_close(model(ids, attention_mask=bias).logits, plain)

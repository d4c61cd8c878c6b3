"""Steps that no graph can hold are left to the model's own forward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from device import CUDA, gpu
from steps import (
    attached,
    both,
    chosen,
    close,
    forced,
    half,
    prompt,
    to_the_bit,
    tokens,
)
from topkit.errors import InputError
from topkit.experiments.decode.attach import attach

pytest.importorskip("triton")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Any:
    return half()


# How, and how many of the 7 steps after the prompt are captured.
WAYS: dict[str, tuple[dict[str, Any], set[int]]] = {
    "beams": ({"num_beams": 2}, {0}),  # rows that are reordered move the cache
    "lookup": ({"prompt_lookup_num_tokens": 3}, set(range(7))),
    "guidance": ({"guidance_scale": 1.5}, {6}),  # goes on beside them, with a cache of its own
}


@to_the_bit
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_generate(model: Any, way: str) -> None:
    given, (how, expected) = prompt(), WAYS[way]
    given["input_ids"][0, 12:] = given["input_ids"][0, :12].clone()
    ours, theirs, captured = both(model, lambda _: chosen(model, given, 8, **how))
    assert torch.equal(ours, theirs)
    assert captured in expected


EAGER: dict[str, dict[str, Any]] = {
    "per cent": {"k": "20%"},
    "observed": {"observe": True},
    "shadow": {"observe": "shadow"},
    "sparse prefill": {"sparse_prefill": True},
    "one layer of two": {"layers": [1]},
    "what hosts choose": {"spec": "reuse(sign(), every=2)"},
}


@to_the_bit
@pytest.mark.parametrize("case", EAGER)
def test_what_no_graph_can_hold(case: str) -> None:
    deep = half(2 if "layers" in EAGER[case] else 1)
    given = {"input_ids": tokens(1, 6)}
    ours, theirs, captured = both(deep, lambda _: chosen(deep, given, 4), **EAGER[case])
    assert torch.equal(ours, theirs)
    assert captured == 0


@to_the_bit
def test_what_is_asked_for_beside_logits(model: Any) -> None:
    def run(_: Any) -> Any:
        how = {"output_hidden_states": True, "return_dict_in_generate": True}
        return model.generate(**prompt(), max_new_tokens=4, do_sample=False, **how)

    ours, theirs, captured = both(model, run)
    assert captured == 0
    for a, b in zip(ours.hidden_states[-1], theirs.hidden_states[-1], strict=True):
        assert torch.equal(a, b)


ON_A_GPU = [gpu, pytest.mark.gpu]
WHERE = ["anywhere", pytest.param("item", marks=ON_A_GPU), pytest.param("capture", marks=ON_A_GPU)]


@pytest.mark.parametrize("where", WHERE)
def test_a_model_that_cannot_be_captured_says_so_once(where: str) -> None:
    """Its host looks at what the GPU made: the step is given all the same, kernel by kernel."""
    model = half(2)

    def look(_: Any, args: Any, kwargs: Any) -> None:
        cache = kwargs["past_key_values"]
        if where == "item":
            args[0].sum().item()
        elif where == "capture" and torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        elif where == "anywhere" and cache and isinstance(cache.get_seq_length(), Tensor):
            raise RuntimeError("who can tell")

    def run(_: Any) -> Tensor:
        return torch.cat([forced(model, prompt(), 4) for _ in range(2)])

    model.model.layers[1].register_forward_pre_hook(look, with_kwargs=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours, theirs, captured = both(model, run, k=200)
    close(ours, theirs)
    assert captured == 0
    told = [str(one.message) for one in said if "captured in a CUDA graph" in str(one.message)]
    assert len(told) == 1 and told[0].startswith(
        "steps of Qwen3ForCausalLM run one kernel at a time"
    )
    assert where != "anywhere" or told[0].endswith(": who can tell")
    if CUDA:  # nothing of the attempt is left
        assert torch.cuda.get_sync_debug_mode() == 0
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        torch.cuda.empty_cache()
        other = half()
        with attached(other) as mine:
            chosen(other, prompt(2), 6, do_sample=True)
        assert mine.captured == 5 - 1


@pytest.mark.parametrize("name", ["cuda_graph", "capture"])
def test_the_graph_is_a_switch(model: Any, name: str) -> None:
    wrong: dict[str, Any] = {name: "yes"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with pytest.raises(InputError, match="cuda_graph must be True or False; got 'yes'"):
            attach(model, "sign()", 5, **wrong)


def test_its_old_name_warns_and_works(model: Any) -> None:
    with pytest.warns(FutureWarning, match="cuda_graph=") as said:
        eager = attach(model, "shared(sign())", 5, backend="triton", capture=False)
    assert len(said) == 1 and said[0].filename == __file__
    with eager:
        chosen(model, prompt(length=6), 4)
    assert eager.captured == 0
    with pytest.warns(FutureWarning, match="cuda_graph="):
        ours = attached(model, capture=True)
    with ours:
        chosen(model, prompt(length=6), 4)
    assert ours.captured == 3 - 1
    with pytest.raises(InputError, match="old name"):
        attached(model, capture=True, cuda_graph=True)

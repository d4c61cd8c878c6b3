"""Steps of generate at fixed shapes give what the same steps give kernel by kernel.

In Triton's interpreter there is no graph: each such step runs the model's own forward at fixed shapes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from topkit.errors import InputError
from topkit.indexers import growing

transformers = pytest.importorskip("transformers")
pytest.importorskip("triton")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from topkit.experiments.decode.attach import attach  # noqa: E402
from topkit.experiments.train.lightning import save_weights  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# Triton's interpreter says so of every infinity and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
to_the_bit = pytest.mark.skipif(CUDA, reason="a GPU adds in another order each time")

SMALL = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
PAD = 7
LENGTH = 24
# The step after a prompt of 24 gives the cache room for 32 slots, which 7 more fill; the next moves it.


def tiny(layers: int = 1, kind: str = "qwen3", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, num_hidden_layers=layers, **{**SMALL, **changes}
    )
    config.initializer_range = 0.2  # attention is far from uniform
    model = AutoModelForCausalLM.from_config(config).eval().to(DEVICE, torch.float16)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def tokens(rows: int = 1, length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 61, (rows, length), generator=generator).to(DEVICE)


def prompt(rows: int = 1, padded: bool = False) -> dict[str, Any]:
    ids = tokens(rows)
    mask = torch.ones_like(ids)
    if padded:
        ids[0, :PAD], mask[0, :PAD] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


class Forced(LogitsProcessor):
    """Each next token is drawn beforehand, so that no rounding leads two runs apart."""

    said = tokens(8, 200, seed=9)

    def __call__(self, ids: Any, scores: Any) -> Any:
        rows, place = ids.shape
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, self.said[:rows, place, None], 0.0)


class Between(StoppingCriteria):
    """Does something once when so many tokens are there, between two steps; stops nothing."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        self.at, self.act = at, act

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        if ids.shape[1] == self.at:
            self.act()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def between(at: int, act: Callable[[], Any]) -> StoppingCriteriaList:
    return StoppingCriteriaList([Between(at, act)])


def forced(model: Any, given: dict[str, Any], new: int, **how: Any) -> Tensor:
    """Logits [new, B, V] of tokens that are forced."""
    out = model.generate(
        **given,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=LogitsProcessorList([Forced()]),
        **{"do_sample": False, **how},
    )
    return torch.stack(out.logits)


def chosen(model: Any, given: dict[str, Any], new: int, **how: Any) -> Tensor:
    """The sequences that the model prefers, or draws."""
    torch.manual_seed(5)
    return model.generate(**given, max_new_tokens=new, **{"do_sample": False, **how})


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def attached(model: Any, spec: str = "shared(sign())", k: Any = 5, **how: Any) -> Any:
    return attach(model, spec, k, backend="triton", **how)


def both(model: Any, run: Callable[[Any], Any], **how: Any) -> tuple[Any, Any, int]:
    """What `run` gives with and without capture, and how many steps were captured."""
    with attached(model, capture=False, **how) as eager:
        theirs = run(eager)
    assert eager.captured == 0
    with attached(model, **how) as ours:
        found = run(ours)
    return found, theirs, ours.captured


# --- the same, step by step


@pytest.mark.parametrize(
    "spec",
    [
        "shared(sign())",
        "shared(quantized(dtype='int4', scale='pow2'), how='max')",
        "sign()",
        "quantized(hadamard=True)",
    ],
)
def test_steps_are_those_of_the_kernels(model: Any, spec: str) -> None:
    given = prompt(2, padded=True) if spec.startswith("shared") else prompt()
    ours, theirs, captured = both(model, lambda _: forced(model, given, 11), spec=spec)
    close(ours, theirs)
    # All but the first after the prompt, and the one that moves the cache.
    assert captured == 10 - 2
    other = forced(model, given, 11)
    assert (other - ours).abs().max() > 0.1, "dense attention gives the same"


def lightning_for(folder: Any) -> str:
    torch.manual_seed(3)
    shapes = {"wq": (3 * 64, 32), "wk": (64, 32), "norm": 64, "norm_bias": 64, "gates": (3, 32)}
    tensors = {f"{n}.{w}": torch.randn(shape) for n in range(2) for w, shape in shapes.items()}
    how = {"heads": 3, "rope": "half", "rope_at": "first", "reads": "hidden"}
    file = save_weights(folder, "tiny", tensors, **how)
    return f"lightning(weights={str(file)!r}, dtype='fp8')"


@pytest.mark.parametrize("wrapped", ["{}", "shared({})"])
def test_an_indexer_that_reads_what_the_layer_was_given(wrapped: str, tmp_path: Any) -> None:
    deep, spec = tiny(2), wrapped.format(lightning_for(tmp_path))
    given = prompt(2, padded=True)
    ours, theirs, captured = both(deep, lambda _: forced(deep, given, 11), spec=spec)
    close(ours, theirs)
    assert captured == 10 - 2
    assert (forced(deep, given, 11) - ours).abs().max() > 0.1, "dense attention gives the same"


def test_several_layers() -> None:
    deep = tiny(2, "llama")
    ours, theirs, captured = both(deep, lambda _: forced(deep, prompt(), 12), k=200)
    close(ours, theirs)
    assert captured == 11 - 2
    # Where all keys are read, it is dense attention.
    close(ours, forced(deep, prompt(), 12))


@to_the_bit
@pytest.mark.parametrize("way", [{}, {"do_sample": True, "temperature": 1.5}], ids=str)
def test_the_same_tokens_are_preferred_and_drawn(model: Any, way: dict[str, Any]) -> None:
    ours, theirs, captured = both(model, lambda _: chosen(model, prompt(), 10, **way))
    assert torch.equal(ours, theirs)
    assert captured == 9 - 2


def test_room_that_runs_out_is_made_again_and_again(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(growing, "ROUND", 2)
    ours, theirs, captured = both(model, lambda _: forced(model, prompt(), 20))
    close(ours, theirs)
    # It is full at 24, 28, 32 and 38 slots.
    assert captured == 19 - 4


def test_a_prompt_of_one_token(model: Any) -> None:
    given = {"input_ids": tokens(2, 1)}
    ours, theirs, captured = both(model, lambda _: forced(model, given, 8), k=3)
    close(ours, theirs)
    assert captured == 7 - 1


# --- what comes before, between and after


def test_a_cache_goes_on_in_every_way(model: Any) -> None:
    """Turns, direct calls, a crop and dense attention at the end find the state that they expect."""

    def run(running: Any) -> Tensor:
        cache: Any = DynamicCache(config=model.config)
        said = []
        ids = tokens()
        for new in (5, 4):
            said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, new))
            ids = torch.cat([ids, Forced.said[:1, ids.shape[1] : ids.shape[1] + new + 3]], 1)
        with torch.no_grad():
            for token in tokens(1, 3, seed=4).split(1, 1):
                said.append(model(token, past_key_values=cache).logits.float().mT[None, :, :, 0])
            cache.crop(-6)
            assert {layer.keys.shape[2] for layer in cache.layers} == {cache.get_seq_length()}
            for token in tokens(1, 2, seed=5).split(1, 1):
                said.append(model(token, past_key_values=cache).logits.float().mT[None, :, :, 0])
        ids = tokens(1, cache.get_seq_length() + 1, seed=6)
        said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, 4))
        running.detach()
        assert type(cache.layers[0]) is transformers.cache_utils.DynamicLayer
        ids = tokens(1, cache.get_seq_length() + 1, seed=7)
        said.append(forced(model, {"input_ids": ids, "past_key_values": cache}, 3))
        return torch.cat(said)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    assert captured >= 6


def test_a_crop_between_two_steps(model: Any) -> None:
    def run(_: Any) -> Tensor:
        cache = DynamicCache(config=model.config)
        given = {"input_ids": tokens(), "past_key_values": cache}
        crop = between(LENGTH + 5, lambda: cache.crop(-2))
        return forced(model, given, 9, stopping_criteria=crop, use_cache=True)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    # The one after the crop is not captured either: the index is still to be cut. Nor are any after it
    # where transformers still gives a mask, as 5.17 does, which is then longer than the cache.
    assert captured in (8 - 2, 3)


def test_a_copy_between_two_steps_is_a_cache_of_its_own(model: Any) -> None:
    def run(_: Any) -> Tensor:
        cache, copies = DynamicCache(config=model.config), []
        given = {"input_ids": tokens(), "past_key_values": cache}
        taken = between(LENGTH + 4, lambda: copies.append(copy.deepcopy(cache)))
        said = [forced(model, given, 8, stopping_criteria=taken)[:, :, None]]
        assert copies[0].get_seq_length() == LENGTH + 3
        with torch.no_grad():
            for token in tokens(1, 3, seed=4).split(1, 1):
                for one in (copies[0], cache):
                    said.append(model(token, past_key_values=one).logits.float()[None])
        return torch.cat(said)

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    # The one after the copy is not captured either: the index and its copy had their codes in common.
    assert captured == 7 - 2


def test_detached_between_two_steps(model: Any) -> None:
    before = forced(model, prompt(), 8)

    def run(running: Any) -> Tensor:
        return forced(model, prompt(), 8, stopping_criteria=between(LENGTH + 4, running.detach))

    ours, theirs, captured = both(model, run)
    close(ours, theirs)
    assert captured == 3 - 1
    assert "forward" not in vars(model)
    close(forced(model, prompt(), 8), before)


# --- what is left to the model's own forward


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
    "a recipe of fixed slots": {"spec": "keep(shared(sign()), sink=1)"},
    "a list shared twice": {"spec": "shared(shared(sign()))", "k": 200},
    "a selection for a layer": {"spec": "shared(sign(), per='layer')"},
}


@to_the_bit
@pytest.mark.parametrize("case", EAGER)
def test_what_no_graph_can_hold(case: str) -> None:
    deep = tiny(2 if "layers" in EAGER[case] else 1)
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
    model, running = tiny(2), []

    def look(_: Any, args: Any) -> None:
        if where == "item":
            args[0].sum().item()
        elif where == "capture" and torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        elif where == "anywhere" and running and running[-1].at is not None:
            raise RuntimeError("who can tell")

    def run(mine: Any) -> Tensor:
        running.append(mine)
        return torch.cat([forced(model, prompt(), 4) for _ in range(2)])

    model.model.layers[1].register_forward_pre_hook(look)
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
        other = tiny()
        with attached(other) as mine:
            chosen(other, prompt(2), 6, do_sample=True)
        assert mine.captured == 5 - 1


def test_capture_is_a_switch(model: Any) -> None:
    with pytest.raises(InputError, match="capture must be True or False; got 'yes'"):
        attach(model, "sign()", 5, capture="yes")  # type: ignore[arg-type]


# --- graphs


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("spec", "layers", "k"),
    [
        ("shared(sign())", 1, 5),
        ("shared(sign())", 2, 200),
        ("sign()", 1, 5),
        ("shared(quantized(dtype='int4', hadamard=True))", 1, 5),
        ("lightning", 1, 5),
        ("lightning", 2, 200),
    ],
)
def test_replays_give_what_kernels_give_and_call_no_module(
    spec: str, layers: int, k: int, tmp_path: Any
) -> None:
    model, calls, given = tiny(layers), [], prompt(3, padded=True)
    spec = lightning_for(tmp_path) if spec == "lightning" else spec
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with attached(model, spec, k, capture=False):
        calls.clear()
        theirs = forced(model, given, 40)
    assert len(calls) == 40
    with attached(model, spec, k) as mine:
        calls.clear()
        ours = forced(model, given, 40)
    close(ours, theirs)
    assert mine.captured == 39 - 2
    # The prompt, the first step, the one that moved the cache; and two calls for each of two graphs.
    assert len(calls) == 3 + 2 * 2


@gpu
@pytest.mark.gpu
def test_a_long_context_is_captured_too() -> None:
    """Long enough that codes are sampled and filtered, not searched at once."""
    model = tiny(1, max_position_embeddings=1 << 15)
    ids = tokens(2, 20_000)
    Forced.said, short = tokens(8, 20_100, seed=9), Forced.said
    try:
        ours, theirs, captured = both(model, lambda _: forced(model, {"input_ids": ids}, 12), k=64)
    finally:
        Forced.said = short
    close(ours, theirs)
    assert captured == 11 - 1


@gpu
@pytest.mark.gpu
def test_the_memory_of_a_graph_is_let_go() -> None:
    model, given = tiny(2), prompt(2)
    with attached(model):
        forced(model, given, 8)  # workspaces of the libraries stay
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            forced(model, given, 8)
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)

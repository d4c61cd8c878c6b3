"""An attached model generates what a slow rendering of the same attention generates."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import topkit
from topkit.errors import InputError
from topkit.fidelity import METRICS, judge, truth
from topkit.indexers import INDEXERS, Step
from topkit.indexers.budget import parse_budget

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    StaticCache,
)
from transformers.masking_utils import sdpa_mask  # noqa: E402

from topkit.experiments.decode.attach import attach  # noqa: E402
from topkit.experiments.evaluate.shared_prefix import forward, prefill  # noqa: E402
from topkit.experiments.evaluate.streams import Stream  # noqa: E402
from topkit.experiments.model.finite import require_finite  # noqa: E402
from topkit.experiments.runs.cells import Cell  # noqa: E402
from topkit.experiments.train.lightning import export_weights, save_weights  # noqa: E402

SMALL = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
PAD = 7


def tiny(kind: str = "qwen3", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **changes})
    config.initializer_range = 0.2  # attention is far from uniform
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def need(spec: str) -> None:
    """Skip where the package that an indexer wants is not installed."""
    if spec.startswith("faiss"):
        pytest.importorskip("faiss")


def prompt(rows: int = 1, length: int = 24, padded: bool = False, seed: int = 1) -> dict[str, Any]:
    ids = torch.randint(2, 61, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if padded:
        ids[0, :PAD], mask[0, :PAD] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, given: dict[str, Any], new: int = 12, **how: Any) -> tuple[Tensor, Any]:
    """Sequences, and logits where every step gives some."""
    torch.manual_seed(5)
    out = model.generate(
        **given,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **how},
    )
    return out.sequences, out.logits


def assert_same(ours: tuple[Tensor, Any], theirs: tuple[Tensor, Any]) -> None:
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- the slow rendering: every call, row, head and query anew, with no index and no memory.


def by_score(query: Tensor, keys: Tensor, k: int, key_of: Callable[[Tensor], Tensor]) -> list[int]:
    scores = [float(query.double() @ key_of(key).double()) for key in keys]
    return sorted(range(len(scores)), key=lambda slot: (-scores[slot], slot))[:k]


def choose_sign(query: Tensor, keys: Tensor, k: int) -> list[int]:
    return by_score(query, keys, k, lambda key: torch.where(key >= 0, 1.0, -1.0))


def choose_exact(query: Tensor, keys: Tensor, k: int) -> list[int]:
    return by_score(query, keys, k, lambda key: key)


def choose_quest(query: Tensor, keys: Tensor, k: int) -> list[int]:
    """Pages of 4 from the row's first key, by their bound; the last that k reaches, newest first."""
    bounds = []
    for at in range(0, len(keys), 4):
        page = keys[at : at + 4].double()
        bounds.append(
            sum(
                max(float(q * low), float(q * high))
                for q, low, high in zip(query.double(), page.amin(0), page.amax(0), strict=True)
            )
        )
    chosen: list[int] = []
    for page in sorted(range(len(bounds)), key=lambda page: (-bounds[page], page)):
        last = min(4 * page + 4, len(keys))
        chosen += range(last - 1, 4 * page - 1, -1)
    return chosen[:k]


CHOICES = {"sign()": choose_sign, "exact()": choose_exact, "quest(page_size=4)": choose_quest}


class Slowly:
    """A model that attends as an attached one should, by the definition, query by query."""

    def __init__(self, model: Any, spec: str, k: int, until: int) -> None:
        self.model, self.choose, self.k, self.until = model, CHOICES[spec], k, until

    def __enter__(self) -> Slowly:
        AttentionInterface.register("slowly", self.attend)
        AttentionMaskInterface.register("slowly", sdpa_mask)
        self.model.set_attn_implementation("slowly")
        return self

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation("sdpa")

    def attend(self, module, query, key, value, mask, scaling=None, **_: Any):
        rows, heads, count, _width = query.shape
        length, group = key.shape[2], heads // key.shape[1]
        out = torch.zeros(rows, count, heads, value.shape[3])
        for row in range(rows):
            for i in range(count):
                stop = length - count + i + 1
                slots = torch.arange(stop)
                if mask is not None:
                    slots = mask[row, 0, i].nonzero()[:, 0]
                if len(slots) == 0:
                    continue
                for head in range(heads):
                    keys = key[row, head // group, slots]
                    values = value[row, head // group, slots]
                    kept = list(range(len(slots)))
                    if stop > self.until:
                        kept = self.choose(query[row, head, i], keys, self.k)
                    logits = scaling * keys[kept].double() @ query[row, head, i].double()
                    out[row, i, head] = (logits.softmax(-1) @ values[kept].double()).float()
        return out, None


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("spec", CHOICES)
@pytest.mark.parametrize("way", WAYS)
def test_generates_by_the_definition(model: Any, spec: str, way: str) -> None:
    given = prompt(2, padded=True)
    with Slowly(model, spec, 6, until=24):
        slow = generated(model, given, 8, **WAYS[way])
    with attach(model, spec, k=6):
        fast = generated(model, given, 8, **WAYS[way])
    assert_same(fast, slow)
    if way == "greedy":
        dense = generated(model, given, 8)
        assert max((a - b).abs().max() for a, b in zip(dense[1], fast[1], strict=True)) > 1e-2


def speculating(model: Any) -> dict[str, dict[str, Any]]:
    return {
        "prompt lookup": {"prompt_lookup_num_tokens": 4},
        "assisted": {"assistant_model": tiny(num_hidden_layers=1)},
        "assisted by itself": {"assistant_model": copy.deepcopy(model)},
    }


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)", "faiss_ivf()", "exact()"])
def test_drafts_change_nothing(model: Any, spec: str) -> None:
    """Prompt lookup and assistants crop the cache; their first call brings the prompt and drafts."""
    need(spec)
    given = prompt()
    given["input_ids"][0, 12:] = given["input_ids"][0, :12]
    ways = speculating(model)
    with attach(model, spec, k=6):
        plain = generated(model, given, 20)[0]
        for name, way in ways.items():
            assert torch.equal(generated(model, given, 20, **way)[0], plain), name
        chunked = generated(model, given, 20, prefill_chunk_size=5)[0]
        assert torch.equal(chunked, plain)


def test_without_a_cache_the_same(model: Any) -> None:
    given = prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        assert_same(generated(model, given, use_cache=False), generated(model, given))


DENSE_WAYS = {**WAYS, "lookup": {"prompt_lookup_num_tokens": 3}}


@pytest.mark.parametrize("way", DENSE_WAYS)
def test_exact_with_all_keys_is_dense(model: Any, way: str) -> None:
    given = prompt() if way == "lookup" else prompt(2, padded=True)
    dense = generated(model, given, **DENSE_WAYS[way])
    with attach(model, "exact()", k=1000):
        assert_same(generated(model, given, **DENSE_WAYS[way]), dense)


@pytest.mark.parametrize(
    ("kind", "changes"),
    {
        "llama": {},
        "gemma3_text": {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "mistral": {"sliding_window": None},
        "llama4_text": {
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": 8,
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
    }.items(),
)
def test_other_models(kind: str, changes: dict[str, Any]) -> None:
    model, given = tiny(kind, **changes), prompt(2, padded=True)
    dense = generated(model, given)
    with attach(model, "sign()", k=1000) as attached:
        assert attached.layers == ([1] if "layer_types" in changes else [0, 1])
        assert_same(generated(model, given), dense)
    with attach(model, "sign()", k=2):
        assert not torch.equal(generated(model, given)[1][-1], dense[1][-1])


def test_bfloat16() -> None:
    model, given = tiny().to(torch.bfloat16), prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        ours = generated(model, given)[0]
    assert ours.shape == (2, 36)


# --- several calls in turn, caches and the model's own calls


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)"])
def test_turns_go_on_with_one_cache(model: Any, spec: str) -> None:
    first = prompt()["input_ids"]
    more = prompt(length=9, seed=3)["input_ids"]
    cache, fresh = DynamicCache(), {}
    with attach(model, spec, k=6):
        said = generated(model, {"input_ids": first, "past_key_values": cache}, 6)[0]
        both = torch.cat([said, more], 1)
        turn = generated(model, {"input_ids": both, "past_key_values": cache}, 6)
    with Slowly(model, spec, 6, until=24) as slow:
        cache = DynamicCache()
        said_slowly = generated(model, {"input_ids": first, "past_key_values": cache}, 6)[0]
        slow.until = both.shape[1]
        fresh = generated(model, {"input_ids": both, "past_key_values": cache}, 6)
    assert torch.equal(said, said_slowly)
    assert_same(turn, fresh)


def test_new_tokens_alone_go_on_too(model: Any) -> None:
    """generate also takes the new tokens without those cached, with the mask of all."""
    first, more = prompt()["input_ids"], prompt(length=9, seed=3)["input_ids"]
    both = torch.cat([first, more], 1)
    with attach(model, "quest(page_size=4)", k=6), torch.no_grad():
        caches = [model(first, use_cache=True).past_key_values for _ in range(2)]
        whole = generated(model, {"input_ids": both, "past_key_values": caches[0]})
        given = {"input_ids": more, "attention_mask": torch.ones_like(both)}
        rest = generated(model, {**given, "past_key_values": caches[1]})
    assert_same((torch.cat([first, rest[0]], 1), rest[1]), whole)


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)"])
def test_a_copied_cache_has_an_index_of_its_own(model: Any, spec: str) -> None:
    ids = prompt()["input_ids"]
    tails = [prompt(length=5, seed=seed)["input_ids"] for seed in (3, 4)]

    def after(cache: DynamicCache, tail: Tensor) -> Tensor:
        steps = tail.split(1, 1)
        return torch.cat([model(step, past_key_values=cache).logits for step in steps], 1)

    with attach(model, spec, k=6), torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        model(ids[:, -1:], past_key_values=cache)
        late, *copies = (copy.deepcopy(cache) for _ in range(3))
        steps = [
            [after(mine, tail[:, i : i + 1]) for mine, tail in zip(copies, tails, strict=True)]
            for i in range(5)
        ]
        copied = [torch.cat(column, 1) for column in zip(*steps, strict=True)]
        for tail, logits in zip(tails, copied, strict=True):
            fresh = model(ids[:, :-1], use_cache=True).past_key_values
            model(ids[:, -1:], past_key_values=fresh)
            torch.testing.assert_close(after(fresh, tail), logits)
    # Another attachment builds an index of its own.
    with attach(model, "exact()", k=1000), torch.no_grad():
        dense = after(late, tails[0])
        fresh = copy.deepcopy(cache)
        torch.testing.assert_close(after(fresh, tails[0]), dense)
    assert not torch.allclose(dense, copied[0], atol=1e-2)


def test_attachments_in_turn_share_no_index(model: Any) -> None:
    ids = prompt()["input_ids"]
    with attach(model, "exact()", k=6), torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        model(ids[:, -1:], past_key_values=cache)
        late = copy.deepcopy(cache)
    for held in (cache, late):
        with attach(model, "sign()", k=6, observe=True) as attached, torch.no_grad():
            model(ids[:, :1], past_key_values=held)
        # 25 slots, in room for 32.
        assert set(attached.fidelity()["index_bytes"].to_pylist()) == {32 * 2 * 32 / 8}


def test_direct_calls(model: Any) -> None:
    """Several tokens at a time are prompt, one is not; what comes after a dense prefill may be sparse."""
    ids = prompt()["input_ids"]
    with torch.no_grad(), Slowly(model, "sign()", 6, until=20):
        cache = model(ids[:, :20], use_cache=True).past_key_values
        slow = model(ids[:, 20:], past_key_values=cache).logits
    with torch.no_grad(), attach(model, "sign()", k=6):
        cache = model(ids[:, :12], use_cache=True).past_key_values
        model(ids[:, 12:20], past_key_values=cache)
        fast = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(20, 24)]
    torch.testing.assert_close(torch.cat(fast, 1), slow, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        cache = model(ids[:, :20], use_cache=True).past_key_values
        with attach(model, "sign()", k=6, sparse_prefill=True):
            late = model(ids[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(late, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["sign()", "quest(page_size=4)", "vattention()", "degraded(0.5)"])
def test_agrees_with_the_driver_of_studies(model: Any, spec: str) -> None:
    """A question after a dense prefix: `forward` over shared rows, and an attached model."""
    ids, indexer = prompt(2)["input_ids"], topkit.indexer(spec)
    ids[1, :16] = ids[0, :16]
    prefix = prefill(model, ids[0, :16].tolist())
    room = {layer: past.with_room(2, 8) for layer, past in prefix.items()}
    indices = {}
    for layer, past in prefix.items():
        step = Step(layer, past.scaling, kv_heads=2, inputs={"cache": past.prefix})
        indices[layer] = indexer.build(past.prefix.keys, step.given_to(indexer))
    stream = Stream(Cell(indexer, parse_budget(6)), 6, indices, 0, 1).fork(torch.tensor([0, 0]))
    theirs = forward(model, room, [stream], ids[:, 16:], 8)
    with torch.no_grad():
        cache = model(ids[:, :16], use_cache=True).past_key_values
        with attach(model, spec, k=6, sparse_prefill=True):
            ours = model(ids[:, 16:], past_key_values=cache).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", CHOICES)
def test_sparse_prefill(model: Any, spec: str) -> None:
    given = prompt(2, padded=True)
    with Slowly(model, spec, 6, until=0):
        slow = generated(model, given, 5)
    with attach(model, spec, k=6, sparse_prefill=True):
        assert_same(generated(model, given, 5), slow)


def test_some_layers(model: Any) -> None:
    given = prompt()
    with attach(model, "exact()", k=4, layers=[1], observe=True) as attached:
        some = generated(model, given)
        assert set(attached.fidelity()["layer"].to_pylist()) == {1}
    with attach(model, "exact()", k=4):
        assert not torch.equal(generated(model, given)[1][-1], some[1][-1])


def test_k_in_per_cent_follows_the_context(model: Any) -> None:
    with attach(model, "sign()", k="25%", observe=True) as attached:
        generated(model, prompt(), 6)
    rows = attached.fidelity().to_pylist()
    assert {r["position"]: r["kept"] for r in rows} == {
        n: math.ceil((n + 1) / 4) for n in range(24, 29)
    }


# --- every indexer


def lightning_for(folder: Any, reads: str = "hidden", width: int = 32) -> str:
    torch.manual_seed(3)
    shapes = {
        "wq": (2 * width, 32),
        "wk": (width, 32),
        "norm": (width,),
        "norm_bias": (width,),
        "gates": (2, 32),
    }
    tensors = {f"{n}.{w}": torch.randn(shape) for n in range(2) for w, shape in shapes.items()}
    how = {"heads": 2, "rope": "half", "rope_at": "first", "reads": reads}
    return f"lightning(weights={str(save_weights(folder, 'tiny', tensors, **how))!r})"


BARE = {
    "degraded": "degraded(0.5)",
    "keep": "keep(sign(), sink=2, window=2)",
    "refine": "refine(quest(page_size=4), factor=2)",
    "shared": "shared(quantized(), per='layer')",
}


@pytest.mark.parametrize("name", INDEXERS)
def test_every_indexer_generates(model: Any, name: str, tmp_path: Any) -> None:
    """Beams of padded rows, and drafts: as the indexer would on a fresh index at every call."""
    need(name)
    spec = lightning_for(tmp_path) if name == "lightning" else BARE.get(name, f"{name}()")
    with attach(model, spec, k=6, observe=True) as attached:
        given = prompt(2, padded=True)
        beams = generated(model, given, 8, num_beams=2)[0]
        drafts = generated(model, prompt(), 12, prompt_lookup_num_tokens=3)[0]
        plain = generated(model, prompt(), 12)[0]
    # A graph that was cut is another graph.
    assert beams.shape == (2, 32) and (torch.equal(drafts, plain) or name == "faiss_hnsw")
    table = attached.fidelity()
    assert set(table["call"].to_pylist()) == {1, 2, 3}
    assert max(table["kept"].to_pylist()) <= 6
    assert min(table["recall"].to_pylist()) >= 0


def test_the_hidden_states_of_a_prompt_are_not_kept(model: Any, tmp_path: Any) -> None:
    held: list[Any] = []
    note = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, given: held.append(weakref.ref(given["hidden_states"])), with_kwargs=True
    )
    with attach(model, lightning_for(tmp_path), k=4):
        cache = model(**prompt()).past_key_values
        assert cache.get_seq_length() == 24 and held[0]() is None
    note.remove()


@pytest.mark.parametrize(
    "spec", ["quest(page_size=4)", "degraded(0.5)", "vattention()", "faiss_hnsw()"]
)
def test_rows_do_not_depend_on_their_neighbours(spec: str, model: Any) -> None:
    need(spec)
    both = prompt(2, padded=True)
    alone = {"input_ids": both["input_ids"][:1, PAD:]}
    with attach(model, spec, k=6):
        in_batch = generated(model, both)[0][0, PAD:]
        assert torch.equal(generated(model, alone)[0][0], in_batch)


def test_sparse_models_of_their_own(tmp_path: Any) -> None:
    """A DSA model's own indexer chooses while it prefills; afterwards the attached one does."""
    changes = dict(
        moe_intermediate_size=16,
        num_key_value_heads=4,
        head_dim=8,
        q_lora_rank=24,
        kv_lora_rank=20,
        qk_rope_head_dim=8,
        qk_nope_head_dim=12,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        index_topk=8,
        index_head_dim=16,
        index_n_heads=4,
    )
    model = tiny("deepseek_v32", **changes)
    given = prompt()
    own = generated(model, given, 9)  # further on, index scores tie at the boundary
    spec = f"lightning(weights={str(export_weights(model, tmp_path))!r})"
    with attach(model, spec, k=8):
        assert_same(generated(model, given, 9), own)
    with attach(model, "exact()", k=1000):
        assert not torch.equal(generated(model, given, 9)[1][-1], own[1][-1])


# --- what is observed


def test_observed_rows_are_judged_as_tensors_are(model: Any) -> None:
    """The selections of a run, judged again from queries and keys caught on their way."""
    given, caught = prompt(2, padded=True), []
    sdpa = AttentionInterface()["sdpa"]

    def catch(module, query, key, value, mask, **kw):
        caught.append((module.layer_idx, query, key, value, mask, kw["scaling"]))
        return sdpa(module, query, key, value, mask, **kw)

    AttentionInterface.register("catch", catch)
    AttentionMaskInterface.register("catch", sdpa_mask)
    with attach(model, "shared(exact())", k=5, observe="shadow") as attached:
        shadow = generated(model, given, 4)
    model.set_attn_implementation("catch")
    dense = generated(model, given, 4)
    model.set_attn_implementation("sdpa")
    assert_same(shadow, dense)
    rows = {
        (r["level"], r["layer"], r["sample"], r["head"], r["position"]): r
        for r in attached.fidelity().to_pylist()
    }
    assert {level for level, *_ in rows} == {"head", "group"}
    start, compared = torch.tensor([PAD, 0]), 0
    for layer, query, key, value, _, scaling in caught:
        if query.shape[2] > 1:
            continue
        length = key.shape[2]
        chosen = _group_choice(query, key, start, 5)
        exact = truth(query, key, value, 5, scaling=scaling, start=start)
        columns = judge(exact, query, key, value, chosen, 5)
        for row in range(2):
            for head in range(4):
                found = rows["head", layer, row, head, length - 1 - int(start[row])]
                assert found["k"] == found["kept"] == 5
                for name in METRICS:
                    value_ = float(columns[name][row, head, 0])
                    assert math.isnan(value_) if found[name] is None else True
                    if found[name] is not None:
                        assert found[name] == pytest.approx(value_, rel=1e-3, abs=1e-5), name
                compared += 1
    assert compared == 2 * 2 * 4 * 3


def _group_choice(query: Tensor, key: Tensor, start: Tensor, k: int) -> Any:
    from topkit.indexers import Selection

    scores = torch.einsum("bgqd,bgtd->bgt", query[:, :, 0].unflatten(1, (2, 2)), key)
    hidden = torch.arange(key.shape[2]) < start[:, None, None]
    return Selection(scores.masked_fill(hidden, -math.inf).topk(k).indices[:, :, None])


def test_observing_changes_nothing(model: Any) -> None:
    given = prompt(2, padded=True)
    with attach(model, "sign()", k=6):
        plain = generated(model, given)
    with attach(model, "sign()", k=6, observe=True) as attached:
        assert_same(generated(model, given), plain)
    assert attached.fidelity().num_rows == 2 * 2 * 4 * 11
    with attach(model, "sign()", k=6) as attached, pytest.raises(InputError, match="observe=True"):
        attached.fidelity()


# --- coming and going


def test_detach_restores_everything() -> None:
    model, given = tiny(), prompt()
    before = generated(model, given)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    cache = DynamicCache()
    with pytest.raises(InputError, match="midway"), attach(model, "sign()", k=4) as attached:
        _break_off(model, {**given, "past_key_values": cache})
    attached.detach()
    assert model.config._attn_implementation == "sdpa"
    assert "generate" not in vars(model)
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert type(cache.layers[0]) is transformers.cache_utils.DynamicLayer
    assert not hasattr(cache.layers[0], "followed")
    assert_same(generated(model, given), before)


def _break_off(model: Any, given: dict[str, Any]) -> None:
    generated(model, given)
    assert type(given["past_key_values"].layers[0]) is not transformers.cache_utils.DynamicLayer
    raise InputError("midway")


def test_eager_models_stay_eager() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    with topkit.attach(model, "sign()", k=4):
        generated(model, prompt())
    assert model.config._attn_implementation == "eager"


def test_another_model_of_the_same_config_stays_dense() -> None:
    model = tiny()
    other = type(model)(model.config).eval()
    before = generated(other, prompt())
    with attach(model, "sign()", k=4):
        assert_same(generated(other, prompt()), before)


# --- refusals


def attached_to(kind: str, **changes: Any) -> Callable[[], Any]:
    return lambda: attach(tiny(kind, **changes), "sign()", k=4)


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.BertForMaskedLM(config)


def t5() -> Any:
    config = transformers.T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=32, num_layers=1)
    return transformers.T5ForConditionalGeneration(config)


EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "sinks": (attached_to("gpt_oss", **EXPERTS), "GptOss.* cannot be attached to: .*sinks"),
    "softcap": (attached_to("gemma2", attn_logit_softcapping=5.0), "softcapped"),
    "windows alone": (attached_to("mistral", sliding_window=8), "no layer to attach to"),
    "no interface": (attached_to("mamba"), "does not attend through .*AttentionInterface"),
    "encoder": (lambda: attach(bert(), "sign()", k=4), "not a decoder's causal self-attention"),
    "encoder-decoder": (lambda: attach(t5(), "sign()", k=4), "has an encoder"),
    "no model": (lambda: attach("reference", "sign()", k=4), "loaded transformers model; got str"),  # type: ignore[arg-type]
    "no k": (lambda: attach(tiny(), "sign()", k=0), "k must be"),
    "odd k": (lambda: attach(tiny(), "sign()", k="a few"), "k must be a number of keys"),
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


def test_refuses_what_happened_behind_its_back(model: Any, tmp_path: Any) -> None:
    ids = prompt()["input_ids"]
    with attach(model, "sign()", k=4), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-2], layer.values[:, :, :-2]
        with pytest.raises(InputError, match="25 slots and its cache 23"):
            model(ids[:, :1], past_key_values=cache)
    cache, late = model(ids, use_cache=True).past_key_values, r"hidden, rope of the 24 tokens"
    with attach(model, lightning_for(tmp_path), k=4), pytest.raises(InputError, match=late):
        model(ids[:, :1], past_key_values=cache)


def test_a_cache_that_is_followed_grows_in_place(model: Any) -> None:
    """A step costs what it adds: the slots that are there seldom move."""
    ids, places = prompt()["input_ids"], []
    cache: Any = DynamicCache(config=model.config)
    with attach(model, "sign", k=4), torch.no_grad():
        model(ids, past_key_values=cache)
        for token in range(2, 42):
            model(torch.tensor([[token]]), past_key_values=cache)
            places.append((cache.layers[0].keys.data_ptr(), cache.layers[0].values.data_ptr()))
    assert len(set(places)) <= 3
    assert cache.layers[0].keys.shape[2] == 24 + 40


@pytest.mark.parametrize(
    "spec",
    ["shared(sign())", "sign", "shared(quantized(dtype='int4'))", "keep(shared(sign()), sink=1)"],
)
def test_kernels_generate_what_the_definitions_do(spec: str) -> None:
    """In Triton's interpreter, or on a GPU where there is one."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = tiny(head_dim=64, num_hidden_layers=1).to(device, torch.float16)
    given = {name: x.to(device) for name, x in prompt(2, 14, padded=True).items()}
    with attach(model, spec, k=5, backend="torch"):
        want = generated(model, given, new=3)
    with attach(model, spec, k=5, backend="triton"):
        found = generated(model, given, new=3)
    assert torch.equal(found[0], want[0])
    for a, b in zip(found[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_kernel_that_cannot_run_is_refused_at_once(model: Any, monkeypatch: Any) -> None:
    with pytest.raises(InputError, match="backend must be one of"):
        attach(model, "sign", k=4, backend="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match=r"Triton is not installed|needs tensors on a CUDA GPU"):
        attach(model, "sign", k=4, backend="triton")


@pytest.mark.parametrize(
    ("changes", "dtype", "k", "message"),
    [
        ({"head_dim": 64}, torch.float32, 4, "queries must be bfloat16 or float16"),
        ({}, torch.float16, 4, "keys must have 64 or 128 dimensions"),
        ({"head_dim": 64}, torch.float16, 4097, "k must be at most 4096; got 4097"),
    ],
)
def test_what_kernels_do_not_take_is_refused_before_a_prompt(
    changes: dict[str, Any], dtype: torch.dtype, k: int, message: str
) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    other = tiny(num_hidden_layers=1, **changes).to(device, dtype)
    with pytest.raises(InputError, match=f'backend "triton": {message}'):
        attach(other, "sign()", k=k, backend="triton")
    attach(other, "sign()", k=k, backend="auto").detach()
    assert model_of_its_own(other)


@pytest.mark.parametrize(
    ("spec", "k", "message"),
    [
        ("refine(sign(), factor=2)", 3000, "k must be at most 4096; got 6000"),
        ("lightning", 4, "no Triton kernel"),
    ],
)
def test_what_an_indexers_own_kernels_do_not_take_is_refused_too(
    spec: str, k: int, message: str, tmp_path: Any
) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    other = tiny(num_hidden_layers=1, head_dim=64).to(device, torch.float16).train()
    spec = lightning_for(tmp_path, width=64) if spec == "lightning" else spec
    with pytest.raises(InputError, match=message):
        attach(other, spec, k=k, backend="triton")
    assert model_of_its_own(other) and other.training


@pytest.mark.parametrize(
    ("spec", "k", "how"),
    [
        ("streaming_llm(sink=1, window=6)", 5000, {}),
        ("quest(page_size=4)", 5000, {}),
        ("sign()", 5, {"observe": "shadow"}),  # a float32 model, whose attention stays its own
    ],
)
def test_what_kernels_are_not_asked_for_is_not_refused(
    spec: str, k: int, how: dict[str, Any]
) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if how else torch.float16
    other = tiny(num_hidden_layers=1, head_dim=64).to(device, dtype)
    with attach(other, spec, k=k, backend="triton", **how) as attached:
        given = {name: x.to(device) for name, x in prompt(1, 14).items()}
        generated(other, given, new=3)
    if how:
        assert set(attached.fidelity()["call"].to_pylist()) == {1}  # nothing of the trial


def model_of_its_own(model: Any) -> bool:
    """Whether nothing of an attachment is left."""
    hooks = [m for m in model.modules() if m._forward_pre_hooks]
    return model.config._attn_implementation == "sdpa" and not hooks


def test_a_cache_begun_in_inference_mode_goes_on_outside(model: Any) -> None:
    cache: Any = DynamicCache(config=model.config)
    given = prompt()
    with attach(model, "sign()", k=6):
        with torch.inference_mode():
            model(given["input_ids"], past_key_values=cache)
            for token in (3, 4):
                model(torch.tensor([[token]]), past_key_values=cache)
        ids = torch.cat([given["input_ids"], torch.tensor([[3, 4, 5]])], 1)
        found = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert found.shape == (1, 24 + 3 + 4)


def test_a_copy_made_while_attached_is_given_back_too(model: Any) -> None:
    cache: Any = DynamicCache(config=model.config)
    with attach(model, "sign()", k=6), torch.no_grad():
        model(prompt()["input_ids"], past_key_values=cache)
        model(torch.tensor([[3]]), past_key_values=cache)
        twin = copy.deepcopy(cache)
    kinds = {type(layer).__module__ for layer in (*cache.layers, *twin.layers)}
    assert kinds == {"transformers.cache_utils"}
    assert torch.equal(twin.layers[0].keys, cache.layers[0].keys)
